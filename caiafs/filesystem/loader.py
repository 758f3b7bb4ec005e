"""Directories out of the repository: the user's tree and the side tree, read as one.

Called by the filesystem in threads; it only reads, and holds no state but the store.
An entry with a matching side record gets everything back; one without gets what git
knows: its kind, its executable bit, and the time of the commit it was first seen in.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from ..errors import ObjectCorrupt
from ..records import BadRecord
from ..records.side import (
    Meta,
    SideRecord,
    decode_meta,
    decode_records,
    parse_side_message,
    unquote_name,
)
from ..tree import GITLINK, Loaded, mode_of

HASHED_INO = 1 << 60
"""Inode numbers from here on are derived from place and name, those below are counted."""


class Entry(Protocol):
    """An entry of a git tree."""

    @property
    def name(self) -> bytes: ...
    @property
    def mode(self) -> int: ...
    @property
    def oid(self) -> bytes: ...


class Commit(Protocol):
    """What is read of a commit."""

    @property
    def tree(self) -> bytes: ...
    @property
    def time(self) -> int: ...
    @property
    def message(self) -> bytes: ...


class Repository(Protocol):
    """What the loader asks of the store."""

    def read_ref(self, refname: bytes) -> bytes | None: ...
    def commit(self, oid: bytes) -> Commit: ...
    def tree(self, oid: bytes) -> Sequence[Entry]: ...
    def blob(self, oid: bytes) -> bytes: ...
    def blob_sizes(self, oids: list[bytes]) -> list[int]: ...


class SideState(NamedTuple):
    """What a side commit says: whose metadata it is, and how far the journal was then."""

    oid: bytes
    commit: bytes | None
    journal: bytes
    position: int
    root_side: bytes | None
    meta: Meta


def read_side(store: Repository, oid: bytes) -> SideState:
    """The side commit *oid*. Raises ObjectCorrupt where it is not one of ours or is damaged."""
    commit = store.commit(oid)
    try:
        belongs, journal, position = parse_side_message(commit.message)
        entries = {entry.name: entry.oid for entry in store.tree(commit.tree)}
        meta = decode_meta(store.blob(entries[b"meta"]))
    except (KeyError, BadRecord) as error:
        raise ObjectCorrupt(f"the metadata commit {oid.hex()} is damaged or foreign: {error!r}") from error
    return SideState(oid, belongs, journal, position, entries.get(b"root"), meta)


def hashed_ino(parent: int, name: bytes) -> int:
    """The inode number of an entry that no side record speaks of: the same at every mount."""
    digest = blake2b(parent.to_bytes(8, "little") + name, digest_size=8).digest()
    return HASHED_INO | (int.from_bytes(digest, "little") & (HASHED_INO - 1))


class Place(NamedTuple):
    """The directory that is to be read."""

    ino: int
    tree_oid: bytes | None
    side_oid: bytes | None
    epoch: int


class Loader:
    """Reads directories. *uid* and *gid* own what has no record of its own."""

    def __init__(self, store: Repository, uid: int, gid: int) -> None:
        self._store = store
        self._uid = uid
        self._gid = gid

    def entries(self, tree: bytes) -> Sequence[Entry]:
        """The entries of a git tree. Raises StoreError."""
        return self._store.tree(tree)

    def size_of(self, mode: int, oid: bytes) -> int:
        """A blob's size in bytes, or a directory's link count. Raises StoreError."""
        if mode == 0o040000:
            return self._subdirectories(oid) + 2
        return 2 if mode == GITLINK else self._store.blob_sizes([oid])[0]

    def _subdirectories(self, tree: bytes) -> int:
        return sum(below.mode == 0o040000 for below in self._store.tree(tree))

    def directory(self, place: Place) -> list[Loaded]:
        """Every entry of the directory. Raises StoreError where an object is missing or damaged."""
        entries: Sequence[Entry] = self._store.tree(place.tree_oid) if place.tree_oid is not None else ()
        records, sides, contents = self._side(place.side_oid)
        unrecorded = [
            entry.oid
            for entry in entries
            if entry.mode not in (0o040000, GITLINK) and not _matches(records.get(entry.name), entry)
        ]
        sizes = dict(zip(unrecorded, self._store.blob_sizes(unrecorded), strict=True)) if unrecorded else {}
        loaded = []
        for entry in entries:
            record = records.pop(entry.name, None)
            if record is not None and _matches(record, entry):
                loaded.append(self._recorded(record, entry, sides.get(entry.name), place))
            else:
                loaded.append(self._unrecorded(entry, sizes.get(entry.oid, 0), sides.get(entry.name), place))
        for name, record in records.items():
            if record.git_mode == 0:
                loaded.append(self._beside(record, sides.get(name), contents.get(name), place))
        return loaded

    def _side(
        self, oid: bytes | None
    ) -> tuple[dict[bytes, SideRecord], dict[bytes, bytes], dict[bytes, bytes]]:
        records: dict[bytes, SideRecord] = {}
        sides: dict[bytes, bytes] = {}
        contents: dict[bytes, bytes] = {}
        if oid is None:
            return records, sides, contents
        for entry in self._store.tree(oid):
            kind, name = entry.name[:1], unquote_name(entry.name[1:])
            if kind == b"@":
                try:
                    bucket = decode_records(self._store.blob(entry.oid))
                except BadRecord as error:
                    raise ObjectCorrupt(f"side records {entry.oid.hex()}: {error}") from error
                records.update((record.name, record) for record in bucket)
            elif kind == b"=":
                sides[name] = entry.oid
            elif kind == b"~":
                contents[name] = entry.oid
        return records, sides, contents

    def _recorded(self, r: SideRecord, entry: Entry, side: bytes | None, place: Place) -> Loaded:
        gitlink = entry.oid if entry.mode == GITLINK else None
        return Loaded(
            r.name, r.ino, r.mode, r.uid, r.gid, r.nlink, r.rdev, r.atime, r.mtime, r.ctime, r.size,
            None if gitlink else entry.oid, side, gitlink, r.epoch or place.epoch, r.xattrs,
        )  # fmt: skip

    def _unrecorded(self, entry: Entry, size: int, side: bytes | None, place: Place) -> Loaded:
        mode, nlink, time = mode_of(entry.mode), 1, place.epoch
        if stat.S_ISDIR(mode):
            nlink = self.size_of(entry.mode, entry.oid)
        gitlink = entry.oid if entry.mode == GITLINK else None
        return Loaded(
            entry.name, hashed_ino(place.ino, entry.name), mode, self._uid, self._gid, nlink, 0,
            time, time, time, size, None if gitlink else entry.oid, side, gitlink, place.epoch,
        )  # fmt: skip

    def _beside(self, r: SideRecord, side: bytes | None, content: bytes | None, place: Place) -> Loaded:
        return Loaded(
            r.name, r.ino, r.mode, r.uid, r.gid, r.nlink, r.rdev, r.atime, r.mtime, r.ctime, r.size,
            content if stat.S_ISREG(r.mode) else None, side, None, r.epoch or place.epoch, r.xattrs,
            r.target if stat.S_ISLNK(r.mode) else None,
        )  # fmt: skip


def _matches(record: SideRecord | None, entry: Entry) -> bool:
    if record is None or record.git_mode != entry.mode:
        return False
    return entry.mode == 0o040000 or record.oid == entry.oid
