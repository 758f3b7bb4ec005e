"""Taking in what a commit from outside changed, name by name.

Used by the committer, with what differs between the commit that the tree was at and
the one that the branch is at now. A name that only they changed becomes theirs; where
both changed one name, ours stays and theirs is put beside it. Replaced files get a new
inode, as `git checkout` would give them: whoever has the old one open keeps it, and the
kernel, which owns a cached file's size and times, cannot mix the two up.
"""

from __future__ import annotations

import stat
from typing import NamedTuple, Protocol

from ..records import NO_OID, Adopt, AdoptEntry
from ..store import blob_oid
from ..tree import GITLINK, Directory, File, Node, Symlink
from . import Filesystem
from .loader import Entry

DIRECTORY = 0o040000


class Change(Protocol):
    """One name that differs between two trees; a whole directory that came or went is one."""

    @property
    def path(self) -> tuple[bytes, ...]: ...
    @property
    def old(self) -> Entry | None: ...
    @property
    def new(self) -> Entry | None: ...
    @property
    def unfit(self) -> bool: ...


class _Step(NamedTuple):
    path: tuple[bytes, ...]
    old: Entry | None
    new: Entry | None


class _Emptied(NamedTuple):
    """A directory whose entries were taken away."""

    path: tuple[bytes, ...]


class _Unfit(NamedTuple):
    """A directory that has other entries than before that no directory can show: those of *tree*."""

    path: tuple[bytes, ...]
    tree: bytes


class Adoption:
    """One commit that is taken in. `touched` are the names whose kernel caches are stale,
    `notes` tells a person what had to be decided."""

    def __init__(self, fs: Filesystem, commit: bytes, when: int) -> None:
        self._fs = fs
        self._commit = commit
        self._when = when
        self._remoded: set[int] = set()
        self.touched: list[tuple[int, bytes]] = []
        self.notes: list[str] = []

    async def take(self, change: Change) -> None:
        """Bring one change in. Raises FSError where git or the journal fails."""
        # A stack and no recursion: a path may be thousands of levels deep.
        waiting: list[_Step | _Emptied | _Unfit] = [_Step(change.path, change.old, change.new)]
        if change.unfit:
            assert change.new is not None
            waiting = [_Unfit(change.path, change.new.oid)]
        while waiting:
            step = waiting.pop()
            if isinstance(step, _Emptied):
                await self._remove_if_empty(step.path)
            elif isinstance(step, _Unfit):
                await self._take_unfit(step)
            else:
                waiting += reversed(await self._expand(step))

    async def _expand(self, step: _Step) -> list[_Step | _Emptied | _Unfit]:
        """Take in one name, or say which steps it consists of."""
        path, old, new = step
        if old is not None and old.mode == DIRECTORY and (new is None or new.mode != DIRECTORY):
            # A directory is gone outside: its files go, and it goes if nothing of ours is left in it.
            below = await self._fs.entries(old.oid)
            steps: list[_Step | _Emptied | _Unfit] = [
                _Step((*path, entry.name), entry, None) for entry in below
            ]
            steps.append(_Emptied(path))
            return steps if new is None else [*steps, _Step(path, None, new)]
        if old is not None and new is not None and new.mode == DIRECTORY:
            return [_Step(path, old, None), _Step(path, None, new)]
        parent = await self._walk(path[:-1])
        node = None if parent is None else (await self._fs.children(parent)).get(path[-1])
        if old is not None and old.mode == GITLINK and new is None and isinstance(node, Directory):
            await self._end_submodule(path, old)
        if new is not None and new.mode == DIRECTORY and isinstance(node, Directory):
            both: list[_Step | _Emptied | _Unfit] = [
                _Step((*path, entry.name), None, entry) for entry in await self._fs.entries(new.oid)
            ]
            return [*both, _Unfit(path, new.oid)] if await self._fs.unfit_of(new.oid) else both
        await self._take_one(path, old, new)
        return []

    async def _end_submodule(self, path: tuple[bytes, ...], old: Entry) -> None:
        """It is none outside any more: with something of ours in it, it stays, as an ordinary directory."""
        parent = await self._walk(path[:-1])
        directory = await self._walk(path)
        if parent is None or directory is None:
            return
        await self._fs.load_below(directory)  # all of it goes from the side tree to the user's
        is_there = (parent.children or {}).get(path[-1]) is directory  # it may have moved meanwhile
        if is_there and directory.gitlink == old.oid and directory.children:
            self._record(parent, AdoptEntry(parent.ino, path[-1], DIRECTORY, NO_OID, 0, directory.ino))

    async def _remove_if_empty(self, path: tuple[bytes, ...]) -> None:
        parent = await self._walk(path[:-1])
        directory = await self._walk(path)
        if parent is not None and directory is not None and not await self._fs.children(directory):
            self._record(parent, AdoptEntry(parent.ino, path[-1], 0, NO_OID, 0, 0))

    async def _take_unfit(self, step: _Unfit) -> None:
        """Entries that cannot be shown are kept as they have them: nobody here can have changed any."""
        unfit = await self._fs.unfit_of(step.tree)
        directory = await self._walk(step.path)
        if directory is None and unfit:
            directory = await self._make_directories(step.path)
        if directory is None:
            return
        await self._fs.children(directory)
        entry = AdoptEntry(directory.ino, b"", DIRECTORY, step.tree, len(unfit), directory.ino)
        self._fs.adopt(Adopt(self._commit, self._when, (entry,)), directory, unfit)

    async def _take_one(self, path: tuple[bytes, ...], old: Entry | None, new: Entry | None) -> None:
        size = 0 if new is None else await self._fs.size_of(new.mode, new.oid)
        parent = await self._walk(path[:-1])
        if parent is None:
            if new is None:
                return
            parent = await self._make_directories(path[:-1])
        children = await self._fs.children(parent)
        node = children.get(path[-1])
        if isinstance(node, Directory):
            await self._fs.children(node)
            node = children.get(path[-1])
        # From here on there is no await.
        if _same(node, new):
            return
        bumped = new is not None and new.mode == GITLINK
        ours_inside = isinstance(node, Directory) and bool(node.children) and not bumped
        busy = isinstance(node, File) and node.active  # its writer goes on, and must not write into nothing
        moded = isinstance(node, File) and node.ino in self._remoded  # by another of its names
        if _same(node, old, moded) and not ours_inside and not busy:
            self._place(parent, path[-1], node, new, size)
            return
        shown = b"/".join(path).decode("utf-8", "replace")
        if node is not None:
            self._fs.tree.mark_attributes(node)  # the branch has it otherwise: a commit says that ours stays
        if new is None:
            self.notes.append(f"{shown}: removed outside, changed here: ours was kept")
            return
        beside = self._name_beside(children, path[-1], new)
        what = "removed" if node is None else "changed"
        theirs = beside.decode("utf-8", "replace")
        self.notes.append(
            f"{shown}: changed outside, {what} here: ours stays, theirs is beside it as {theirs}"
        )
        if not _same(children.get(beside), new):
            self._place(parent, beside, None, new, size)

    def _place(self, parent: Directory, name: bytes, node: Node | None, new: Entry | None, size: int) -> None:
        if new is None:
            self._record(parent, AdoptEntry(parent.ino, name, 0, NO_OID, 0, 0))
            return
        only_mode = isinstance(node, File) and stat.S_ISREG(new.mode) and node.content.oid == new.oid
        bumped = isinstance(node, Directory) and new.mode == GITLINK  # what is in it is ours and stays
        if only_mode and node is not None:
            self._remoded.add(node.ino)
        ino = node.ino if node is not None and (only_mode or bumped) else self._fs.tree.next_ino
        self._record(parent, AdoptEntry(parent.ino, name, new.mode, new.oid, size, ino))

    def _record(self, parent: Directory, entry: AdoptEntry) -> None:
        old = (parent.children or {}).get(entry.name)
        if old is not None and old.nlink > 1 and not isinstance(old, Directory):
            # The kernel keeps the times that it has as long as it knows any of a file's names.
            self.touched += [(directory.ino, name) for directory, name in old.links()]
        self._fs.adopt(Adopt(self._commit, self._when, (entry,)), parent)
        self.touched.append((entry.parent, entry.name))

    def _name_beside(self, children: dict[bytes, Node], name: bytes, new: Entry) -> bytes:
        """A free name that says whose it is: `notes.txt.theirs-1a2b3c4`."""
        suffix = b".theirs-" + self._commit.hex()[:7].encode()
        base = name[: 255 - len(suffix) - 4]
        beside, number = base + suffix, 2
        while beside in children and not _same(children[beside], new):
            beside = base + suffix + b"-%d" % number
            number += 1
        return beside

    async def _walk(self, path: tuple[bytes, ...]) -> Directory | None:
        directory = self._fs.tree.root
        for name in path:
            child = (await self._fs.children(directory)).get(name)
            if not isinstance(child, Directory):
                return None
            directory = child
        return directory

    async def _make_directories(self, path: tuple[bytes, ...]) -> Directory:
        """The directories of *path*, those that we removed made again (beside a file of that name)."""
        directory = self._fs.tree.root
        for name in path:
            children = await self._fs.children(directory)
            child = children.get(name)
            number = 1
            while child is not None and not isinstance(child, Directory):
                beside = name[:240] + (b".theirs" if number == 1 else b".theirs-%d" % number)
                child = children.get(beside)
                number += 1
            if number > 1:
                name = beside
            if not isinstance(child, Directory):
                ino = self._fs.tree.next_ino
                self._record(directory, AdoptEntry(directory.ino, name, DIRECTORY, NO_OID, 2, ino))
                child = children[name]
            assert isinstance(child, Directory)
            directory = child
        return directory


def _same(node: Node | None, entry: Entry | None, any_mode: bool = False) -> bool:
    """True if *node* is what *entry* says, as far as git can tell; *any_mode*: executable or not."""
    if node is None or entry is None:
        return node is None and entry is None
    if isinstance(node, File):
        executable = any_mode or bool(node.mode & 0o100) == bool(entry.mode & 0o100)
        return stat.S_ISREG(entry.mode) and executable and node.content.oid == entry.oid
    if isinstance(node, Symlink):
        # One that was read by a name beside git's tree has its target, and no object.
        oid = blob_oid(node.target) if node.oid is None and node.target is not None else node.oid
        return entry.mode == 0o120000 and oid == entry.oid
    if isinstance(node, Directory):
        if entry.mode == GITLINK:
            return node.gitlink == entry.oid
        return entry.mode == DIRECTORY and node.tree_oid == entry.oid and not node.changed
    return False
