"""What pyproject.toml cannot say: manual pages, completions and documents are made while building.

They are made from docs/ and the parser (.ci/shipping/share.py), and a wheel installs them below the prefix,
where man and the shells look: share/man, share/bash-completion and so on.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import manifest_maker

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

from shipping.share import write  # noqa: E402


def data_files() -> list[tuple[str, list[str]]]:
    """Write the files below build/ and list them by the folder that each is installed in."""
    folders: dict[str, list[str]] = {}
    for path in write(ROOT / "build"):
        below = path.relative_to(ROOT / "build")
        folders.setdefault(str(below.parent), []).append(os.path.relpath(path, ROOT))
    return sorted(folders.items())


manifest_maker.template = ".ci/shipping/MANIFEST.in"
setup(data_files=data_files())
