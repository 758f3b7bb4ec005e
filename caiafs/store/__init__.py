"""The store: git, as caiafs sees it. Everything that touches the repository is in this package.

    store/layout    the repository on disk, its work trees
    store/objects   trees and commits as bytes           (pure)
    store/names     what git takes into a tree           (pure)
    store/packindex from a name to a pack and an offset
    store/odb       where an object is, and its bytes
    store/blobs     blobs too large for memory
    store/parts     a large object deflated in parts (pure)
    store/pack      one durable pack per commit
    store/refs      read, compare-and-swap
    store/repack    a few packs instead of many

filesystem and history read through a Store, the committer's worker writes through one of its
own in another process. Calls block; callers put them into threads. Reading is safe from several
threads at once; a PackWriter belongs to one.

Nothing is cached that another git process could change: pushes, repacks and packed refs are
seen at once. The repository is an ordinary one, and the only files caiafs adds inside objects/
are packs and their `.keep`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from caiafs.aio import Syncer
from caiafs.errors import ObjectCorrupt, ObjectMissing, StoreError
from caiafs.store import repack
from caiafs.store.blobs import IN_MEMORY, BlobReader, Spool, open_pieces, verified
from caiafs.store.disk import NewFiles, failed, probe_directory
from caiafs.store.layout import Layout, create_bare
from caiafs.store.names import (
    CONTENT_CHECK_LIMIT,
    needs_content_check,
    show,
    storable_content,
    storable_entry,
    storable_name,
)
from caiafs.store.objects import (
    BLOB,
    COMMIT,
    DIRECTORY,
    EXECUTABLE,
    GITLINK,
    NAME_MAX,
    REGULAR,
    SYMLINK,
    TAG,
    TREE,
    Commit,
    Oid,
    TreeEntry,
    Unfit,
    differing_entries,
    encode_commit,
    encode_tree,
    find_entry,
    glimpse_entry,
    graft_unfit,
    is_directory,
    may_hold_trees,
    parse_commit,
    parse_tree,
    patch_tree,
    unfit_entries,
    valid_identity,
)
from caiafs.store.odb import ObjectDatabase
from caiafs.store.pack import (
    Keeper,
    KeptPack,
    PackWriter,
    blob_oid,
    clear_stale_keeps,
    clear_stale_temps,
    temporary_files,
)
from caiafs.store.parts import deflate_parts, zlib_stream
from caiafs.store.refs import Refs, Value, valid_ref

__all__ = [
    "BLOB",
    "COMMIT",
    "CONTENT_CHECK_LIMIT",
    "DIRECTORY",
    "EMPTY_TREE",
    "EXECUTABLE",
    "GITLINK",
    "NAME_MAX",
    "REGULAR",
    "SYMLINK",
    "TREE",
    "BlobReader",
    "Change",
    "Commit",
    "KeptPack",
    "Oid",
    "PackWriter",
    "Store",
    "TreeEntry",
    "Unfit",
    "Value",
    "blob_oid",
    "deflate_parts",
    "encode_commit",
    "encode_tree",
    "find_entry",
    "glimpse_entry",
    "graft_unfit",
    "needs_content_check",
    "parse_tree",
    "patch_tree",
    "show",
    "storable_content",
    "storable_entry",
    "storable_name",
    "valid_identity",
    "zlib_stream",
]

# Readable without being stored, as in git; but git fsck wants it stored.
EMPTY_TREE: Oid = bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")


LARGEST = 2**63 - 1
"""Bytes that a file can have: what says that it is larger is damaged."""


class Change(NamedTuple):
    """One path that differs between two trees; a whole directory that came or went is one change.

    With *unfit* it is about the entries of the directory *path* that no directory can show: *new* is
    the directory, which has others than *old* has.
    """

    path: tuple[bytes, ...]
    old: TreeEntry | None
    new: TreeEntry | None
    unfit: bool = False


class Store:
    """One git repository. Made by `create` or `open`."""

    def __init__(self, layout: Layout) -> None:
        self.git_dir = layout.git_dir  # the common directory: objects and refs are here
        self.bare = layout.work_tree is None
        self.alive: Callable[[], None] = lambda: None
        """Told of progress by what takes long: writing, joining packs, walking the history."""
        self._layout = layout
        self._odb = ObjectDatabase(os.path.join(self.git_dir, "objects"))
        self._refs = Refs(self.git_dir, layout.logs_refs)
        self._keeper = Keeper(os.path.join(self.git_dir, "caiafs", "locks"))
        self._syncer = Syncer()
        self._files: dict[str, NewFiles] = {}

    # --- making and opening

    @classmethod
    def create(cls, path: str, branch: bytes = b"main") -> Store:
        """Create a bare repository at *path* (absent, or an empty directory), durably, and open it."""
        path = os.path.abspath(path)
        if not valid_ref(b"refs/heads/" + branch):
            raise StoreError(f"{os.fsdecode(branch)!r} is no name for a branch")
        try:
            create_bare(path, branch)
        except OSError as error:
            raise failed(f"cannot create a repository at {path}", error) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: str) -> Store:
        """Open the repository at *path*: bare, a work tree, a `.git` directory or a `.git` file.

        RepositoryMissing when there is none; RepositoryUnsupported when its format is not written here.
        """
        path = os.path.abspath(path)
        try:
            return cls(Layout(path))
        except OSError as error:
            raise failed(f"cannot open the repository at {path}", error) from error

    def refresh(self) -> None:
        """See added and removed packs now. Reading does it anyway; an idle store frees what is gone."""
        self._odb.rescan()

    def probe(self, tmp: str, refs: tuple[bytes, ...]) -> None:
        """Find out whether the repository takes a commit: room for a pack, and no lock on *refs*.

        Raises StoreError with the cause.
        """
        try:
            for directory in (tmp, os.path.join(self.git_dir, "objects", "pack")):
                probe_directory(directory)
        except OSError as error:
            raise failed(f"the repository {self.git_dir} takes nothing", error) from error
        for name in refs:
            self._refs.probe(name)

    def close(self) -> None:
        """Let go of every file. Blob readers that are open stay readable."""
        self._odb.close()
        self._refs.close()
        self._keeper.close()
        for files in self._files.values():
            files.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- branches and refs

    def head_branch(self) -> bytes | None:
        """Short name of the branch HEAD points at, born or not; None when HEAD is detached."""
        return self._layout.head_branch()

    def branches(self) -> list[bytes]:
        """The short names of all branches that have a commit, in order."""
        return self._refs.branches()

    def checked_out_at(self, branch: bytes) -> str | None:
        """The work tree that has *branch* checked out (or is rebasing it); None if there is none.

        A bare repository's own HEAD is only a default for clones and does not count.
        """
        return self._layout.checked_out_at(branch)

    def configured_identity(self) -> bytes | None:
        """ "Name <mail>" as git's configuration has it for this repository; None where it has not."""
        return self._layout.identity()

    def read_ref(self, refname: bytes) -> Oid | None:
        """What *refname* (a full name) points at now; None: no such ref; StoreError: it is broken."""
        return self._refs.read(refname)

    def ref_in_the_way(self, refname: bytes) -> bytes | None:
        """A ref beside which *refname* cannot exist (`a` and `a/b` exclude each other), None if none is."""
        return self._refs.in_the_way(refname)

    def ref_value(self, new: Oid) -> Value:
        """The file that `swap_ref` gives a ref's name. The caller syncs it, beside others, and drops it."""
        return self._refs.value(new)

    def swap_ref(
        self, refname: bytes, old: Oid | None, new: Oid, message: bytes, who: bytes,
        value: Value | None = None,
    ) -> bool:  # fmt: skip
        """Move *refname* from *old* (None: it must not exist) to *new*; durable on return.

        False when it is not at *old* any more; RefLocked when another process holds its lock.
        *message* and *who* (`Name <mail>`) go into the reflog, if the repository keeps one. *value* is the
        `ref_value` of *new*, and on disk; without one it is made.
        """
        return self._refs.swap(refname, old, new, message, who, value)

    def sync_ref(self, refname: bytes) -> None:
        """Make durable that *refname* points where it does now; for one that somebody else may have moved."""
        self._refs.sync(refname)

    def ref_signature(self, refname: bytes) -> tuple[object, ...]:
        """A cheap token that changes whenever *refname* may have; for polling."""
        return self._refs.signature(refname)

    # --- objects

    def commit(self, oid: Oid) -> Commit:
        """A commit. Raises ObjectCorrupt for anything else."""
        kind, data = self._odb.read(oid)
        if kind == TAG:
            raise ObjectCorrupt(
                f"object {oid.hex()} is a tag where a commit belongs; "
                "`git update-ref REF TAG^{commit}` mends the ref"
            )
        if kind != COMMIT:
            raise ObjectCorrupt(f"object {oid.hex()} is used as a commit, but is none")
        return parse_commit(data, oid)

    def tree(self, oid: Oid, name_max: int = NAME_MAX) -> list[TreeEntry]:
        """The entries of a tree that a directory can show, in git's order."""
        return parse_tree(self.tree_bytes(oid), oid, name_max)

    def listing(self, oid: Oid, name_max: int = NAME_MAX) -> tuple[list[TreeEntry], list[Unfit]]:
        """The entries that a directory can show, and those that it cannot."""
        data = self.tree_bytes(oid)
        return parse_tree(data, oid, name_max), unfit_entries(data, oid, name_max)

    def subdirectories(self, oid: Oid) -> int:
        """How many directories a directory can show in a tree; one without any is not taken apart for it."""
        data = self.tree_bytes(oid)
        return sum(is_directory(entry.mode) for entry in parse_tree(data, oid)) if may_hold_trees(data) else 0

    def tree_bytes(self, oid: Oid) -> bytes:
        """A tree as it is stored, for patch_tree."""
        if oid == EMPTY_TREE:
            return b""
        kind, data = self._odb.read(oid)
        if kind != TREE:
            raise ObjectCorrupt(f"object {oid.hex()} is used as a directory, but is none")
        return data

    def blob(self, oid: Oid, limit: int | None = None) -> bytes:
        """A blob, whole in memory: for small ones; see open_blob. ObjectCorrupt beyond *limit* bytes."""
        kind, data = self._odb.read(oid) if limit is None else self._odb.read(oid, limit)
        if kind != BLOB:
            raise ObjectCorrupt(f"object {oid.hex()} is used as a file, but is none")
        return data

    def blob_size(self, oid: Oid) -> int:
        """A blob's size, read from its header."""
        return self._odb.blob_size(oid)

    def blob_sizes(self, oids: Iterable[Oid]) -> list[int]:
        """The sizes of many blobs; -1 for one that is missing or damaged, so that a listing survives it."""
        size_of = self._odb.blob_size
        known: dict[Oid, int] = {}  # equal files share a blob, and a loose one costs an open(2)
        sizes = []
        for oid in oids:
            size = known.get(oid)
            if size is None:
                try:
                    size = size_of(oid)
                except (ObjectMissing, ObjectCorrupt):
                    size = -1
                size = known[oid] = size if size <= LARGEST else -1
            sizes.append(size)
        return sizes

    def has(self, oid: Oid) -> bool:
        """Whether the object is there (not whether it is intact)."""
        return self._odb.has(oid)

    def open_blob(self, oid: Oid, spool_dir: str) -> BlobReader:
        """Random access to a blob of any size; what was read is kept in a nameless file in *spool_dir*, and
        in part in memory where that has no room."""

        def begin() -> tuple[int, Iterator[bytes]]:
            return open_pieces(self._odb, oid, lambda: Spool(spool_dir, IN_MEMORY))

        size, first = begin()
        begun = [first]  # a second time only where the spool had no room
        return BlobReader(oid, size, lambda: begun.pop() if begun else begin()[1], Spool(spool_dir))

    def stream_blob(self, oid: Oid, spool_dir: str | None = None) -> Iterator[bytes]:
        """A blob's content, a piece at a time; verified when the last piece was given.

        Only a blob that is stored as a delta needs *spool_dir* (default: the git directory).
        """
        size, pieces = open_pieces(self._odb, oid, lambda: Spool(spool_dir or self.git_dir))
        return verified(oid, size, pieces)

    # --- history

    def is_ancestor(self, a: Oid, b: Oid) -> bool:
        """Whether *b* contains *a* (every commit contains itself)."""
        if a == b:
            return True
        return a in self._common(a, b, stop_at=a)

    def merge_base(self, a: Oid, b: Oid) -> Oid | None:
        """A best common ancestor, the latest if there are several; None for unrelated histories."""
        if a == b:
            return a
        found = self._common(a, b)
        best = [oid for oid in found if not any(o != oid and self.is_ancestor(oid, o) for o in found)]
        return best[0] if best else None

    def _common(self, a: Oid, b: Oid, stop_at: Oid | None = None) -> list[Oid]:
        """Common ancestors of *a* and *b* not hidden behind others, latest first.

        Both histories are walked at once, latest commit first, until everything left is behind
        something common. Clocks that ran backwards may leave a redundant one in the result.
        """
        of_a, of_b, stale = 1, 2, 4
        shallow = self._shallow()
        flags = {a: of_a, b: of_b}
        commits = {a: self.commit(a), b: self.commit(b)}
        queue = [(-commits[oid].time, oid) for oid in (a, b)]
        heapify(queue)
        live = {a, b}  # queued and not stale
        found: list[Oid] = []
        while live:
            _, oid = heappop(queue)
            self.alive()
            live.discard(oid)
            mark = flags[oid]
            if mark & (of_a | of_b) == of_a | of_b:
                if oid == stop_at:
                    return [oid]
                if not mark & stale and oid not in found:
                    found.append(oid)
                mark |= stale
            for parent in () if oid in shallow else commits[oid].parents:
                known = flags.get(parent, 0)
                if known & mark == mark:
                    continue
                flags[parent] = known | mark
                if parent not in commits:
                    commits[parent] = self.commit(parent)
                heappush(queue, (-commits[parent].time, parent))
                if flags[parent] & stale:
                    live.discard(parent)
                else:
                    live.add(parent)
        return [oid for oid in found if not flags[oid] & stale]

    def _shallow(self) -> frozenset[Oid]:
        try:
            with open(os.path.join(self.git_dir, "shallow"), "rb") as file:
                return frozenset(bytes.fromhex(line.decode()) for line in file.read().split())
        except (FileNotFoundError, ValueError):
            return frozenset()

    def diff(self, a: Oid | None, b: Oid | None) -> Iterator[Change]:
        """What differs between two trees, by name; None is the empty tree.

        Directories on both sides are descended into; one that came, went or changed its kind is one
        change. Equal subtrees are not read.
        """
        if a == b:
            return
        stack: list[tuple[tuple[bytes, ...], Iterator[Change]]] = [((), self._diff_level((), a, b))]
        while stack:
            change = next(stack[-1][1], None)
            if change is None:
                stack.pop()
                continue
            path, old, new, unfit = change
            if unfit or old is None or new is None or not (is_directory(old.mode) and is_directory(new.mode)):
                yield change
            elif old.oid != new.oid:
                stack.append((path, self._diff_level(path, old.oid, new.oid)))

    def _diff_level(self, path: tuple[bytes, ...], a: Oid | None, b: Oid | None) -> Iterator[Change]:
        a, b = a or EMPTY_TREE, b or EMPTY_TREE
        found = differing_entries(self.tree_bytes(a), a, self.tree_bytes(b), b)
        for name in sorted(found.before.keys() | found.after.keys()):
            yield Change((*path, name), found.before.get(name), found.after.get(name))
        if found.unfit:
            yield Change(path, TreeEntry(b"", DIRECTORY, a), TreeEntry(b"", DIRECTORY, b), unfit=True)

    # --- writing

    def pack_writer(self, tmp_dir: str) -> PackWriter:
        """A new pack; *tmp_dir* is on the repository's filesystem, outside objects/."""
        files, sync = self._files_in(tmp_dir), self._syncer.sync
        return PackWriter(self._odb.path, tmp_dir, lambda: self.alive(), self._keeper, files, sync)

    def _files_in(self, tmp_dir: str) -> NewFiles:
        return self._files.setdefault(tmp_dir, temporary_files(tmp_dir))

    def make_ready(self, tmp_dir: str) -> None:
        """Make what a commit needs before there is one: files for a pack, its index and two refs."""
        with contextlib.suppress(OSError):  # the commit says what it is
            self._files_in(tmp_dir).make_ahead(2)
            self._refs.make_ready(2)

    def clear_stale(self, tmp_dir: str) -> int:
        """Remove what a worker that was killed left behind: temporary files, `.keep`s, ref locks; how many.

        Files of living processes are locked and stay, and so do locks of other git processes.
        """
        return (
            self._refs.clear_stale_locks()
            + clear_stale_temps(tmp_dir)
            + clear_stale_keeps(os.path.join(self._odb.path, "pack"))
        )

    def pack_count(self) -> int:
        """Packs that consolidation may join (those with `.keep` not counted)."""
        return repack.unkept_packs(self._odb.path)

    def consolidate(
        self,
        tmp_dir: str,
        *,
        more_than: int = repack.PACKS_BEFORE,
        git: str | None = "git",
        timeout: float = 900,
    ) -> bool:
        """Join packs when there are more than *more_than*; True when that made them fewer.

        With *git* on the PATH it does the work, niced; with None, or without git, caiafs does. StoreError
        when it failed; nothing is lost then.
        """
        return repack.consolidate(
            self._odb, self.git_dir, tmp_dir, more_than=more_than, git=git, timeout=timeout, alive=self.alive
        )
