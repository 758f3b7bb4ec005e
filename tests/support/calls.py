"""The calls of the core as tests make them, in a line each: by a caller of uid 1000, refused or not."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from caiafs.errors import FSError
from caiafs.tree import File, Node
from support.core import WHO, Core, Dump, differences

ROOT = 1
FILE, FOLDER, LINK, FIFO = 0o100644, 0o040755, 0o120777, 0o010600


def fails(code: int, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    """The call fails with *code*, and changes nothing."""
    with pytest.raises(FSError) as caught:
        trio.run(function, *arguments)
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


def refuses(code: int, function: Callable[..., Any], *arguments: Any, **more: Any) -> None:
    with pytest.raises(FSError) as caught:
        function(*arguments, **more)
    assert caught.value.errno == code, f"{errno.errorcode[caught.value.errno]}: {caught.value}"


def make(core: Core, name: bytes, mode: int = FILE, parent: int = ROOT, data: bytes = b"") -> Node:
    node = trio.run(core.fs.create, parent, name, mode, WHO)
    if data:
        write(core, node, 0, data)
    return node


def write(core: Core, node: Node, offset: int, data: bytes) -> None:
    assert isinstance(node, File)
    assert trio.run(core.fs.write, node, offset, data) == len(data)


def read(core: Core, node: Node, offset: int = 0, length: int = 1 << 30) -> bytes:
    """As read(2) would, but without the access time."""
    assert isinstance(node, File)
    return trio.run(core.fs.contents.read, node.content, offset, length)


def set_xattr(core: Core, ino: int, name: bytes, value: bytes) -> None:
    """By a caller who is in every group."""
    core.fs.set_xattr(ino, name, value, lambda gid: True)


def same(core: Core, before: Dump) -> None:
    found = differences(before, core.dump())
    assert not found, "\n".join(found)
