"""The build backend that pyproject.toml names: setuptools, with its setup script beside this file.

A subclass with another run_setup() is the way that setuptools documents for a backend of one's own.
"""

from __future__ import annotations

from pathlib import Path

from setuptools.build_meta import _BuildMetaBackend


class Backend(_BuildMetaBackend):  # type: ignore[misc]  # setuptools brings no types
    """What pip and build call."""

    def run_setup(self, setup_script: str = "setup.py") -> None:
        super().run_setup(str(Path(__file__).with_name(setup_script)))


backend = Backend()
