"""From a batch of changes to git trees: the user's tree and the side tree.

Runs in the commit worker, on a batch nobody changes any more. Directories are built
from the deepest up, each as its tree in git with the changed entries patched in, so
that a commit costs what changed and not what is there. Written without recursion:
a path may be thousands of levels deep.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, Protocol

from ..errors import ObjectCorrupt, ObjectMissing, StoreError
from ..records import NO_OID, BadRecord
from ..records.side import (
    UNKNOWN_SIZE,
    Meta,
    SideRecord,
    bucket_count,
    bucket_name,
    encode_meta,
    encode_record,
    join_records,
    quote_name,
    split_records,
)
from ..store import (
    BlobReader,
    Store,
    deflate_parts,
    find_entry,
    glimpse_entry,
    graft_unfit,
    needs_content_check,
    parse_tree,
    patch_tree,
    storable_content,
    storable_entry,
    zlib_stream,
)
from ..tree import GITLINK, ROOT_INO, ContentState, DirectoryState, EntryState
from .message import PathChange
from .recent import Recent

BLOB, TREE, COMMIT = 3, 2, 1
PIECE = 1024 * 1024
AHEAD = 16
"""Contents that are written before somebody looks whether there is something to read."""
FEW = 8
"""Names that are looked up in a side tree one by one."""
WIDE = 64 * 1024
"""Bytes of a tree from which on it is deflated in parts: 2,000 entries."""
_ZEROS = bytes(PIECE)

TreeChanges = dict[bytes, tuple[int, bytes] | None]


class Packer(Protocol):
    """Where new objects go."""

    def add(self, kind: int, data: bytes, deflated: bytes | None = None) -> bytes: ...
    def add_stream(self, size: int, chunks: Iterator[bytes]) -> bytes: ...


class Unreadable(StoreError):
    """What a batch rests on does not read back: *files* whose changes are over a damaged blob, *directories*
    whose trees or records are damaged; inode numbers, with reasons."""

    def __init__(self, files: dict[int, str], directories: dict[int, str]) -> None:
        super().__init__(next(iter((files | directories).values())))
        self.files = files
        self.directories = directories


class Built(NamedTuple):
    """What a batch became."""

    tree: bytes | None
    side_tree: bytes
    contents: dict[int, bytes]
    directories: dict[int, tuple[bytes | None, bytes | None]]
    changes: list[PathChange]


class Builder:
    """Builds one batch. *read* gives the journal's bytes, *alive* is told of progress."""

    def __init__(
        self, store: Store, packer: Packer, read: Callable[[int, int], bytes], spool: str,
        alive: Callable[[], None], recent: Recent | None = None,
    ) -> None:  # fmt: skip
        self._recent = recent or Recent()
        self._store = store
        self._packer = packer
        self._read = read
        self._spool = spool
        self._alive = alive
        self._directories: dict[int, DirectoryState] = {}
        self._contents: dict[int, bytes] = {}
        self._built: dict[int, tuple[bytes | None, bytes | None]] = {}
        self._changes: list[PathChange] = []
        self._damaged: dict[int, str] = {}
        self._damaged_directories: dict[int, str] = {}
        self.done = 0
        """Names that are written, or contents if those are more; how many there are in all is `total`."""
        self.total = 0
        self._named = 0
        self._expected: deque[EntryState] = deque()

    def expect(self, directory: DirectoryState) -> None:
        """A part of the batch that is to be built: from now on `write_ahead` writes its contents."""
        self.total += len(directory.entries)
        self._expected.extend(
            entry for entry in directory.entries.values() if entry is not None and _is_plain(entry.content)
        )

    def write_ahead(self) -> bool:
        """Write a few of the contents that are expected; False if there are none. Raises as `build` does."""
        waiting = self._expected
        for _ in range(min(AHEAD, len(waiting))):
            self._content(waiting[0])
            waiting.popleft()
            self.done += 1
        return bool(waiting)

    def build(
        self, directories: dict[int, DirectoryState], root: EntryState, next_ino: int,
        links: list[tuple[int, bytes]],
    ) -> Built:  # fmt: skip
        """Write the objects of the batch. Raises StoreError, JournalDamaged, OSError.

        Unreadable comes when all was tried, so that it names everything that cannot be written.
        """
        self._directories = directories
        self.total = sum(len(state.entries) for state in directories.values())
        while self.write_ahead():
            pass
        for state, path, diverted in reversed(self._order()):
            try:
                self._built[state.ino] = self._directory(state, path, diverted)
            except (ObjectCorrupt, ObjectMissing) as error:
                self._damaged_directories[state.ino] = str(error)
            self._alive()
        if self._damaged or self._damaged_directories:
            raise Unreadable(self._damaged, self._damaged_directories)
        tree, side = self._built.get(ROOT_INO, (root.oid, root.side))
        record = _record(b"", root, 0o040000, tree or NO_OID)
        meta = self._packer.add(BLOB, encode_meta(Meta(record, next_ino, root.epoch, tuple(links))))
        entries: TreeChanges = {b"meta": (0o100644, meta)}
        if side is not None:
            entries[b"root"] = (0o040000, side)
        side_tree = self._packer.add(TREE, patch_tree(b"", entries))
        return Built(tree, side_tree, self._contents, self._built, self._changes)

    def _order(self) -> list[tuple[DirectoryState, bytes, bool]]:
        """Every changed directory with its path and whether git cannot hold it, parents first."""
        order = []
        waiting = [(ROOT_INO, b"", False)] if ROOT_INO in self._directories else []
        while waiting:
            ino, path, diverted = waiting.pop()
            state = self._directories[ino]
            order.append((state, path, diverted))
            for name, entry in state.entries.items():
                if entry is not None and stat.S_ISDIR(entry.mode) and entry.ino in self._directories:
                    below = diverted or entry.gitlink is not None
                    below = below or not (entry.held or storable_entry(name, 0o040000))
                    waiting.append((entry.ino, path + name + b"/", below))
        return order

    def _directory(
        self, state: DirectoryState, path: bytes, diverted: bool
    ) -> tuple[bytes | None, bytes | None]:
        tree: TreeChanges = {}
        side: TreeChanges = {}
        records: dict[bytes, bytes | None] = {}
        listed: set[bytes] = set()
        for name, entry in state.entries.items():
            self._named += 1
            if self._named > self.done:
                self.done = self._named
            if not name:
                continue  # nothing but that the directory is to be written
            beside = quote_name(name)
            tree[name] = None
            if state.side_oid is not None:
                side[b"=" + beside] = side[b"~" + beside] = None
            records[name] = None
            if entry is None:
                continue
            placed: tuple[int, bytes] | None = None
            target = b""
            if stat.S_ISREG(entry.mode):
                mode, oid = 0o100755 if entry.mode & 0o100 else 0o100644, self._content(entry)
                if not diverted and storable_entry(name, mode) and self._content_is_fine(name, entry, state):
                    placed = mode, oid
                elif oid != NO_OID:
                    side[b"~" + beside] = 0o100644, oid
            elif stat.S_ISLNK(entry.mode):
                if not diverted and storable_entry(name, 0o120000):
                    placed = 0o120000, self._link(entry)
                else:
                    target = (
                        self._store.blob(entry.oid)
                        if entry.target is None and entry.oid
                        else entry.target or b""
                    )
            elif stat.S_ISDIR(entry.mode):
                below, below_side = self._built.get(entry.ino, (entry.oid, entry.side))
                if entry.ino in self._built:
                    listed.add(name)
                if entry.gitlink is not None:
                    placed = None if diverted else (GITLINK, entry.gitlink)
                elif below is not None and not diverted and (entry.held or storable_entry(name, 0o040000)):
                    placed = 0o040000, below
                if below_side is not None:
                    side[b"=" + beside] = 0o040000, below_side
            tree[name] = placed
            git_mode, oid = placed or (0, NO_OID)
            records[name] = encode_record(_record(name, entry, git_mode, oid, target))
        return self._user_tree(state, path, tree, listed, diverted), self._side_tree(state, side, records)

    def _user_tree(
        self, state: DirectoryState, path: bytes, changes: TreeChanges, listed: set[bytes], diverted: bool
    ) -> bytes | None:
        old = b"" if state.tree_oid is None else self._tree(state.tree_oid)
        if diverted:
            new = b""
        elif state.unfit_from is not None:
            new = graft_unfit(patch_tree(graft_unfit(old, b""), changes), self._tree(state.unfit_from))
        else:
            new = patch_tree(old, changes)
        for name, placed in changes.items():
            before = glimpse_entry(old, name) if old else None
            after = None if diverted else placed
            if name in listed:
                after = None  # what is in it was listed one by one
                if before is not None and before[0] == 0o040000:
                    continue
            if before != after and not (state.rewritten and _is_known(state.entries[name])):
                self._changes.append(PathChange(path + name, before, after))
        if new == old and state.tree_oid is not None:
            return state.tree_oid
        return self._add(TREE, new, state.tree_oid) if new else None

    def _side_tree(
        self, state: DirectoryState, changes: TreeChanges, records: dict[bytes, bytes | None]
    ) -> bytes | None:
        old = b"" if state.side_oid is None else self._tree(state.side_oid)
        buckets, before = _buckets(state, old, records)
        count = bucket_count(state.children, before)
        if count != before:
            kept: dict[bytes, bytes | None] = {}
            for name, oid in buckets.items():
                kept.update(self._bucket(oid))
                changes[name] = None
            records = kept | records
            buckets = {}
        grouped: dict[bytes, dict[bytes, bytes | None]] = {}
        for name, record in records.items():
            grouped.setdefault(bucket_name(name, count), {})[name] = record
        for bucket, members in grouped.items():
            found = self._bucket(buckets[bucket]) if bucket in buckets else {}
            for name, record in members.items():
                if record is None:
                    found.pop(name, None)
                else:
                    found[name] = record
            changes[bucket] = (0o100644, self._add(BLOB, join_records(found))) if found else None
        new = patch_tree(old, changes)
        if new == old and state.side_oid is not None:
            return state.side_oid
        return self._add(TREE, new, state.side_oid) if new else None

    def _add(self, kind: int, data: bytes, before: bytes | None = None) -> bytes:
        """Write an object that stands for the one called *before*, of which most is the same."""
        if len(data) < WIDE:
            oid = self._packer.add(kind, data)
            self._recent.note(kind, oid, data)
        else:
            parts = deflate_parts(data, *self._recent.parts(kind, before))
            oid = self._packer.add(kind, data, zlib_stream(parts, data))
            self._recent.note(kind, oid, data, parts)
        return oid

    def _tree(self, oid: bytes) -> bytes:
        return self._recent.get(TREE, oid, self._store.tree_bytes)

    def _bucket(self, oid: bytes) -> dict[bytes, bytes]:
        try:
            return split_records(self._recent.get(BLOB, oid, self._store.blob))
        except BadRecord as error:
            raise ObjectCorrupt(f"side records {oid.hex()}: {error}") from error

    # ---- contents

    def _link(self, entry: EntryState) -> bytes:
        if entry.oid is not None:
            return entry.oid
        oid = self._packer.add(BLOB, entry.target or b"")
        self._contents[entry.ino] = oid
        return oid

    def _content(self, entry: EntryState) -> bytes:
        if entry.oid is not None:
            return entry.oid
        oid = self._contents.get(entry.ino)
        if oid is None:
            assert entry.content is not None
            oid = self._contents[entry.ino] = self._write(entry.ino, entry.content)
        return oid

    def _write(self, ino: int, content: ContentState) -> bytes:
        try:
            return self._write_all(content)
        except (ObjectCorrupt, ObjectMissing) as error:
            self._damaged[ino] = str(error)
            return content.base or NO_OID

    def _write_all(self, content: ContentState) -> bytes:
        if _is_plain(content):
            _, length, position = content.extents[0]
            self._alive()
            return self._packer.add(BLOB, self._read(position, length))
        if content.size <= PIECE:
            return self._packer.add(BLOB, b"".join(self._pieces(content)))
        return self._packer.add_stream(content.size, self._pieces(content))

    def _pieces(self, content: ContentState) -> Iterator[bytes]:
        """The file from its beginning to its end: extents, the base between them, zeros elsewhere."""
        base = _Base(self._store, content.base, self._spool)
        try:
            at = 0
            for offset, length, position in (*content.extents, (content.size, 0, 0)):
                while at < min(offset, content.base_limit):
                    self._alive()
                    data = base.read(at, min(PIECE, min(offset, content.base_limit) - at))
                    at += len(data)
                    yield data
                while at < offset:
                    self._alive()  # a long stretch of nothing must not look like a worker that hangs
                    zeros = min(PIECE, offset - at)
                    at += zeros
                    yield _ZEROS[:zeros]
                end = offset + length
                while at < end:
                    data = self._read(position + at - offset, min(PIECE, end - at))
                    at += len(data)
                    yield data
                self._alive()
            base.verify(self._alive)
        finally:
            base.close()

    def _content_is_fine(self, name: bytes, entry: EntryState, state: DirectoryState) -> bool:
        """False for the few files whose content git refuses: they ride beside the tree. What does not read
        back stays where it is."""
        if not needs_content_check(name):
            return True
        if entry.size > PIECE:
            return False
        try:
            if entry.content is not None:
                return storable_content(name, b"".join(self._pieces(entry.content)))
            return entry.oid is not None and storable_content(name, self._store.blob(entry.oid))
        except (ObjectCorrupt, ObjectMissing):
            old = b"" if state.tree_oid is None else self._tree(state.tree_oid)
            before = glimpse_entry(old, name)
            return before is not None and before[1] == entry.oid


class _Base:
    """The base blob of a file that was changed in part."""

    def __init__(self, store: Store, oid: bytes | None, spool: str) -> None:
        self._store = store
        self._oid = oid
        self._spool = spool
        self._whole: bytes | None = None
        self._reader: BlobReader | None = None

    def read(self, offset: int, length: int) -> bytes:
        assert self._oid is not None
        if self._whole is None and self._reader is None:
            if self._store.blob_size(self._oid) <= PIECE:
                self._whole = self._store.blob(self._oid)
            else:
                self._reader = self._store.open_blob(self._oid, self._spool)
        if self._whole is not None:
            data = self._whole[offset : offset + length]
        else:
            assert self._reader is not None
            data = self._reader.read(offset, length)
        if not data:
            raise ObjectCorrupt(f"blob {self._oid.hex()} is shorter than the file it is the base of")
        return data

    def verify(self, alive: Callable[[], None]) -> None:
        """What was read of it is no damage: that shows at its end only, and must not get a new name."""
        if self._reader is not None:
            self._reader.verify(alive)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _is_plain(content: ContentState | None) -> bool:
    """Whether a file's content is in one piece in the journal, and not large: as most new files are."""
    if content is None or content.base is not None or len(content.extents) != 1 or content.size > PIECE:
        return False
    offset, length, _ = content.extents[0]
    return offset == 0 and length == content.size


def _is_known(entry: EntryState | None) -> bool:
    """Whether git has it already, if only where it does not read back."""
    return entry is not None and (entry.oid or entry.gitlink) is not None


def _record(name: bytes, e: EntryState, git_mode: int, oid: bytes, target: bytes = b"") -> SideRecord:
    size = e.size if e.size >= 0 else UNKNOWN_SIZE
    return SideRecord(
        name, e.ino, e.mode, e.uid, e.gid, e.nlink, e.rdev, e.atime, e.mtime, e.ctime, size, git_mode, oid,
        e.epoch, e.xattrs, target,
    )  # fmt: skip


def _buckets(state: DirectoryState, old: bytes, names: Collection[bytes]) -> tuple[dict[bytes, bytes], int]:
    """The buckets of the side tree *old*, and how many there may be. Where that is as many as there should
    be, and those of a few *names* are found without parsing the rest, only these."""
    usual = bucket_count(state.children)
    wanted = {bucket_name(name, usual) for name in names} if len(names) <= FEW else set()
    found = {bucket: entry[1] for bucket in wanted if (entry := find_entry(old, bucket)) is not None}
    if found and len(found) == len(wanted):
        return found, usual
    entries = parse_tree(old, state.side_oid or NO_OID)
    buckets = {entry.name: entry.oid for entry in entries if entry.name.startswith(b"@")}
    return buckets, 1 if not buckets else 16 ** (len(next(iter(buckets))) - 1)
