"""POSIX access control lists, as their extended attributes hold them. Pure.

The kernel checks access; what is left to a filesystem is to keep the list and the
mode in step, and to pass a directory's default list on (acl(5), and posix_acl_create
and posix_acl_chmod in the kernel's fs/posix_acl.c for the rules).

    u32 version 2 | entries of u16 tag, u16 permissions, u32 id
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_VERSION = Struct("<I")
_ENTRY = Struct("<HHI")


class BadACL(Exception):
    """The bytes are not an access control list."""


class Entry(NamedTuple):
    tag: int
    permissions: int
    id: int


def decode(value: bytes) -> list[Entry]:
    """The entries of a list. Raises BadACL."""
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != 2 or (len(value) - 4) % _ENTRY.size:
        raise BadACL("not a version 2 list")
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_VERSION.size :])]
    tags = [entry.tag for entry in entries]
    if entries and not all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)):
        raise BadACL("owner, group and others are needed once each")
    if (USER in tags or GROUP in tags) and MASK not in tags:
        raise BadACL("a mask is needed")
    return entries


def encode(entries: list[Entry]) -> bytes:
    """The list as its attribute's value."""
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def mode_of(entries: list[Entry]) -> int:
    """The nine permission bits that the list stands for."""
    found = {entry.tag: entry.permissions & 7 for entry in entries}
    group = found.get(MASK, found[GROUP_OBJ])
    return found[USER_OBJ] << 6 | group << 3 | found[OTHER]


def is_minimal(entries: list[Entry]) -> bool:
    """True if the mode alone says the same."""
    return len(entries) == 3


def with_mode(entries: list[Entry], mode: int) -> list[Entry]:
    """The list after chmod(2) to *mode*."""
    group = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]


def inherited(default: bytes, mode: int, is_directory: bool) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
    """Mode and attributes of a new inode in a directory with the list *default*."""
    entries = decode(default)
    mask = mode_of(entries) & mode
    entries = with_mode(entries, mask)
    attributes = [] if is_minimal(entries) else [(ACCESS, encode(entries))]
    if is_directory:
        attributes.append((DEFAULT, default))
    return mode & ~0o777 | mask, tuple(attributes)
