"""Directories out of the repository: the user's tree and the side tree, read as one.

Called by the filesystem in threads; it only reads, and holds no state but the store.
An entry with a matching side record gets everything back; one without gets what git
knows: its kind, its executable bit, and the time of the commit it was first seen in.

What it reads may come from anybody who can push, and is believed as far as it makes sense: a name
that no file can have is told apart and not shown, a record that contradicts its entry or itself is
passed over. One bad entry never costs the directory.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from ..errors import FormatNewer, ObjectCorrupt
from ..records import NO_OID, BadRecord, NewerFormat
from ..records.side import (
    SIDE_NAME_MAX,
    Meta,
    SideRecord,
    decode_meta,
    decode_records,
    parse_side_message,
    unquote_name,
    vouches,
)
from ..tree import COUNTED, GITLINK, ROOT_INO, UNCOUNTED, Loaded, mode_of

HASHED_INO = COUNTED
"""Inode numbers from here on are derived from place and name, those below are counted."""


_TIMES = 2**63 - 1
_LARGEST = 2**63 - 1
_NAME_MAX = 255


class Entry(Protocol):
    """An entry of a git tree."""

    @property
    def name(self) -> bytes: ...
    @property
    def mode(self) -> int: ...
    @property
    def oid(self) -> bytes: ...


class Unfit(Protocol):
    """An entry of a git tree that no directory can show."""

    @property
    def name(self) -> bytes: ...
    @property
    def reason(self) -> str: ...


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
    def tree(self, oid: bytes, name_max: int = ...) -> Sequence[Entry]: ...
    def listing(self, oid: bytes) -> tuple[Sequence[Entry], Sequence[Unfit]]: ...
    def blob(self, oid: bytes) -> bytes: ...
    def blob_sizes(self, oids: list[bytes]) -> list[int]: ...
    def subdirectories(self, oid: bytes) -> int: ...


class SideState(NamedTuple):
    """What a side commit says: whose metadata it is, and how far the journal was then."""

    oid: bytes
    commit: bytes | None
    journal: bytes
    position: int
    root_side: bytes | None
    meta: Meta

    def is_about(self, journal: bytes) -> bool:
        """Whether it speaks of this journal: whoever wrote it, knew the id."""
        return vouches(self.journal, journal, self.commit, self.position)


def read_side(store: Repository, oid: bytes) -> SideState:
    """The side commit *oid*. Raises ObjectCorrupt where it is not one of ours or is damaged."""
    commit = store.commit(oid)
    try:
        belongs, journal, position = parse_side_message(commit.message)
        entries = {entry.name: entry.oid for entry in store.tree(commit.tree)}
        meta = decode_meta(store.blob(entries[b"meta"]))
    except NewerFormat as error:
        raise FormatNewer(f"the metadata commit {oid.hex()}: {error}; mount with that version") from error
    except (KeyError, BadRecord) as error:
        raise ObjectCorrupt(f"the metadata commit {oid.hex()} is damaged or foreign: {error!r}") from error
    if not stat.S_ISDIR(meta.root.mode):
        raise ObjectCorrupt(f"the metadata commit {oid.hex()} says that the root is no directory")
    return SideState(oid, belongs, journal, position, entries.get(b"root"), meta)


def hashed_ino(parent: int, name: bytes) -> int:
    """The inode number of an entry that no side record speaks of: the same at every mount."""
    digest = blake2b(parent.to_bytes(8, "little") + name, digest_size=8).digest()
    return HASHED_INO | (int.from_bytes(digest, "little") & (HASHED_INO - 1))


def epoch_of(commit: Commit) -> int:
    """The time of *commit* in nanoseconds, as far as 64 bits of them go (the year 2262)."""
    return max(-_TIMES, min(commit.time * 10**9, _TIMES))


class Listing(NamedTuple):
    """A directory as the repository has it: what can be shown, and names that cannot, with the reason."""

    entries: list[Loaded]
    unfit: dict[bytes, str]


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

    def unfit(self, tree: bytes) -> dict[bytes, str]:
        """The names in a git tree that cannot be shown, with the reason. Raises StoreError."""
        return {entry.name: entry.reason for entry in self._store.listing(tree)[1]}

    def size_of(self, mode: int, oid: bytes) -> int:
        """A blob's size in bytes, or a directory's link count, which may be UNCOUNTED. Raises StoreError."""
        if stat.S_ISDIR(mode):
            return UNCOUNTED
        return 2 if mode == GITLINK else self._store.blob_sizes([oid])[0]

    def links(self, tree: bytes) -> int:
        """The link count of a directory. Raises StoreError."""
        return self._store.subdirectories(tree) + 2

    def directory(self, place: Place) -> Listing:
        """Every entry of the directory. Raises StoreError where the directory itself does not read back."""
        entries: Sequence[Entry] = ()
        unfit: dict[bytes, str] = {}
        if place.tree_oid is not None:
            entries, left_out = self._store.listing(place.tree_oid)
            unfit = {entry.name: entry.reason for entry in left_out}
        records, sides, contents = self._side(place.side_oid)
        unrecorded = [
            entry.oid
            for entry in entries
            if entry.mode not in (0o040000, GITLINK) and not _tells_size(records.get(entry.name), entry)
        ]
        sizes = dict(zip(unrecorded, self._store.blob_sizes(unrecorded), strict=True)) if unrecorded else {}
        loaded = []
        for entry in entries:
            record = records.pop(entry.name, None)
            if record is not None and _matches(record, entry):
                size = sizes.get(entry.oid, 0) if record.size > _LARGEST else record.size
                loaded.append(self._recorded(record, entry, size, sides.get(entry.name), place))
            else:
                loaded.append(self._unrecorded(entry, sizes.get(entry.oid, 0), sides.get(entry.name), place))
        for name, record in records.items():
            if record.git_mode != 0 or name in unfit:
                continue
            reason = unfit_name(name)
            if reason:
                unfit[name] = reason
            else:
                loaded.append(self._beside(record, sides.get(name), contents.get(name), place))
        return Listing(loaded, unfit)

    def _side(
        self, oid: bytes | None
    ) -> tuple[dict[bytes, SideRecord], dict[bytes, bytes], dict[bytes, bytes]]:
        records: dict[bytes, SideRecord] = {}
        sides: dict[bytes, bytes] = {}
        contents: dict[bytes, bytes] = {}
        if oid is None:
            return records, sides, contents
        for entry in self._store.tree(oid, SIDE_NAME_MAX):
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

    def _recorded(self, r: SideRecord, entry: Entry, size: int, side: bytes | None, place: Place) -> Loaded:
        gitlink = entry.oid if entry.mode == GITLINK else None
        return Loaded(
            r.name, _ino(r, place), r.mode, r.uid, r.gid, r.nlink, r.rdev, r.atime, r.mtime, r.ctime, size,
            None if gitlink else entry.oid, side, gitlink, r.epoch or place.epoch, r.xattrs,
        )  # fmt: skip

    def _unrecorded(self, entry: Entry, size: int, side: bytes | None, place: Place) -> Loaded:
        mode, nlink, time = mode_of(entry.mode), 1, place.epoch
        if stat.S_ISDIR(mode):
            nlink = 2 if entry.mode == GITLINK else UNCOUNTED
        gitlink = entry.oid if entry.mode == GITLINK else None
        return Loaded(
            entry.name, hashed_ino(place.ino, entry.name), mode, self._uid, self._gid, nlink, 0,
            time, time, time, size, None if gitlink else entry.oid, side, gitlink, place.epoch,
        )  # fmt: skip

    def _beside(self, r: SideRecord, side: bytes | None, content: bytes | None, place: Place) -> Loaded:
        size = r.size
        if stat.S_ISREG(r.mode) and (content is None or size > _LARGEST):
            size = -1 if content is None else self._store.blob_sizes([content])[0]
            content = content or NO_OID  # not there any more: whoever opens the file is told
        return Loaded(
            r.name, _ino(r, place), r.mode, r.uid, r.gid, r.nlink, r.rdev, r.atime, r.mtime, r.ctime,
            size, content if stat.S_ISREG(r.mode) else None, side, None, r.epoch or place.epoch, r.xattrs,
            r.target if stat.S_ISLNK(r.mode) else None,
        )  # fmt: skip


def unfit_name(name: bytes) -> str:
    """Why no file can have this name; "" if one can."""
    if name in (b"", b".", b"..") or b"\0" in name:
        return "no file can have this name"
    if b"/" in name:
        return "the name holds a slash"
    return "" if len(name) <= _NAME_MAX else f"the name is {len(name)} bytes long"


def _ino(r: SideRecord, place: Place) -> int:
    return r.ino if ROOT_INO < r.ino < 2 * HASHED_INO else hashed_ino(place.ino, r.name)


def _matches(record: SideRecord | None, entry: Entry) -> bool:
    """Whether *record* is about *entry* as it is now, and makes sense."""
    if record is None or record.git_mode != entry.mode:
        return False
    mode = entry.mode
    if stat.S_IFMT(record.mode) != (0o040000 if mode == GITLINK else stat.S_IFMT(mode)):
        return False
    return mode == 0o040000 or record.oid == entry.oid


def _tells_size(record: SideRecord | None, entry: Entry) -> bool:
    return record is not None and record.size <= _LARGEST and _matches(record, entry)
