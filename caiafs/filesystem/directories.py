"""The inodes that are loaded, and loading the others: the lowest layer of the filesystem.

A directory is read from git when it is looked into, in a thread, under `operation_timeout`. What
nobody uses is unloaded again when inodes take half of the memory budget.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import trio

from ..config import Config
from ..errors import CaiafsError, FSError, ObjectCorrupt, ObjectMissing
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..policy import Health, Policy
from ..tree import UNCOUNTED, Directory, Node, Tree
from .contents import BlobSource, Contents
from .loader import Listing, Loader, Place

log = logging.getLogger(__name__)

ObjectDamaged = (ObjectCorrupt, ObjectMissing)
NODE_COST = 700
"""Bytes that a loaded inode costs, its names and its place in the directory included (measured)."""

_LATE_KEPT = 4
"""Listings that came too late for who asked, kept for who asks again."""
UNFIT_TOLD = 20
"""So many directories with entries that cannot be shown are named in health."""


class Directories:
    """Inodes by number, and the entries of directories."""

    def __init__(
        self, config: Config, tree: Tree, memory: MemoryTier, journal: Journal, store: BlobSource,
        loader: Loader, metrics: Metrics, spool: str,
    ) -> None:  # fmt: skip
        self.config = config
        self.tree = tree
        self.memory = memory
        self.journal = journal
        self.metrics = metrics
        self.health = Health(Policy.of(config), config.primary, config.enable_fallback, _clock)
        self._loader = loader
        self.contents = Contents(store, journal, memory, metrics, spool, self.ask)
        self._threads = trio.CapacityLimiter(4)
        self._loading: dict[int, trio.Event] = {}
        self._loaded: dict[Directory, None] = {}
        self.unfit: dict[int, str] = {}
        self._reading: set[Place] = set()
        self._late: dict[Place, Listing] = {}
        self._swept_at = 0
        self._pruning = False
        self._asked = self._forgotten = 0
        self.prune_in_kernel: Callable[[list[tuple[int, bytes]]], None] | None = None
        """Makes the kernel forget names, some time later, and calls `pruned`; set once there is a kernel."""

    def reconfigure(self, config: Config) -> None:
        """Obey other settings while it serves; not every one may differ (see mount/reload.py)."""
        self.config = config
        self.health.obey(Policy.of(config), config.enable_fallback)

    def node(self, ino: int) -> Node:
        """The inode *ino*. Raises FSError(ESTALE) if there is none."""
        node = self.tree.nodes.get(ino)
        if node is None:
            raise FSError(errno.ESTALE)
        return node

    def directory(self, ino: int) -> Directory:
        """The directory *ino*. Raises FSError(ENOTDIR, ESTALE)."""
        node = self.node(ino)
        if not isinstance(node, Directory):
            raise FSError(errno.ENOTDIR)
        return node

    # ---- git, in threads

    async def ask(
        self, function: Callable[..., Any], *arguments: Any, operation: str = "get",
        progress: Callable[[], int] | None = None,
    ) -> Any:  # fmt: skip
        """The store's answer. Raises FSError: ETIMEDOUT past `operation_timeout`, EIO for damage.

        A call that moves a large amount of data may take longer: as long as *progress* counts on.
        """
        timeout = self.config.operation_timeout
        ended = trio.Event()
        with self.metrics.timed("git", operation), trio.move_on_after(timeout) as scope:
            if progress is not None:
                trio.lowlevel.spawn_system_task(self._extend, scope, timeout, progress, ended)
            try:
                return await trio.to_thread.run_sync(
                    partial(function, *arguments), abandon_on_cancel=True, limiter=self._threads
                )
            except ObjectDamaged as error:
                self.health.git.note(str(error), str(error), partial(function, *arguments))
                raise FSError(errno.EIO, str(error)) from error
            except CaiafsError as error:
                raise FSError(errno.EIO, str(error)) from error
            except OSError as error:
                raise FSError(error.errno or errno.EIO, str(error)) from error
            finally:
                ended.set()
        slow = f"git did not answer within {timeout:g} s"
        self.health.git.slow(slow)
        raise FSError(errno.ETIMEDOUT, slow)

    @staticmethod
    async def _extend(
        scope: trio.CancelScope, timeout: float, progress: Callable[[], int], ended: trio.Event
    ) -> None:
        """Put the deadline off for as long as there is progress, until the call *ended*."""
        before = progress()
        while not (ended.is_set() or scope.cancel_called):
            with trio.move_on_after(timeout / 2):
                await ended.wait()
            now = progress()
            if now != before:
                before, scope.deadline = now, trio.current_time() + timeout

    async def children(self, directory: Directory) -> dict[bytes, Node]:
        """The entries of *directory*, loaded if they were not."""
        while directory.children is None:
            waiting = self._loading.get(directory.ino)
            if waiting is not None:
                await waiting.wait()
                continue
            event = self._loading[directory.ino] = trio.Event()
            try:
                self._install(directory, await self._listing_of(_place(directory)))
            finally:
                del self._loading[directory.ino]
                event.set()
        return directory.children

    async def count_links(self, directory: Directory) -> None:
        """Find out how many directories are in *directory*, if nobody has. It stays UNCOUNTED where git
        does not tell: its other attributes are known, and who looks into it is told why."""
        if directory.nlink == UNCOUNTED and directory.tree_oid is not None:
            with contextlib.suppress(FSError):  # health has it
                links = await self.ask(self._loader.links, directory.tree_oid, operation="list")
                if directory.nlink == UNCOUNTED:  # not loaded meanwhile
                    directory.nlink = links

    async def _listing_of(self, place: Place) -> Listing:
        """The directory as git has it. Raises FSError.

        A reading that nobody waits for any more goes on, and who asks again gets its result: a directory
        that takes longer than `operation_timeout` can be listed at last, and is read once.
        """
        with trio.move_on_after(self.config.operation_timeout):
            while place in self._reading:  # noqa: ASYNC110  # until a thread takes it out
                await trio.sleep(0.02)
        if place in self._reading:
            raise FSError(errno.ETIMEDOUT, "the directory is still being read; try again")
        late = self._late.pop(place, None)
        if late is not None:
            return late
        found: Listing = await self.ask(self._read, place, operation="list")
        self._late.pop(place, None)
        return found

    def _read(self, place: Place) -> Listing:
        """In a thread."""
        self._reading.add(place)
        try:
            found = self._loader.directory(place)
            while len(self._late) >= _LATE_KEPT:
                self._late.pop(next(iter(self._late)), None)
            self._late[place] = found
            return found
        finally:
            self._reading.discard(place)

    def _load_now(self, directory: Directory) -> dict[bytes, Node]:
        """Load in the calling thread: at start only, before anyone waits for an answer."""
        if directory.children is None:
            self._install(directory, self._loader.directory(_place(directory)))
        assert directory.children is not None
        return directory.children

    def _unloaded(self, top: Directory) -> Iterator[Directory]:
        """Directories at or below *top* that must still be loaded, until none is left."""
        while True:
            found = next((d for d in _directories(top) if d.children is None), None)
            if found is None:
                return
            yield found

    def _install(self, directory: Directory, found: Listing) -> None:
        self.tree.load(directory, found.entries, found.unfit)
        if found.unfit:
            self.tell_unfit(directory)
        self._loaded[directory] = None
        self._account()

    def tell_unfit(self, directory: Directory) -> None:
        """Keep count of entries that cannot be shown: in the log once, and in health from then on."""
        unfit = directory.unfit or {}
        if not unfit:
            self.unfit.pop(directory.ino, None)
            return
        where = shown(self.tree.path(directory)) if directory.parent is not None else "the root directory"
        names = ", ".join(f"{shown(name)} ({reason})" for name, reason in list(unfit.items())[:3])
        more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        text = f"{where} has entries in git that cannot be shown: {names}{more}; they stay in git as they are"
        if self.unfit.get(directory.ino) != text:
            if len(self.unfit) < UNFIT_TOLD or directory.ino in self.unfit:
                self.unfit[directory.ino] = text
            log.warning("%s", text)

    # ---- what it costs

    def _account(self) -> None:
        """Tell the memory tier what the inodes cost; unload directories that nobody uses when it is much."""
        cost = self._cost_of_inodes()
        beside = self.journal.volatile_bytes
        self.memory.reserve(cost + beside)
        if cost > self.memory.limit // 2 and cost > self._swept_at * 1.1:
            self._sweep(self.memory.limit * 2 // 5)
            self._swept_at = self._cost_of_inodes()
            self.memory.reserve(self._swept_at + beside)

    def _cost_of_inodes(self) -> int:
        return len(self.tree.nodes) * NODE_COST + self.tree.attached_bytes

    def _in_git(self, inos: Iterable[int]) -> None:
        """A commit holds these directories: those made here can be unloaded like those that were read."""
        nodes = (self.tree.nodes.get(ino) for ino in inos)
        made = [
            node
            for node in nodes
            if isinstance(node, Directory) and node.children is not None and node not in self._loaded
        ]
        if made:
            self._loaded.update(dict.fromkeys(made))
            self._swept_at = 0  # the last sweep could not touch them
            self._account()

    def _sweep(self, goal: int) -> None:
        """Unload directories, the longest loaded first, until inodes take at most *goal* bytes.

        What only the kernel still knows it is asked to forget: `forget` sweeps again.
        """
        known: list[tuple[int, bytes]] = []
        for directory in list(self._loaded):
            if self._cost_of_inodes() - len(known) * NODE_COST <= goal:
                break
            if self.tree.get(directory.ino) is not directory or directory.children is None:
                del self._loaded[directory]
            elif directory.ino not in self._loading:
                names = self.tree.known_in_kernel(directory)
                if names:
                    known += [(directory.ino, name) for name in names]
                elif names is not None:
                    self.tree.unload(directory)
                    del self._loaded[directory]
        if known and self.prune_in_kernel is not None and not self._pruning:
            self._pruning = True
            self._asked, self._forgotten = len(known), 0
            self.prune_in_kernel(known)

    def forget(self, given_back: Sequence[tuple[int, int]]) -> None:
        """The kernel gives back references: pairs of an inode and how many."""
        for ino, count in given_back:
            node = self.tree.nodes.get(ino)
            if node is not None:
                self.tree.forget(node, count)
        self._forgotten += len(given_back)
        self._sweep_on()

    def pruned(self) -> None:
        """The kernel went through what it was asked to forget; what it gives back may be on its way."""
        self._pruning = False
        self._sweep_on()

    def _sweep_on(self) -> None:
        """Sweep again once most of what the kernel was asked for has come back: nobody else may ever load."""
        if self._asked and not self._pruning and self._forgotten * 2 >= self._asked:
            self._asked = self._swept_at = 0
            self._account()


def shown(path: bytes) -> str:
    """A path for a log: on one line, whatever it holds."""
    text = path.decode("utf-8", "backslashreplace")
    if len(text) > 200:
        text = f"{text[:120]}…{text[-60:]}"
    return text if text.isprintable() and text else ascii(text)


def _clock() -> float:
    """The event loop's clock, so that pauses are as long as those who sleep them; any before it runs."""
    try:
        return trio.current_time()
    except RuntimeError:
        return time.monotonic()


def _place(directory: Directory) -> Place:
    return Place(directory.ino, directory.tree_oid, directory.side_oid, directory.epoch)


def _directories(top: Directory) -> Iterator[Directory]:
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        yield directory
        waiting += [child for child in (directory.children or {}).values() if isinstance(child, Directory)]
