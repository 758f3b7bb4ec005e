"""The filesystems that are compared, and how each is started, left to settle, and stopped."""

from __future__ import annotations

from pathlib import Path

from .base import BASES, Peer, Unavailable
from .caiafs import Caiafs
from .gitfs import Gitfs
from .overlays import Bindfs, Gocryptfs, Mergerfs, Rclone
from .plain import MemFs, Plain, PlainWithGit

__all__ = ["BASES", "KINDS", "Caiafs", "Peer", "Unavailable", "make"]

KINDS: dict[str, type[Peer]] = {
    "caiafs": Caiafs,
    "plain": Plain,
    "plain+git": PlainWithGit,
    "bindfs": Bindfs,
    "mergerfs": Mergerfs,
    "gocryptfs": Gocryptfs,
    "rclone": Rclone,
    "memfs": MemFs,
    "gitfs": Gitfs,
}
"""In the order in which tables show them. A peer is KIND/BASE, such as bindfs/tmpfs."""


def make(key: str, place: Path) -> Peer:
    """The peer called *key*, which may use the directory *place* as it likes."""
    kind, _, base = key.partition("/")
    return KINDS[kind](key, base, place)
