"""What no tree takes any more, as files on a branch of its own: `caiafs-lost+found/<branch>`.

    index.txt               every record that was saved, in its order, and which file it was about
    inode-42/offset-0       what was written to inode 42 at offset 0; writes that follow each other
                            are one file, a second write to the same place is `offset-0.2`
    beside/1                a content of the side tree whose record is lost

Made before anything is cut off, in one durable pack. A second salvage is a commit on top of the
first. Metadata is not applied anywhere: a person decides, with the index at hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import StoreError
from ..records import SetXattr, Write
from ..store import (
    BLOB,
    COMMIT,
    DIRECTORY,
    REGULAR,
    TREE,
    PackWriter,
    Store,
    TreeEntry,
    encode_commit,
    encode_tree,
    show,
    valid_identity,
)
from .branch import LOST_AND_FOUND, is_change
from .names import Names
from .report import several
from .scan import Segment, read_stretches, view
from .walk import Orphan

PIECE = 1 << 20
_INDEX_LIMIT = 64 << 20
IDENTITY = b"caiafs check <caiafs@localhost>"


@dataclass
class _Run:
    """Bytes of one file in a row: where they belong, and the places in journal files that hold them."""

    offset: int
    length: int = 0
    places: list[tuple[str, int, int]] = field(default_factory=list)


class Salvage:
    """Collects records, then commits them."""

    def __init__(self, names: Names) -> None:
        self.records = 0
        self.bytes = 0
        self._names = names
        self._runs: dict[int, list[_Run]] = {}
        self._index: list[str] = []
        self._index_size = 0
        self._orphans: list[Orphan] = []

    def take(self, segment: Segment, position: int = 0) -> None:
        """The whole records of *segment* from *position* on."""
        for record, at, end in read_stretches(segment, beyond=True):
            self._names.feed(record)
            if segment.start + at < position or not is_change(record):
                continue
            self.records += 1
            text = self._names.describe(record)
            if isinstance(record, Write):
                size = len(record.data)
                self.bytes += size
                run = self._run(record.ino, record.offset)
                run.places.append((segment.path, end - size, size))
                run.length += size
            elif isinstance(record, SetXattr):
                text += f": {show(record.name)}"
            elif target := getattr(record, "target", b""):
                text += f" -> {show(target)}"
            self._note(f"{segment.start + at} {text}")

    def take_orphan(self, orphan: Orphan) -> None:
        """A content beside the tree that nothing names any more."""
        self._orphans.append(orphan)
        self._note(f"beside/{len(self._orphans)} {show(b'/'.join(orphan.parts))}")

    def _run(self, ino: int, offset: int) -> _Run:
        runs = self._runs.setdefault(ino, [])
        if not runs or runs[-1].offset + runs[-1].length != offset:
            runs.append(_Run(offset))
        return runs[-1]

    def _note(self, text: str) -> None:
        self._index_size += len(text) + 1
        if self._index_size <= _INDEX_LIMIT:
            self._index.append(text)

    def __bool__(self) -> bool:
        return bool(self.records or self._orphans)

    def __str__(self) -> str:
        parts = []
        if self.records:
            parts.append(f"{several(self.records, 'record')} with {several(self.bytes, 'byte')} of data")
        if self._orphans:
            parts.append(several(len(self._orphans), "content") + " beside the tree")
        return " and ".join(parts)

    # ---- committing

    def commit(self, store: Store, branch: bytes, tmp_dir: str) -> bytes:
        """Put everything on the lost+found branch, durably; the name of its ref. Raises StoreError."""
        ref = LOST_AND_FOUND + branch
        identity = store.configured_identity() or IDENTITY
        if not valid_identity(identity):
            identity = IDENTITY
        before = store.read_ref(ref)
        with store.pack_writer(tmp_dir) as packer:
            tree = self._tree(packer)
            now = int(time.time())
            message = f"Save what `caiafs check --repair` could not place\n\n{self}\n".encode()
            parents = () if before is None else (before,)
            data = encode_commit(tree, parents, identity, identity, now, now, 0, message)
            commit = packer.add(COMMIT, data)
            pack = packer.finish()
        try:
            if not store.swap_ref(ref, before, commit, b"caiafs check: lost+found", identity):
                raise StoreError(f"{ref.decode(errors='replace')} moved while it was written; try again")
        finally:
            if pack is not None:
                pack.release()
        return ref

    def _tree(self, packer: PackWriter) -> bytes:
        index = "".join(f"{line}\n" for line in self._index).encode("utf-8", "surrogateescape")
        top = [TreeEntry(b"index.txt", REGULAR, packer.add(BLOB, index))]
        for ino, runs in self._runs.items():
            files: dict[bytes, bytes] = {}
            for run in runs:
                name, number = b"offset-%d" % run.offset, 2
                while name in files:
                    name = b"offset-%d.%d" % (run.offset, number)
                    number += 1
                files[name] = _add(packer, run)
            top.append(TreeEntry(b"inode-%d" % ino, DIRECTORY, _add_tree(packer, files.items())))
        if self._orphans:
            numbered = ((b"%d" % number, orphan.oid) for number, orphan in enumerate(self._orphans, 1))
            top.append(TreeEntry(b"beside", DIRECTORY, _add_tree(packer, numbered)))
        return packer.add(TREE, encode_tree(top))


def _add_tree(packer: PackWriter, files: Iterable[tuple[bytes, bytes]]) -> bytes:
    return packer.add(TREE, encode_tree([TreeEntry(name, REGULAR, oid) for name, oid in files]))


def _add(packer: PackWriter, run: _Run) -> bytes:
    if run.length <= PIECE:
        return packer.add(BLOB, b"".join(_pieces(run)))
    return packer.add_stream(run.length, _pieces(run))


def _pieces(run: _Run) -> Iterator[bytes]:
    for path, at, size in run.places:
        data = view(path)
        for start in range(at, at + size, PIECE):
            yield bytes(data[start : min(start + PIECE, at + size)])
