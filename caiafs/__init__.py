"""caiafs: a directory that remembers everything.

A FUSE filesystem that answers from memory, keeps every change in a crash-safe
journal and turns it into ordinary git commits in the background.
docs/architecture.md is the map.
"""

__version__ = "0.1.0"
