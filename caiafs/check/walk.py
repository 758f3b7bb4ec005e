"""Everything that a commit and its metadata name: read, hashed, and held against each other.

The user's tree and the side tree are walked together, as the loader reads them, so that a
record is judged beside the entry that it is about. Every object is read back once, however
often it is named; blobs are streamed. What is kept in memory is a few words an object and an
inode, never a content.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from ..errors import StoreError
from ..filesystem.loader import HASHED_INO, SideState, hashed_ino
from ..records import BadRecord
from ..records.side import (
    BUCKET_STEPS,
    SideRecord,
    bucket_name,
    decode_records,
    quote_name,
    unquote_name,
)
from ..store import DIRECTORY, GITLINK, Store, TreeEntry
from ..tree import ROOT_INO
from .report import Findings, Where, several, show

OBJECTS, SIDE = "objects", "side ref"
WHOLE = 1 << 20
"""Blobs up to so many bytes are read at once, larger ones in pieces."""
_BUCKETS = {1, 4096, *(count for _, count in BUCKET_STEPS)}
BACK = "goes back to the newest metadata that reads well, or sets the side ref aside"
_DROP = "drops it from the metadata (the old state stays under refs/caiafs-backup/)"


class Broken(NamedTuple):
    """Something to be taken out of the side tree of the directory *parts*: the entry *entry*, or only the
    record of *record* in it."""

    parts: tuple[bytes, ...]
    entry: bytes
    record: bytes | None = None


class Orphan(NamedTuple):
    """A content beside the tree whose record is gone."""

    parts: tuple[bytes, ...]
    oid: bytes


class _Place(NamedTuple):
    where: Where
    ino: int
    tree: bytes | None
    side: bytes | None


class _Side(NamedTuple):
    """One directory's side tree, taken apart."""

    records: dict[bytes, SideRecord]
    buckets: dict[bytes, bytes]
    subtrees: dict[bytes, bytes]
    contents: dict[bytes, bytes]
    is_whole: bool


class Walk:
    """One check of one branch; `commit` and `metadata` may follow each other and share what was read."""

    def __init__(self, store: Store, findings: Findings, spool: str) -> None:
        self._store = store
        self._findings = findings
        self._spool = spool
        self._sizes: dict[bytes, int] = {}
        self._trees: set[bytes] = set()
        self._bad: dict[bytes, str] = {}
        self._label = ""
        self._inos: dict[int, tuple[Where, SideRecord]] = {}
        self._links: dict[int, list[Where]] = {}
        self._highest = ROOT_INO
        self._stale = 0
        self.directories = 0
        self.broken: list[Broken] = []
        self.orphans: list[Orphan] = []
        self.side_is_lost = False
        """Not even the root of the metadata, or the commit that it belongs to, can be read."""

    @property
    def has_bad_objects(self) -> bool:
        """Whether something that was named is missing or damaged."""
        return bool(self._bad)

    @property
    def objects(self) -> int:
        """How many different objects were read back."""
        return len(self._sizes) + len(self._trees)

    # ---- a commit without metadata

    def commit(self, oid: bytes) -> bool:
        """Read all that commit *oid* names; False if not even the commit can be read."""
        try:
            commit = self._store.commit(oid)
        except StoreError as error:
            self._findings.problem(OBJECTS, f"the branch's commit {oid.hex()[:12]} cannot be read: {error}")
            return False
        self._label = f"commit {oid.hex()[:12]}"
        waiting = [(Where(), commit.tree)]
        while waiting:
            where, tree = waiting.pop()
            if tree in self._trees:
                continue
            for entry in self._tree(tree, where) or ():
                below = Where(where, entry.name)
                if entry.mode == DIRECTORY:
                    waiting.append((below, entry.oid))
                elif entry.mode != GITLINK:
                    self._blob(entry.oid, below)
        return True

    # ---- a commit with the metadata that belongs to it

    def metadata(self, side: SideState) -> None:
        """Read the side tree beside the tree of the commit that it belongs to."""
        tree: bytes | None = None
        self._label = f"side commit {side.oid.hex()[:12]}"
        if side.commit is not None:
            try:
                tree = self._store.commit(side.commit).tree
            except StoreError as error:
                self.side_is_lost = True
                self._findings.problem(
                    SIDE,
                    f"it belongs to commit {side.commit.hex()[:12]}, which cannot be read: {error}",
                    BACK,
                )
                return
            self._label = f"commit {side.commit.hex()[:12]}"
        waiting = [_Place(Where(), ROOT_INO, tree, side.root_side)]
        while waiting:
            waiting += self._directory(waiting.pop())
        self._judge_inodes(side)
        if self._stale:
            self._findings.note(
                SIDE, f"{several(self._stale, 'record')} of what has changed since; git's own word counts"
            )

    def _directory(self, place: _Place) -> list[_Place]:
        where = place.where
        entries = {} if place.tree is None else {e.name: e for e in self._tree(place.tree, where) or ()}
        side = self._side(place)
        below: list[_Place] = []
        for name in {**entries, **side.records, **side.subtrees}:
            entry, record = entries.get(name), side.records.get(name)
            at = Where(where, name)
            if record is not None and not _applies(record, entry):
                self._stale += 1
                record = None
            if entry is not None and entry.mode not in (DIRECTORY, GITLINK):
                self._blob(entry.oid, at)
            is_directory = entry is not None and entry.mode in (DIRECTORY, GITLINK)
            if record is not None:
                is_directory = stat.S_ISDIR(record.mode)
                self._record(place, side, at, record, entry)
            ino = hashed_ino(place.ino, name) if record is None else record.ino
            subtree = side.subtrees.get(name)
            if subtree is not None and not is_directory:
                self._drop(
                    place,
                    f"{at}: metadata of a directory that is not there",
                    b"=" + quote_name(name),
                    at=_DROP,
                )
            elif is_directory:
                tree = entry.oid if entry is not None and entry.mode == DIRECTORY else None
                if tree is not None or subtree is not None:
                    below.append(_Place(at, ino, tree, subtree))
        if place.side is not None:
            self._contents(place, side)
        return below

    def _side(self, place: _Place) -> _Side:
        side = _Side({}, {}, {}, {}, True)
        if place.side is None:
            return side
        self.directories += 1
        found = self._tree(place.side, place.where, beside=True)
        if found is None:
            parts = place.where.parts()
            if parts:
                self.broken.append(Broken(tuple(parts[:-1]), b"=" + quote_name(parts[-1])))
            self.side_is_lost |= not parts
            return side._replace(is_whole=False)
        is_whole = True
        widths = {len(entry.name) for entry in found if entry.name.startswith(b"@")}
        for entry in found:
            kind, name = entry.name[:1], unquote_name(entry.name[1:])
            if kind == b"@":
                is_whole &= self._bucket(place, side, entry, len(widths) == 1)
            elif kind == b"=":
                side.subtrees[name] = entry.oid
            elif kind == b"~":
                side.contents[name] = entry.oid
            else:
                what = f"{show(entry.name)} in the metadata of {place.where} is nothing of caiafs"
                self._drop(place, what, entry.name, at=_DROP)
        if len(widths) > 1:
            self._findings.problem(SIDE, f"{place.where}: its records are spread in two different ways")
        return side._replace(is_whole=is_whole)

    def _bucket(self, place: _Place, side: _Side, entry: TreeEntry, alone: bool) -> bool:
        """Take the records of one bucket in; False if it cannot be read."""
        lost = "drops these records: what they said of owners, times, modes and attributes is lost"
        if not self._blob(entry.oid, place.where, beside=f"the records {show(entry.name)} of "):
            self.broken.append(Broken(tuple(place.where.parts()), entry.name))
            return False
        try:
            records = decode_records(self._store.blob(entry.oid))
        except BadRecord as error:
            self._drop(place, f"{place.where}: its records {show(entry.name)}: {error}", entry.name, at=lost)
            return False
        count = 16 ** (len(entry.name) - 1)
        for record in records:
            at = Where(place.where, record.name)
            if record.name in side.records:
                self._drop(place, f"{at}: has two records", entry.name, record.name, at=_DROP)
                continue
            if count not in _BUCKETS or (alone and bucket_name(record.name, count) != entry.name):
                self._drop(
                    place, f"{at}: its record is in the wrong bucket", entry.name, record.name, at=_DROP
                )
            side.records[record.name] = record
            side.buckets[record.name] = entry.name
        return True

    def _record(
        self, place: _Place, side: _Side, at: Where, record: SideRecord, entry: TreeEntry | None
    ) -> None:
        """One record that is in force."""
        name = record.name
        content = entry.oid if entry is not None else None
        if entry is not None and stat.S_IFMT(record.mode) != _kind(entry.mode):
            what = f"{at}: recorded as mode {record.mode:o}, but git has {entry.mode:o}"
            self._drop(place, what, side.buckets[name], name, at=_DROP)
        if entry is None and stat.S_ISREG(record.mode):
            content = side.contents.get(name)
            if content is None:
                what = f"{at}: its content, which git's tree cannot hold, is missing"
                self._drop(place, what, side.buckets[name], name, at="drops the file")
            elif not self._blob(content, at):
                parts = tuple(place.where.parts())
                self.broken += [
                    Broken(parts, b"~" + quote_name(name)),
                    Broken(parts, side.buckets[name], name),
                ]
        if stat.S_ISREG(record.mode) and content in self._sizes and self._sizes[content] != record.size:
            what = f"{at}: recorded as {record.size} bytes long, but its content has {self._sizes[content]}"
            self._drop(place, what, side.buckets[name], name, at=_DROP)
        self._inode(
            at, record._replace(oid=content or b"", git_mode=0, epoch=0, xattrs=(), target=b"", name=b"")
        )

    def _contents(self, place: _Place, side: _Side) -> None:
        """Contents beside the tree that no record in force speaks of."""
        for name, oid in side.contents.items():
            record = side.records.get(name)
            if record is not None and stat.S_ISREG(record.mode):
                continue
            at = Where(place.where, name)
            if self._blob(oid, at):
                self.orphans.append(Orphan((*place.where.parts(), name), oid))
            if side.is_whole:
                self._drop(
                    place, f"{at}: a content beside the tree, but no record of it", b"~" + quote_name(name),
                    at="saves it under lost+found and drops it from the metadata",
                )  # fmt: skip

    # ---- inodes

    def _inode(self, at: Where, record: SideRecord) -> None:
        ino = record.ino
        if ino < HASHED_INO:
            self._highest = max(self._highest, ino)
        is_linked = record.nlink > 1 and not stat.S_ISDIR(record.mode)
        if is_linked:
            self._links.setdefault(ino, []).append(at)
        known = self._inos.get(ino)
        if known is None and ino != ROOT_INO:
            self._inos[ino] = at, record
        elif known is None:
            self._findings.problem(SIDE, f"{at}: has the root directory's inode number")
        elif not is_linked or known[1].nlink < 2:
            self._findings.problem(SIDE, f"{at} and {known[0]} are both inode {ino}, but not hard links")
        elif known[1] != record:
            self._findings.problem(
                SIDE, f"{at} and {known[0]} are hard links of inode {ino}, but their records differ"
            )

    def _judge_inodes(self, side: SideState) -> None:
        if side.meta.next_ino <= self._highest:
            self._findings.problem(
                SIDE, f"the next inode number is {side.meta.next_ino}, but {self._highest} is in use already"
            )
        paths = {(ino, at.path()): at for ino, places in self._links.items() for at in places}
        listed = set(side.meta.links)
        for ino, path in sorted(listed - paths.keys()):
            self._findings.problem(
                SIDE, f"the table of hard links names {show(path)} for inode {ino}: not there"
            )
        for ino, path in sorted(paths.keys() - listed):
            self._findings.problem(
                SIDE, f"{show(path)} is a hard link of inode {ino}, but not in the table of hard links"
            )
        if self._stale:
            return  # a name that changed outside is counted off with the next commit
        for ino, places in self._links.items():
            said = self._inos[ino][1].nlink
            if said != len(places):
                self._findings.problem(
                    SIDE, f"inode {ino} ({places[0]}) has {said} links, but {several(len(places), 'name')}"
                )

    # ---- objects

    def _tree(self, oid: bytes, where: Where, *, beside: bool = False) -> list[TreeEntry] | None:
        if oid in self._bad:
            self._report(oid, where, f"the metadata of {where}" if beside else str(where))
            return None
        try:
            entries = self._store.tree(oid)
        except StoreError as error:
            self._bad[oid] = str(error)
            self._report(oid, where, f"the metadata of {where}" if beside else str(where))
            return None
        self._trees.add(oid)
        return entries

    def _blob(self, oid: bytes, where: Where, *, beside: str = "") -> bool:
        """Read a blob back once; False if it cannot be."""
        if oid in self._sizes:
            return True
        if oid not in self._bad:
            try:
                size = self._store.blob_size(oid)
                if size <= WHOLE:
                    size = len(self._store.blob(oid))
                else:
                    size = sum(map(len, self._store.stream_blob(oid, self._spool)))
                self._sizes[oid] = size
                return True
            except StoreError as error:
                self._bad[oid] = str(error)
        self._report(oid, where, f"{beside}{where}")
        return False

    def _report(self, oid: bytes, where: Where, what: str) -> None:
        remedy = "" if what == str(where) else "drops it: this metadata is lost"
        self._findings.problem(OBJECTS, f"{what} ({self._label}): {self._bad[oid]}", remedy)

    def _drop(self, place: _Place, what: str, entry: bytes, record: bytes | None = None, *, at: str) -> None:
        """A problem that is mended by taking *entry*, or *record* in it, out of the side tree."""
        self.broken.append(Broken(tuple(place.where.parts()), entry, record))
        self._findings.problem(SIDE, what, at)


def _applies(record: SideRecord, entry: TreeEntry | None) -> bool:
    """As the loader decides it."""
    if entry is None:
        return record.git_mode == 0
    return record.git_mode == entry.mode and (entry.mode == DIRECTORY or record.oid == entry.oid)


def _kind(git_mode: int) -> int:
    return stat.S_IFDIR if git_mode == GITLINK else stat.S_IFMT(git_mode)
