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
from ..filesystem.loader import HASHED_INO, SideState, hashed_ino, unfit_name
from ..records import BadRecord, NewerFormat
from ..records.side import (
    SIDE_NAME_MAX,
    UNKNOWN_SIZE,
    SideRecord,
    bucket_name,
    decode_records,
    quote_name,
    unquote_name,
)
from ..store import DIRECTORY, GITLINK, NAME_MAX, Store, TreeEntry, blob_oid, show
from ..tree import ROOT_INO
from .report import Findings, Progress, Where, several, silent

OBJECTS, SIDE = "objects", "side ref"
READING = "reading objects"
WHOLE = 1 << 20
"""Blobs up to so many bytes are read at once, larger ones in pieces."""
_WIDTHS = {1, 2, 3, 4}
"""How long the name of a bucket can be: `@`, `@h`, `@hh`, `@hhh`."""
BACK = "goes back to the newest metadata that reads well, or sets the side ref aside"
_LOST = "drops them: what they said of owners, times, modes and attributes is lost"
_DROP = "drops it from the metadata (the old state stays under refs/caiafs-backup/)"
_SORT = "sorts the records again"
_RENUMBER = "gives it a number of its own"
_PLAIN = "gives it plain attributes"


class Mend(NamedTuple):
    """One change that mends the side tree of the directory *parts*.

    *entry* goes away; or the record of *name* goes away, gets other *fields* (inode 0: a new number),
    or is made from them; or, with neither, its records are sorted into their buckets again.
    """

    parts: tuple[bytes, ...]
    entry: bytes = b""
    name: bytes = b""
    fields: tuple[tuple[str, int], ...] | None = None


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
    subtrees: dict[bytes, bytes]
    contents: dict[bytes, bytes]
    is_whole: bool


class Walk:
    """One check of one branch; `commit` and `metadata` may follow each other and share what was read."""

    def __init__(self, store: Store, findings: Findings, spool: str, progress: Progress = silent) -> None:
        self._store = store
        self._findings = findings
        self._spool = spool
        self._progress = progress
        self._sizes: dict[bytes, int] = {}
        self._trees: set[bytes] = set()
        self._bad: dict[bytes, str] = {}
        self._label = ""
        self._inos: dict[int, tuple[Where, SideRecord]] = {}
        self._links: dict[int, list[Where]] = {}
        self._highest = ROOT_INO
        self._stale = 0
        self.directories = 0
        self.mends: list[Mend] = []
        self.meta_is_wrong = False
        """The next inode number or the table of hard links does not fit; `next_ino` and `links` do."""
        self.orphans: list[Orphan] = []
        self.is_newer = False
        """Records are of a format that this version does not know: nothing is mended then."""
        self.side_is_lost = False
        """Not even the root of the metadata, or the commit that it belongs to, can be read."""

    @property
    def has_bad_objects(self) -> bool:
        """Whether something that was named is missing or damaged."""
        return bool(self._bad)

    @property
    def next_ino(self) -> int:
        """The first inode number that no record has."""
        return self._highest + 1

    @property
    def links(self) -> tuple[tuple[int, bytes], ...]:
        """Every name of each inode that has several."""
        several_names = (places for places in self._links.items() if len(places[1]) > 1)
        return tuple(sorted((ino, at.path()) for ino, places in several_names for at in places))

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
        entries: dict[bytes, TreeEntry] = {}
        if place.tree is not None:
            found = self._tree(place.tree, where)
            if found is None:
                return []  # its records cannot be judged
            entries = {entry.name: entry for entry in found}
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
                self._record(side, at, record, entry)
            subtree = side.subtrees.get(name)
            if subtree is not None and not is_directory:
                is_directory = self._stray_subtree(side, at, entry)
            if is_directory:
                ino = hashed_ino(place.ino, name) if record is None else record.ino
                tree = entry.oid if entry is not None and entry.mode == DIRECTORY else None
                if tree is not None or subtree is not None:
                    below.append(_Place(at, ino, tree, subtree))
        self._contents(place, side, entries)
        return below

    def _stray_subtree(self, side: _Side, at: Where, entry: TreeEntry | None) -> bool:
        """Metadata of a directory that nothing else speaks of; True if it is one whose record is lost."""
        if entry is None and not side.is_whole:
            fields = (("mode", 0o040755), ("nlink", 2), ("ino", 0))
            self._wrong(f"{at}: the record of this directory is lost", _PLAIN, at, fields)
            return True
        self._findings.problem(SIDE, f"{at}: metadata of a directory that is not there", _DROP)
        self.mends.append(Mend(_above(at), b"=" + quote_name(at.name)))
        return False

    def _side(self, place: _Place) -> _Side:
        side = _Side({}, {}, {}, True)
        if place.side is None:
            return side
        self.directories += 1
        found = self._tree(place.side, place.where, beside=True)
        if found is None:
            if place.where.parent is not None:
                self.mends.append(Mend(_above(place.where), b"=" + quote_name(place.where.name)))
            else:
                self.side_is_lost = True
            return side
        parts = tuple(place.where.parts())
        is_whole = True
        widths = {len(entry.name) for entry in found if entry.name.startswith(b"@")}
        for entry in found:
            kind, name = entry.name[:1], unquote_name(entry.name[1:])
            if kind == b"@":
                is_whole &= self._bucket(place.where, side, entry)
            elif kind == b"=":
                side.subtrees[name] = entry.oid
            elif kind == b"~":
                side.contents[name] = entry.oid
            else:
                what = f"{show(entry.name)} in the metadata of {place.where} is nothing of caiafs"
                self._findings.problem(SIDE, what, _DROP)
                self.mends.append(Mend(parts, entry.name))
        if len(widths) > 1 or not widths <= _WIDTHS:
            self._findings.problem(SIDE, f"{place.where}: its records are spread in two ways", _SORT)
            self.mends.append(Mend(parts))
        return side._replace(is_whole=is_whole)

    def _bucket(self, where: Where, side: _Side, entry: TreeEntry) -> bool:
        """Take the records of one bucket in; False if it cannot be read."""
        parts = tuple(where.parts())
        if not self._blob(entry.oid, where, beside=f"the records {show(entry.name)} of "):
            self.mends.append(Mend(parts, entry.name))
            return False
        try:
            records = decode_records(self._store.blob(entry.oid))
        except NewerFormat as error:
            self.is_newer = True
            self._findings.problem(SIDE, f"{where}: its records {show(entry.name)}: {error}")
            return False
        except BadRecord as error:
            self._findings.problem(SIDE, f"{where}: its records {show(entry.name)}: {error}", _LOST)
            self.mends.append(Mend(parts, entry.name))
            return False
        count = 16 ** (len(entry.name) - 1)
        for record in records:
            what = ""
            if record.name in side.records:  # the loader takes the last one
                what = "has two records"
            elif len(entry.name) in _WIDTHS and bucket_name(record.name, count) != entry.name:
                what = "its record is in the wrong bucket"
            if what:
                self._findings.problem(SIDE, f"{Where(where, record.name)}: {what}", _SORT)
                self.mends.append(Mend(parts))
            side.records[record.name] = record
        return True

    def _record(self, side: _Side, at: Where, record: SideRecord, entry: TreeEntry | None) -> None:
        """One record that is in force."""
        content = entry.oid if entry is not None else None
        if entry is None and (reason := unfit_name(record.name)):
            self._wrong(f"{at}: a record of it, but {reason}", _DROP, at, None)
            return
        if entry is not None and stat.S_IFMT(record.mode) != _kind(entry.mode):
            what = f"{at}: recorded as mode {record.mode:o}, but git has {entry.mode:o}"
            self._wrong(what, _DROP, at, None)
            return
        if entry is None and stat.S_ISREG(record.mode):
            content = side.contents.get(record.name)
            if content is None:
                what = f"{at}: its content, which git's tree cannot hold, is missing"
                self._wrong(what, "drops the file", at, None)
                return
            if not self._blob(content, at, beside="the content of "):
                parts = _above(at)
                self.mends += [Mend(parts, b"~" + quote_name(record.name)), Mend(parts, name=record.name)]
                return
        elif entry is None and stat.S_ISLNK(record.mode):
            content = blob_oid(record.target)  # another of its names may be in git's tree
        size = self._sizes.get(content, record.size) if content is not None else record.size
        if stat.S_ISREG(record.mode) and size != record.size and record.size != UNKNOWN_SIZE:
            what = f"{at}: recorded as {record.size} bytes long, but its content has {size}"
            self._wrong(what, "corrects the size", at, (("size", size),))
        same = record._replace(oid=content or b"", git_mode=0, epoch=0, xattrs=(), target=b"", name=b"")
        self._inode(at, same)

    def _contents(self, place: _Place, side: _Side, entries: dict[bytes, TreeEntry]) -> None:
        """Contents beside the tree that no record in force speaks of."""
        for name, oid in side.contents.items():
            record = side.records.get(name)
            if record is not None and stat.S_ISREG(record.mode):
                continue
            at = Where(place.where, name)
            if not self._blob(oid, at, beside="the content of "):
                self.mends.append(Mend(_above(at), b"~" + quote_name(name)))
            elif record is None and name not in entries and not side.is_whole:
                fields = (("mode", 0o100644), ("size", self._sizes[oid]), ("nlink", 1), ("ino", 0))
                self._wrong(f"{at}: the record of this file is lost", _PLAIN, at, fields)
            else:
                saves = "saves it under lost+found and drops it from the metadata"
                self._findings.problem(SIDE, f"{at}: a content beside the tree, but no record of it", saves)
                self.orphans.append(Orphan((*_above(at), name), oid))
                self.mends.append(Mend(_above(at), b"~" + quote_name(name)))

    def _wrong(self, what: str, remedy: str, at: Where, fields: tuple[tuple[str, int], ...] | None) -> None:
        """A problem of the record of *at*, which is dropped (None), or mended by other *fields*."""
        self._findings.problem(SIDE, what, remedy)
        self.mends.append(Mend(_above(at), name=at.name, fields=fields))

    # ---- inodes

    def _inode(self, at: Where, record: SideRecord) -> None:
        ino = record.ino
        if ino < HASHED_INO:
            self._highest = max(self._highest, ino)
        is_linked = record.nlink > 1 and not stat.S_ISDIR(record.mode)
        known = self._inos.setdefault(ino, (at, record))
        alone = (("ino", 0),) if stat.S_ISDIR(record.mode) else (("ino", 0), ("nlink", 1))
        if ino == ROOT_INO:
            self._wrong(f"{at}: has the root directory's inode number", _RENUMBER, at, alone)
        elif not ROOT_INO < ino < 2 * HASHED_INO:
            self._wrong(f"{at}: has the inode number {ino}, which none can have", _RENUMBER, at, alone)
        elif known[0] is not at and (not is_linked or known[1].nlink < 2):
            what = f"{at} and {known[0]} are both inode {ino}, but not hard links"
            self._wrong(what, _RENUMBER, at, alone)
        elif known[1] != record:
            what = f"{at} and {known[0]} are hard links of inode {ino}, but their records differ"
            self._wrong(what, _RENUMBER, at, alone)
        elif is_linked:
            self._links.setdefault(ino, []).append(at)

    def _judge_inodes(self, side: SideState) -> None:
        found: list[str] = []
        if side.meta.next_ino <= self._highest:
            found.append(f"the next inode number is {side.meta.next_ino}, but {self._highest} is in use")
        if side.meta.next_ino >= HASHED_INO:
            found.append(f"the next inode number is {side.meta.next_ino}, which none can have")
        listed = set(side.meta.links)
        there = {(ino, at.path()) for ino, places in self._links.items() for at in places}
        for ino, path in sorted(listed - there):
            found.append(f"the table of hard links names {show(path)} for inode {ino}: not there")
        for ino, path in sorted(there - listed):
            found.append(f"{show(path)} is a hard link of inode {ino}, but not in the table of hard links")
        for what in found:
            self.meta_is_wrong = True
            self._findings.problem(SIDE, what, "writes it anew")
        if self._stale:
            return  # a name that changed outside is counted off with the next commit
        for ino, places in self._links.items():
            said = self._inos[ino][1].nlink
            if said != len(places):
                what = f"inode {ino} ({places[0]}) has {said} links, but {several(len(places), 'name')}"
                self._findings.problem(SIDE, what, "corrects the count")
                for at in places:
                    self.mends.append(Mend(_above(at), name=at.name, fields=(("nlink", len(places)),)))

    # ---- objects

    def _tree(self, oid: bytes, where: Where, *, beside: bool = False) -> list[TreeEntry] | None:
        if oid in self._bad:
            self._report(oid, where, f"the metadata of {where}" if beside else str(where))
            return None
        try:
            entries, unfit = self._store.listing(oid, SIDE_NAME_MAX if beside else NAME_MAX)
        except StoreError as error:
            self._bad[oid] = str(error)
            self._report(oid, where, f"the metadata of {where}" if beside else str(where))
            return None
        self._trees.add(oid)
        self._progress(self.objects, 0, READING)
        for entry in unfit:
            place = f"the metadata of {where}" if beside else f"{where} ({self._label})"
            self._findings.problem(
                OBJECTS,
                f"{place}: the entry {show(entry.name)} cannot be shown ({entry.reason}); no commit of a "
                "mount changes it, and a commit without it made by git ends this",
            )
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
                self._progress(self.objects, 0, READING)
                return True
            except StoreError as error:
                self._bad[oid] = str(error)
        self._report(oid, where, f"{beside}{where}")
        return False

    def _report(self, oid: bytes, where: Where, what: str) -> None:
        remedy = "" if what == str(where) else _LOST.replace("drops them: ", "drops it: ")
        self._findings.problem(OBJECTS, f"{what} ({self._label}): {self._bad[oid]}", remedy)


def _above(at: Where) -> tuple[bytes, ...]:
    """The directory that *at* is in."""
    return () if at.parent is None else tuple(at.parent.parts())


def _applies(record: SideRecord, entry: TreeEntry | None) -> bool:
    """As the loader decides it."""
    if entry is None:
        return record.git_mode == 0
    return record.git_mode == entry.mode and (entry.mode == DIRECTORY or record.oid == entry.oid)


def _kind(git_mode: int) -> int:
    return stat.S_IFDIR if git_mode == GITLINK else stat.S_IFMT(git_mode)
