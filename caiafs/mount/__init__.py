"""A mount from its start to its end: wires the parts, and keeps the order that loses nothing.

Start: repository, lock, journal, tree as git has it, journal replayed, branch and tree
brought together, kernel, socket. End: no more requests, everything committed, worker,
journal, lock. Called by cli.py, in the foreground or in a daemon of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import pwd
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyfuse3
import trio

from .. import __version__, control
from ..committer.process import WorkerProcess
from ..committer.schedule import Committer
from ..committer.worker import Place
from ..config import Config
from ..errors import (
    BranchLocked,
    CaiafsError,
    FSError,
    MountError,
    ObjectCorrupt,
    RepositoryMissing,
    StoreError,
    UsageError,
)
from ..filesystem import Filesystem
from ..filesystem.loader import Loader, SideState, read_side
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..operations import Operations
from ..records import NO_OID
from ..records.side import side_ref
from ..store import Store, storable_entry
from ..tree import Tree
from ..virtual import Virtual
from . import loop, preflight
from .report import Report

log = logging.getLogger(__name__)

MAX_TASKS = 64
"""Requests served at once; the kernel queues more."""
LOCK_PATIENCE = 3.0
"""Seconds for the worker of a daemon that was killed to be gone too."""


def run(config: Config, ready: Callable[[], None]) -> int:
    """Mount and serve until unmounted; *ready* is called once the mount answers.

    Returns the exit code. Raises CaiafsError, with nothing mounted, if the mount cannot start.
    """
    preflight.check(config)
    try:
        store = _open_store(config)
    except StoreError as error:
        if error.exit_code == MountError.exit_code:
            raise
        raise MountError(str(error)) from error
    with contextlib.closing(store):
        branch = _choose_branch(config, store)
        preflight.check(config, store.git_dir)
        state_dir = preflight.state_directory(config, store.git_dir, branch)
        with _lock(config, store, branch) as lock:
            mount = Mount(config, store, branch, state_dir, tuple(lock.fds))
            try:
                trio.run(mount.serve, ready)
            finally:
                mount.close()
            return mount.exit_code


def _open_store(config: Config) -> Store:
    try:
        return Store.open(config.repo)
    except RepositoryMissing:
        if not config.init:
            raise
    return Store.create(config.repo, os.fsencode(config.branch or "main"))


def _choose_branch(config: Config, store: Store) -> bytes:
    """The branch to mount. Refuses one that a work tree has checked out: its files would not follow."""
    branch = os.fsencode(config.branch) if config.branch else store.head_branch()
    if branch is None:
        raise MountError(
            f"{config.repo}: HEAD names no branch (it is detached); name one with -o branch=NAME"
        )
    place = store.checked_out_at(branch)
    if place is not None and not config.ro:
        name = os.fsdecode(branch)
        raise MountError(
            f"branch {name} is checked out in the work tree {place}, which would not see what the mount "
            f"commits; mount another branch (-o branch=NAME, a new name is begun where HEAD is), switch the "
            f"work tree (git -C {place} switch --detach), or mount read-only (-o ro)"
        )
    return branch


def _lock(config: Config, store: Store, branch: bytes) -> preflight.Lock:
    """The branch's lock; a dead daemon's worker, which holds it too, is given time to end."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return preflight.lock_branch(config, store.git_dir, branch)
        except BranchLocked:
            holder = preflight.read_lock(preflight.state_directory(config, store.git_dir, branch))
            pid = holder.get("pid") if holder else None
            if time.monotonic() > deadline or (isinstance(pid, int) and os.path.exists(f"/proc/{pid}")):
                raise
            time.sleep(0.05)


class Mount:
    """The parts of one mount."""

    def __init__(
        self, config: Config, store: Store, branch: bytes, state_dir: str, lock_fds: tuple[int, ...]
    ) -> None:
        self.config = config
        self.store = store
        self.branch = branch
        self.state_dir = state_dir
        self.exit_code = 0
        self.ref = b"refs/heads/" + branch
        self.metrics = Metrics({"version": __version__, "pyfuse3": pyfuse3.__version__})
        self.memory = MemoryTier(config.memory)
        self.journal = Journal(state_dir, read_only=config.ro)
        self.tree = Tree(storable_entry, self.memory)
        uid, gid = os.getuid(), os.getgid()
        self.fs = Filesystem(
            config,
            self.tree,
            self.memory,
            self.journal,
            store,
            Loader(store, uid, gid),
            self.metrics,
            state_dir,
        )
        place = Place(store.git_dir, state_dir, self.ref, side_ref(branch), self.journal.id, watch=True)
        self.worker = WorkerProcess(place, self._tip_seen, lock_fds)
        self.committer = Committer(
            self.fs,
            self.worker,
            config,
            self.metrics,
            identity(config, store),
            self._invalidate,
            self._flush_kernel,
        )
        self.report = Report(config, branch, state_dir, self.fs, self.committer, self.metrics)
        self._mounted = False
        self._attach(uid, gid)

    def close(self) -> None:
        """Let go of everything; nothing is written any more."""
        self.worker.stop()
        self.fs.contents.close()
        self.journal.close()

    # ---- start

    def _attach(self, uid: int, gid: int) -> None:
        """Show what git has, then what the journal has beyond it."""
        store = self.store
        tip = store.read_ref(self.ref)
        side = self._read_side()
        head = side.commit if side is not None else tip
        if side is None and tip is None and not self.config.init:
            head = self._starting_point()
        commit = store.commit(head) if head is not None else None
        epoch = commit.time * 10**9 if commit is not None else time.time_ns()
        self.fs.attach(commit.tree if commit is not None else None, epoch, side, uid, gid)
        position = (
            side.position if side is not None and side.journal == self.journal.id else self.journal.begin
        )
        last = self.fs.replay(position)
        landed = None if side is not None else tip
        if last is not None and last.commit == (head or NO_OID):
            landed = None if last.landed == NO_OID else last.landed
        self.committer.attach(head, side.oid if side is not None else None, landed, tip)
        if self.fs.replayed:
            log.info("replayed %d records of the journal", self.fs.replayed)
        for path in self.journal.set_aside:
            log.warning("the journal's end was cut off after a crash; what looked whole is in %s", path)

    def _read_side(self) -> SideState | None:
        oid = self.store.read_ref(side_ref(self.branch))
        if oid is None:
            return None
        try:
            return read_side(self.store, oid)
        except ObjectCorrupt as error:
            raise ObjectCorrupt(
                f"{error}; `caiafs check --repair` sets it aside, then the tree mounts without its metadata"
            ) from error

    def _starting_point(self) -> bytes | None:
        """A new branch in a repository with history begins where HEAD is, as `git switch -c` does."""
        current = self.store.head_branch()
        if current is None or current == self.branch:
            return None
        return self.store.read_ref(b"refs/heads/" + current)

    # ---- serving

    async def serve(self, ready: Callable[[], None]) -> None:
        """Reconcile, mount, answer, drain."""
        async with trio.open_nursery() as background:
            await background.start(self.worker.run)
            if not self.config.ro:
                await self._reconcile()
            started = trio.Event()
            operations = self._kernel(started)
            self.report.operations = operations
            try:
                await self._serve_mounted(started, ready)
            finally:
                self._mounted = False
                pyfuse3.close(unmount=True)  # libfuse leaves it be where the kernel has let go already
                notify(b"STOPPING=1")
                with trio.CancelScope(shield=True):
                    await self._drain()
                background.cancel_scope.cancel()

    async def _serve_mounted(self, started: trio.Event, ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            if not self.config.ro:
                nursery.start_soon(self.committer.run)
            nursery.start_soon(self._announce, started, ready)
            nursery.start_soon(self._obey_signals)
            with loop.installed(self.config.spin):
                await pyfuse3.main(min_tasks=4, max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _reconcile(self) -> None:
        try:
            await self.committer.reconcile()
        except CaiafsError as error:
            log.warning("the branch could not be brought up to date, will be tried again: %s", error)

    def _kernel(self, started: trio.Event) -> Operations:
        virtual = Virtual(self.report.files(), visible=self.config.virtual == "visible")
        operations = Operations(self.fs, virtual, self.metrics, started.set, self.store.git_dir)
        if self.config.primary == "git":
            self.fs.write_through = self._write_through
        options = {
            "default_permissions", "fsname=" + _escaped(self.config.source), "subtype=caiafs",
            *self.config.kernel_options,
        }  # fmt: skip
        if self.config.allow_other:
            options.add("allow_other")
        if self.config.ro:
            options.add("ro")
        try:
            pyfuse3.init(operations, self.config.mountpoint, options)
        except RuntimeError as error:
            raise MountError(
                f"{self.config.mountpoint}: the kernel refused the mount ({error}); "
                "`caiafs doctor` says what is missing"
            ) from error
        self._mounted = True
        return operations

    async def _announce(self, started: trio.Event, ready: Callable[[], None]) -> None:
        await started.wait()
        await trio.to_thread.run_sync(os.stat, self.config.mountpoint)
        log.info("%s is mounted on %s", self.config.source, self.config.mountpoint)
        ready()
        notify(b"READY=1")

    async def _obey_signals(self) -> None:
        """SIGTERM and SIGINT: commit what there is, then unmount. A second one unmounts at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                count = 0
                async for _ in signals:
                    count += 1
                    notify(b"STOPPING=1")
                    if count == 1:
                        nursery.start_soon(self._stop)
                    else:
                        pyfuse3.terminate()

    async def _stop(self) -> None:
        self.committer.stopping = True
        await self._flush_kernel()
        try:
            await self.committer.drain()
        except CaiafsError as error:
            log.warning("%s", error)
        pyfuse3.terminate()

    async def _drain(self) -> None:
        """The mount is gone: what the journal still holds goes into git, if git takes it."""
        self.committer.stopping = True
        if self.config.ro:
            return
        try:
            await self.committer.drain()
        except CaiafsError as error:
            log.warning("%s; the next mount commits it", error)
            self.exit_code = 1

    async def _write_through(self) -> None:
        try:
            with trio.fail_after(self.config.operation_timeout):
                await self.committer.commit(tries=1)
        except (CaiafsError, trio.TooSlowError) as error:
            if not self.config.enable_fallback:
                code = errno.ETIMEDOUT if isinstance(error, trio.TooSlowError) else error.errno
                raise FSError(
                    code, f"git did not take the change, and there is no fallback: {error}"
                ) from error
            # The change is in memory and in the journal: that is the tier to fall back to.
            self.metrics.fallback("git", "memory")
            log.warning("acknowledged from the journal, since git did not take it: %s", error or "too slow")

    # ---- what others ask for

    def _tip_seen(self, tip: bytes | None) -> None:
        self.committer.tip_seen(tip)

    async def _invalidate(self, names: list[tuple[int, bytes]]) -> None:
        """Make the kernel forget *names*. In a thread: it may wait for requests that we serve."""
        if self._mounted and names:
            await trio.to_thread.run_sync(_invalidate_all, names)

    async def _flush_kernel(self) -> None:
        """Let the kernel hand over what it holds in its write-back cache."""
        if not self._mounted:
            return
        try:
            await trio.to_thread.run_sync(_syncfs, self.config.mountpoint)
        except OSError as error:
            # Also raised for a write-back that failed earlier, whose program was told then.
            log.warning("the kernel could not hand over everything it holds: %s", error)

    async def _listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        handlers = {
            "commit": self._do_commit,
            "sync": self._do_sync,
            "status": self._do_status,
            "drain": self._do_drain,
        }
        await control.serve(self.state_dir, handlers, task_status=task_status)

    async def _do_commit(self, arguments: dict[str, Any], progress: Callable[[int, int, str], None]) -> Any:
        self._refuse_read_only()
        await self._flush_kernel()
        outcome = await self.committer.commit(_message(arguments.get("message")))
        return {"commit": outcome.commit.hex() if outcome.commit else None, "changes": outcome.changes}

    async def _do_sync(self, arguments: dict[str, Any], progress: Callable[[int, int, str], None]) -> Any:
        await self._flush_kernel()
        return {"position": await self.fs.sync()}

    async def _do_status(self, arguments: dict[str, Any], progress: Callable[[int, int, str], None]) -> Any:
        return self.report.status()

    async def _do_drain(self, arguments: dict[str, Any], progress: Callable[[int, int, str], None]) -> Any:
        if not self.config.ro:
            await self._flush_kernel()
            await self.committer.drain()
        head = self.committer.head
        return {"commit": head.hex() if head else None}

    def _refuse_read_only(self) -> None:
        if self.config.ro:
            raise StoreError(f"{self.config.mountpoint} is mounted read-only: there is nothing to commit")


def _message(given: object) -> str | None:
    """A commit message somebody asked for; None if there is nothing in it."""
    if given is None:
        return None
    text = str(given)
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UsageError("the message must be valid text, without NUL bytes")
    return text if text.strip() else None


def identity(config: Config, store: Store) -> bytes:
    """Who commits: `author`, else git's own user.name and user.email, else user@host."""
    if config.author:
        return os.fsencode(config.author)
    configured = store.configured_identity()
    if configured is not None:
        return configured
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name} <{name}@{socket.gethostname()}>".encode("utf-8", "surrogateescape")


def notify(message: bytes) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message, address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", message.decode(), error)


def _invalidate_all(names: list[tuple[int, bytes]]) -> None:
    for parent, name in names:
        for invalidate in (
            partial(pyfuse3.invalidate_entry, pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)),
            partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(parent), attr_only=True),
        ):
            try:
                invalidate()
            except OSError as error:
                if error.errno != errno.ENOENT:  # the kernel never knew it, or forgot it
                    log.warning("the kernel could not be told that %r changed: %s", name, error)


def _syncfs(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def _escaped(source: str) -> str:
    """A source name as libfuse's option parser takes it."""
    return source.replace("\\", "\\\\").replace(",", "\\,")
