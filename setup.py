"""What pyproject.toml cannot say: manual pages, completions and documents are made while building.

They are made from docs/ and the parser (tools/share.py), and a wheel installs them below the prefix,
where man and the shells look: share/man, share/bash-completion and so on.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools.share import write  # noqa: E402


def data_files() -> list[tuple[str, list[str]]]:
    """Write the files below build/ and list them by the folder that each is installed in."""
    folders: dict[str, list[str]] = {}
    for path in write(ROOT / "build"):
        below = path.relative_to(ROOT / "build")
        folders.setdefault(str(below.parent), []).append(os.path.relpath(path, ROOT))
    return sorted(folders.items())


setup(data_files=data_files())
