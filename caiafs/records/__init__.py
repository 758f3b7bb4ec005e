"""Journal records: changes as bytes, and bytes as changes. No I/O.

Built by filesystem.py, framed and stored by journal.py, read back by recovery
and check.py. docs/journal-format.md describes every byte. side.py beside this
module does the same for what git trees cannot hold.

A frame is self-delimiting and self-checking:

    u32 length of kind and body | u32 CRC-32 of kind and body | u8 kind | body

Little endian, unpadded. The data of a Write is always last in its frame, so that
an extent's address is a plain position in the journal and data is never copied
to be framed. Weighed and not chosen: msgpack or protobuf bodies (they copy the
data once more and cost several microseconds each way).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

from isal.isal_zlib import crc32  # zlib's own takes four times as long for 4 KiB, sixteen for 1 MiB

FRAME = Struct("<IIB")
FRAME_SIZE = FRAME.size
MAX_BODY = 64 * 1024 * 1024
"""A longer length field is damage, not a record: writes arrive in pieces of at most 1 MiB."""

RENAME_EXCHANGE = 2
"""linux/fs.h: swap the two names."""

# SetAttr.mask bits: which of the fields are meant.
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = (1 << bit for bit in range(7))


class BadRecord(Exception):
    """The bytes are not a record: torn, damaged, or of a newer format."""


class NewerFormat(BadRecord):
    """The bytes are whole, and of a format or kind that this version does not know."""


class Create(NamedTuple):
    """A new inode under a name: regular file, directory, symlink, FIFO, socket or device."""

    parent: int
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    time: int
    name: bytes
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Link(NamedTuple):
    """One more name for an inode."""

    ino: int
    parent: int
    time: int
    name: bytes


class Remove(NamedTuple):
    """A name goes away (unlink, rmdir)."""

    parent: int
    time: int
    name: bytes


class Rename(NamedTuple):
    """A name moves, over what stood there, or changes places with it (flags RENAME_EXCHANGE)."""

    parent: int
    new_parent: int
    time: int
    flags: int
    name: bytes
    new_name: bytes


class Write(NamedTuple):
    """Bytes at an offset of a regular file; the file grows when they end beyond it.

    *time* 0 leaves the file's times: the kernel's cache keeps them, and sends its own."""

    ino: int
    offset: int
    time: int
    data: bytes


class SetAttr(NamedTuple):
    """Attributes, as far as *mask* names them; a new size cuts or extends with zeros."""

    ino: int
    mask: int
    mode: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ctime: int


class SetXattr(NamedTuple):
    """An extended attribute gets a value, or goes away (None)."""

    ino: int
    ctime: int
    name: bytes
    value: bytes | None


class Name(NamedTuple):
    """Where an inode that this stretch of the journal speaks of is found.

    Directories are read from git when they are needed; so recovery must be told
    which ones. The first record about an inode after each commit follows its Name.
    """

    ino: int
    parent: int
    name: bytes


class AdoptEntry(NamedTuple):
    """One name as a commit from outside has it; mode 0 means that it is gone."""

    parent: int
    name: bytes
    mode: int
    oid: bytes
    size: int
    ino: int


class Adopt(NamedTuple):
    """Changes that came with *commit* from outside, taken in as one."""

    commit: bytes
    time: int
    entries: tuple[AdoptEntry, ...]


class Committed(NamedTuple):
    """All before *position* is in git: in *commit*, whose metadata is in *side*.

    *landed* is where the branch stood when this was recorded.
    """

    position: int
    commit: bytes
    side: bytes
    landed: bytes


class Synced(NamedTuple):
    """All before *position* was on disk when this was appended: damage there is no torn tail."""

    position: int


Record = Create | Link | Remove | Rename | Write | SetAttr | SetXattr | Name | Adopt | Committed | Synced

_CREATE = Struct("<QQIIIQqHHH")
_LINK = Struct("<QQq")
_REMOVE = Struct("<Qq")
_RENAME = Struct("<QQqIH")
_WRITE = Struct("<QQq")
_SETATTR = Struct("<QBIIIQqqq")
_SETXATTR = Struct("<QqBH")
_NAME = Struct("<QQ")
_ADOPT = Struct("<20sqI")
_ADOPT_ENTRY = Struct("<QI20sQQH")
_COMMITTED = Struct("<Q20s20s20s")
_SYNCED = Struct("<Q")
_XATTR = Struct("<HI")

NO_OID = bytes(20)
"""Stands where there is no commit yet."""

_new: Any = tuple.__new__
"""Makes a NamedTuple of its fields. A recovery makes millions; their own way takes three times as long."""

WRITE_DATA = FRAME_SIZE + _WRITE.size
"""Where the data begins in a Write's frame."""


def _encode_create(r: Create) -> bytes:
    parent, ino, mode, uid, gid, rdev, time, name, target, xattrs = r
    head = _CREATE.pack(parent, ino, mode, uid, gid, rdev, time, len(name), len(target), len(xattrs))
    if not xattrs:
        return head + name + target
    packed = b"".join(_XATTR.pack(len(key), len(value)) + key + value for key, value in xattrs)
    return head + name + target + packed


def _decode_create(body: memoryview) -> Create:
    *numbers, name_size, target_size, count = _CREATE.unpack_from(body)
    name_end = _CREATE.size + name_size
    at = name_end + target_size
    if at > len(body):
        raise BadRecord(f"name and target run over the record's {len(body)} bytes")
    name = bytes(body[_CREATE.size : name_end])
    target = bytes(body[name_end:at]) if target_size else b""
    xattrs = []
    for _ in range(count):
        key_size, value_size = _XATTR.unpack_from(body, at)
        at += _XATTR.size
        key = _take(body, at, key_size)
        at += key_size
        xattrs.append((key, _take(body, at, value_size)))
        at += value_size
    made: Create = _new(Create, (*numbers, name, target, tuple(xattrs)))
    return made


def _encode_rename(r: Rename) -> bytes:
    return _RENAME.pack(r.parent, r.new_parent, r.time, r.flags, len(r.name)) + r.name + r.new_name


def _decode_rename(body: memoryview) -> Rename:
    parent, new_parent, time, flags, size = _RENAME.unpack_from(body)
    name = _take(body, _RENAME.size, size)
    return Rename(parent, new_parent, time, flags, name, bytes(body[_RENAME.size + size :]))


def _encode_setxattr(r: SetXattr) -> bytes:
    head = _SETXATTR.pack(r.ino, r.ctime, r.value is not None, len(r.name))
    return head + r.name + (r.value or b"")


def _decode_setxattr(body: memoryview) -> SetXattr:
    ino, ctime, present, size = _SETXATTR.unpack_from(body)
    name = _take(body, _SETXATTR.size, size)
    value = bytes(body[_SETXATTR.size + size :])
    return SetXattr(ino, ctime, name, value if present else None)


def _encode_adopt(r: Adopt) -> bytes:
    parts = [_ADOPT.pack(r.commit, r.time, len(r.entries))]
    for entry in r.entries:
        parts.append(
            _ADOPT_ENTRY.pack(entry.parent, entry.mode, entry.oid, entry.size, entry.ino, len(entry.name))
        )
        parts.append(entry.name)
    return b"".join(parts)


def _decode_adopt(body: memoryview) -> Adopt:
    commit, time, count = _ADOPT.unpack_from(body)
    at = _ADOPT.size
    entries = []
    for _ in range(count):
        parent, mode, oid, size, ino, name_size = _ADOPT_ENTRY.unpack_from(body, at)
        at += _ADOPT_ENTRY.size
        entries.append(AdoptEntry(parent, _take(body, at, name_size), mode, oid, size, ino))
        at += name_size
    return Adopt(commit, time, tuple(entries))


def _take(body: memoryview, at: int, size: int) -> bytes:
    if at + size > len(body):
        raise BadRecord(f"a field of {size} bytes at {at} runs over the record's {len(body)} bytes")
    return bytes(body[at : at + size])


def _decode_write(body: memoryview) -> Write:
    made: Write = _new(Write, (*_WRITE.unpack_from(body), body[_WRITE.size :]))
    return made  # its data is a view: recovery keeps addresses


_ENCODE: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    Create: (1, _encode_create),
    Link: (2, lambda r: _LINK.pack(r.ino, r.parent, r.time) + r.name),
    Remove: (3, lambda r: _REMOVE.pack(r.parent, r.time) + r.name),
    Rename: (4, _encode_rename),
    Write: (5, lambda r: _WRITE.pack(r.ino, r.offset, r.time)),
    SetAttr: (6, lambda r: _SETATTR.pack(*r)),
    SetXattr: (7, _encode_setxattr),
    Name: (8, lambda r: _NAME.pack(r.ino, r.parent) + r.name),
    Adopt: (9, _encode_adopt),
    Committed: (10, lambda r: _COMMITTED.pack(*r)),
    Synced: (11, lambda r: _SYNCED.pack(r.position)),
}

_DECODE: dict[int, Callable[[memoryview], Record]] = {
    1: _decode_create,
    2: lambda body: _new(Link, (*_LINK.unpack_from(body), bytes(body[_LINK.size :]))),
    3: lambda body: _new(Remove, (*_REMOVE.unpack_from(body), bytes(body[_REMOVE.size :]))),
    4: _decode_rename,
    5: _decode_write,
    6: lambda body: _new(SetAttr, _SETATTR.unpack(body)),
    7: _decode_setxattr,
    8: lambda body: _new(Name, (*_NAME.unpack_from(body), bytes(body[_NAME.size :]))),
    9: _decode_adopt,
    10: lambda body: Committed(*_COMMITTED.unpack(body)),
    11: lambda body: Synced(*_SYNCED.unpack(body)),
}


KINDS = frozenset(_DECODE)
_BEGIN = {cls: (kind, crc32(bytes((kind,))), encoder) for cls, (kind, encoder) in _ENCODE.items()}


def encode(record: Record) -> list[bytes]:
    """*record* as a frame, in pieces to be written one after the other."""
    kind, check, encoder = _BEGIN[type(record)]
    body = encoder(record)
    check = crc32(body, check)
    if type(record) is Write:
        data = record.data
        return [FRAME.pack(1 + len(body) + len(data), crc32(data, check), kind) + body, data]
    return [FRAME.pack(1 + len(body), check, kind) + body]


_unpack_frame = FRAME.unpack_from


def decode(buffer: memoryview, at: int) -> tuple[Record, int]:
    """The record at *at*, and where the next one begins.

    A Write's data is a view of *buffer*. Raises BadRecord if the bytes from *at*
    are not a whole, undamaged record; at the very end that is a torn tail.
    """
    begin = at + FRAME_SIZE
    if begin > len(buffer):
        raise BadRecord("the frame's head is cut off")
    length, check, kind = _unpack_frame(buffer, at)
    end = begin - 1 + length
    if not 1 <= length <= MAX_BODY:
        raise BadRecord(f"a record of {length} bytes is out of range")
    if end > len(buffer):
        raise BadRecord(f"the record is cut off: {end - len(buffer)} bytes are missing")
    if crc32(buffer[begin - 1 : end]) != check:
        raise BadRecord("the checksum does not match")
    decoder = _DECODE.get(kind)
    if decoder is None:
        raise NewerFormat(f"record kind {kind} is not known: a newer caiafs wrote it")
    try:
        return decoder(buffer[begin:end]), end
    except Exception as error:
        raise BadRecord(f"a record of kind {kind} does not decode: {error}") from error
