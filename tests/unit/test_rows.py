"""The rows of modules stay true: a module imports only from rows above its own.

    1  errors  aio  child  config  metrics  4  filesystem  history  virtual      7  mount
    2  policy  records                    5  committer  remote  check          8  cli
    3  tree  memory  journal  store       6  operations  control

Packages count as their top name and may import within themselves. `caiafs.errors`, which imports
nothing, and `caiafs.__version__` are everyone's, also of their own row.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import caiafs

PACKAGE = Path(caiafs.__file__).parent

ROWS = [
    ["errors"],
    ["aio", "child", "config", "metrics"],
    ["policy", "records"],
    ["tree", "memory", "journal", "store"],
    ["filesystem", "history", "virtual"],
    ["committer", "remote", "check", "backends"],
    ["operations", "control"],
    ["mount"],
    ["cli"],
    ["__main__"],
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}

RESERVED = {"pyfuse3": {"operations", "mount"}, "dulwich": {"store"}}
"""Libraries that only these modules may know, so that they can be replaced."""

FILES = sorted(PACKAGE.rglob("*.py"))


def top_name(path: Path) -> str:
    """`caiafs/control/client.py` and `caiafs/control.py` are both "control"; the package itself is ""."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that is imported anywhere in the source, also inside functions."""
    package = ["caiafs", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*origin, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def trespasses(source: str, path: Path) -> list[str]:
    """What the file imports and should not."""
    name = top_name(path)
    found = []
    for line, imported in imports(source, path):
        library, _, rest = imported.partition(".")
        if name not in RESERVED.get(library, {name}):
            found.append(f"line {line}: only {', '.join(sorted(RESERVED[library]))} may import {library}")
        if library != "caiafs" or rest == "__version__":
            continue
        target = rest.partition(".")[0]
        if not target:
            found.append(f"line {line}: imports caiafs as a whole")
        elif target != name and (target not in ROW or ROW[target] >= ROW.get(name, 0)):
            found.append(f"line {line}: {name or 'caiafs'} may not import {target}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    assert top_name(path) in ROW or path == PACKAGE / "__init__.py", "give the new module a row"
    assert trespasses(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("tree.py", "from caiafs.errors import FSError", True),
        ("tree.py", "from caiafs import errors", True),
        ("tree.py", "from caiafs import __version__", True),
        ("tree.py", "from caiafs.journal import Journal", False),
        ("tree.py", "from caiafs import store", False),
        ("tree.py", "import caiafs.mount", False),
        ("tree.py", "import caiafs", False),
        ("tree.py", "from . import journal", False),
        ("tree.py", "def f():\n    from caiafs.cli import main", False),
        ("tree.py", "import dulwich.repo", False),
        ("store/packs.py", "from dulwich.pack import Pack", True),
        ("store/packs.py", "from .refs import Ref", True),
        ("store/packs.py", "from caiafs.store.refs import Ref", True),
        ("store/packs.py", "from ..journal import Journal", False),
        ("operations.py", "import pyfuse3", True),
        ("filesystem/acl.py", "from pyfuse3 import FUSEError", False),
        ("cli/__init__.py", "from caiafs.mount import run", True),
        ("mount/__init__.py", "from caiafs.cli import main", False),
    ],
)
def test_the_rule_itself(file: str, source: str, allowed: bool) -> None:
    assert (trespasses(source, PACKAGE / file) == []) is allowed
