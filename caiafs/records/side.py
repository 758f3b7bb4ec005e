"""Side records: what a git tree cannot say of an entry, as bytes. No I/O.

Read by filesystem's loader, written by the commit worker. They live in the trees
behind `refs/caiafs/<branch>`, which mirror the directories:

    root        tree   the root directory's side tree
    meta        blob   the root's own record, the next inode number, hard links

and in the side tree of a directory

    @ @h @hh @hhh      blob   records of its entries, in 1, 16, 256 or 4,096 buckets
    =NAME              tree   the side tree of the subdirectory NAME
    ~NAME              blob   content of an entry that the user's tree cannot hold

Names are prefixed so that none is refused by git (`.git` becomes `=.git`), and a backslash,
behind which git looks for a second name, is written %5C (so % is %25).
A record applies only while its entry still has the git mode and object that the
record names. Weighed and not chosen: one file of records a repository (a change
rewrites it whole), git notes (one blob an object, lost among equal blobs).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from . import NO_OID, BadRecord, NewerFormat

FORMAT = 1
_HEAD = Struct("<BHI")
_FIXED = Struct("<QIIIIQqqqQIHI20sq")
_XATTR = Struct("<HI")
_META = Struct("<BQqI")
_LINK = Struct("<QHI")

UNKNOWN_SIZE = 2**64 - 1
"""The size in the record of a file whose content could not be read when it was recorded."""

BUCKET_STEPS = ((128, 1), (2048, 16), (32768, 256))
"""Up to so many entries, so many buckets: about 128 records are rewritten for one change."""


class SideRecord(NamedTuple):
    """One entry of a directory. Times in nanoseconds since 1970; sizes in bytes.

    *git_mode* and *oid* are what the entry was in the user's tree when this was
    recorded (0 and zeros: it was not there), *epoch* is the time that entries
    below a directory have as long as they have no record of their own (0: as above).
    """

    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    size: int
    git_mode: int
    oid: bytes
    epoch: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""


class Meta(NamedTuple):
    """The root directory's record, the first inode number not yet given, and every name
    of each inode that has several: (inode, path from the root, names joined by '/')."""

    root: SideRecord
    next_ino: int
    epoch: int
    links: tuple[tuple[int, bytes], ...] = ()


SIDE_NAME_MAX = 1 + 3 * 255
"""How long a name in a side tree can be: a letter, and a name that is quoted throughout."""


def quote_name(name: bytes) -> bytes:
    """A name as it stands behind `=` or `~`."""
    return name.replace(b"%", b"%25").replace(b"\\", b"%5C")


def unquote_name(quoted: bytes) -> bytes:
    """What `quote_name` was given."""
    return quoted.replace(b"%5C", b"\\").replace(b"%25", b"%")


def encode_record(r: SideRecord) -> bytes:
    """*r* as bytes, with its length in front."""
    (
        name, ino, mode, uid, gid, nlink, rdev, atime, mtime, ctime, size, git_mode, oid, epoch, xattrs,
        target,
    ) = r  # fmt: skip
    data = _FIXED.pack(
        ino, mode, uid, gid, nlink, rdev, atime, mtime, ctime, size, git_mode, len(xattrs), len(target), oid,
        epoch,
    )  # fmt: skip
    if target or xattrs:
        data += target
        for key, value in xattrs:
            data += _XATTR.pack(len(key), len(value)) + key + value
    return _HEAD.pack(FORMAT, len(name), len(data)) + name + data


def decode_records(data: bytes) -> list[SideRecord]:
    """All records of one bucket. Raises BadRecord where the bytes are damaged."""
    records = []
    at = 0
    view = memoryview(data)
    try:
        while at < len(data):
            version, name_size, size = _HEAD.unpack_from(data, at)
            if version != FORMAT:
                raise NewerFormat(f"side record format {version} is not known: a newer caiafs wrote it")
            at += _HEAD.size
            name = data[at : at + name_size]
            at += name_size
            if at + size > len(data):
                raise BadRecord("a side record is cut off")
            records.append(_decode_body(name, view[at : at + size]))
            at += size
    except BadRecord:
        raise
    except Exception as error:
        raise BadRecord(f"a side record does not decode: {error}") from error
    return records


def _decode_body(name: bytes, body: memoryview) -> SideRecord:
    (
        ino, mode, uid, gid, nlink, rdev, atime, mtime, ctime, size, git_mode, count, target_size, oid, epoch,
    ) = _FIXED.unpack_from(body)  # fmt: skip
    at = _FIXED.size
    target = bytes(body[at : at + target_size])
    at += target_size
    xattrs = []
    for _ in range(count):
        key_size, value_size = _XATTR.unpack_from(body, at)
        at += _XATTR.size
        if at + key_size + value_size > len(body):
            raise BadRecord("an attribute runs over its side record")
        xattrs.append(
            (bytes(body[at : at + key_size]), bytes(body[at + key_size : at + key_size + value_size]))
        )
        at += key_size + value_size
    if len(target) != target_size or at != len(body):
        raise BadRecord("a side record's length does not fit its fields")
    return SideRecord(
        name, ino, mode, uid, gid, nlink, rdev, atime, mtime, ctime, size, git_mode, oid, epoch,
        tuple(xattrs), target,
    )  # fmt: skip


def split_records(data: bytes) -> dict[bytes, bytes]:
    """The records of one bucket as they are, by name. Raises BadRecord where the bytes are damaged."""
    found = {}
    at = 0
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise BadRecord("a side record is cut off")
        _, name_size, size = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + name_size + size
        if end > len(data):
            raise BadRecord("a side record is cut off")
        found[data[at + _HEAD.size : at + _HEAD.size + name_size]] = data[at:end]
        at = end
    return found


def join_records(found: Mapping[bytes, bytes]) -> bytes:
    """One bucket, in the order of names, so that equal records give equal bytes."""
    return b"".join(found[name] for name in sorted(found))


def bucket_count(entries: int, before: int = 1) -> int:
    """How many buckets a directory of so many entries has, which had *before* buckets.

    A directory that shrinks keeps its buckets down to half of the limit, lest one that
    hovers about a limit be rewritten whole each time.
    """
    for limit, count in BUCKET_STEPS:
        if entries <= limit:
            return before if before > count and entries > limit // 2 else count
    return 4096


def bucket_name(name: bytes, count: int) -> bytes:
    """Which of *count* buckets the record of *name* is in."""
    if count == 1:
        return b"@"
    width = {16: 1, 256: 2, 4096: 3}[count]
    return b"@%0*x" % (width, crc32(name) % count)


def encode_meta(meta: Meta) -> bytes:
    """The `meta` blob of a side commit."""
    parts = [_META.pack(FORMAT, meta.next_ino, meta.epoch, len(meta.links)), encode_record(meta.root)]
    for ino, path in meta.links:
        parts.append(_LINK.pack(ino, 0, len(path)))
        parts.append(path)
    return b"".join(parts)


def decode_meta(data: bytes) -> Meta:
    """The `meta` blob read back. Raises BadRecord where the bytes are damaged."""
    try:
        version, next_ino, epoch, count = _META.unpack_from(data)
        if version != FORMAT:
            raise NewerFormat(f"side format {version} is not known: a newer caiafs wrote it")
        at = _META.size
        _, name_size, size = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + name_size + size
        (root,) = decode_records(data[at:end])
        at = end
        links = []
        for _ in range(count):
            ino, _, size = _LINK.unpack_from(data, at)
            at += _LINK.size
            if at + size > len(data):
                raise BadRecord("the table of hard links is cut off")
            links.append((ino, data[at : at + size]))
            at += size
    except BadRecord:
        raise
    except Exception as error:
        raise BadRecord(f"the side ref's meta blob does not decode: {error}") from error
    return Meta(root, next_ino, epoch, tuple(links))


def side_ref(branch: bytes) -> bytes:
    """The ref beside *branch* on which the metadata lives."""
    return b"refs/caiafs/" + branch


def vouch(journal: bytes, commit: bytes | None, position: int) -> bytes:
    """What a side commit calls the journal *journal*, whose id only who may read the journal knows.

    So nobody else can say of a position that git has all before it. HMAC-SHA256, the first 16 bytes.
    """
    said = (commit or NO_OID) + position.to_bytes(8, "little")
    return hmac.digest(journal, said, "sha256")[:16]


def vouches(said: bytes, journal: bytes, commit: bytes | None, position: int) -> bool:
    """Whether *said*, as a side commit has it, is what `vouch` gives."""
    return hmac.compare_digest(said, vouch(journal, commit, position))


def side_message(commit: bytes | None, journal: bytes, position: int) -> bytes:
    """The message of a side commit; *journal* as `vouch` gives it."""
    belongs = (commit or NO_OID).hex().encode()
    return (
        b"Metadata of " + belongs[:12] + b"\n\n"
        b"Caiafs-Commit: " + belongs + b"\n"
        b"Caiafs-Journal: " + journal.hex().encode() + b" %d\n" % position
    )


def parse_side_message(message: bytes) -> tuple[bytes | None, bytes, int]:
    """Whose metadata a side commit holds, what vouches for the journal, and how far that was.
    Raises BadRecord."""
    trailers = dict(
        line.split(b": ", 1) for line in message.splitlines() if line.startswith(b"Caiafs-") and b": " in line
    )
    try:
        commit = bytes.fromhex(trailers[b"Caiafs-Commit"].decode())
        journal, position = trailers[b"Caiafs-Journal"].decode().split()
        found = None if commit == NO_OID else commit, bytes.fromhex(journal), int(position)
    except (KeyError, ValueError) as error:
        raise BadRecord(f"not the message of a metadata commit: {error!r}") from error
    if len(commit) != 20 or len(found[1]) != 16 or found[2] < 0:
        raise BadRecord("the message of a metadata commit names no commit, journal or position")
    return found
