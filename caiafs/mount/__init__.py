"""A mount from its start to its end: wires the parts, and keeps the order that loses nothing.

Start: repository, lock, journal, tree as git has it, journal replayed, branch and tree
brought together, kernel, socket. End: no more requests, everything committed, worker,
journal, lock. Called by cli.py, in the foreground or in a daemon of its own.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pwd
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import trio

from .. import __version__, control
from ..committer.pace import Pace
from ..committer.probes import Probes
from ..committer.process import WorkerProcess
from ..committer.schedule import Committer
from ..committer.worker import Place
from ..config import Config
from ..control.mounts import hand_over, is_automounted, note_helper
from ..errors import (
    BranchLocked,
    CaiafsError,
    MountError,
    ObjectCorrupt,
    RepositoryMissing,
    StoreError,
    UsageError,
)
from ..filesystem import Filesystem
from ..filesystem.loader import Loader, SideState, epoch_of, read_side
from ..journal import Journal
from ..memory import MemoryTier
from ..metrics import Metrics
from ..operations import Operations
from ..records import NO_OID
from ..records.side import side_ref
from ..store import Store, storable_entry
from ..tree import Tree
from ..virtual import Virtual
from . import daemonize, garbage, kernel, loop, preflight
from .commands import Commands
from .logs import set_level
from .notify import Notifier
from .reload import Change, compare
from .report import Report
from .service import feed_watchdog, patience, report_status

if TYPE_CHECKING:
    from ..control.http.process import HttpServer

log = logging.getLogger(__name__)

MAX_TASKS = 64
"""Requests served at once; the kernel queues more."""
AUTOMOUNT_PATIENCE = 10.0
"""Seconds that the kernel gets to hand over what it holds where an automounter may be in the way."""
PINNED_AFTER = 1.0
"""Seconds that the kernel gets to end an unmounted mount by itself."""
LOCK_PATIENCE = 3.0
"""Seconds for the worker of a daemon that was killed to be gone too."""


Step = tuple[int, int, str]
"""How much is done, of how much (0: nobody knows), and what."""
Watch = Callable[[Callable[[], Step]], contextlib.AbstractContextManager[None]]


def run(
    config: Config,
    ready: Callable[[], None],
    notifier: Notifier | None = None,
    watch: Watch = contextlib.nullcontext,  # type: ignore[assignment] # which takes anything
) -> int:
    """Mount and serve until unmounted; *ready* is called once the mount answers.

    Returns the exit code. Raises CaiafsError, with nothing mounted, if the mount cannot start.
    *notifier* speaks to the service manager that started us, *watch* shows a person how far the
    recovery is: it is entered with what tells that, and may ask from another thread.
    """
    notifier = notifier or Notifier({})
    try:
        return _run(config, ready, notifier, watch)
    except CaiafsError as error:
        notifier.failed(str(error), error.errno)
        raise


def _run(config: Config, ready: Callable[[], None], notifier: Notifier, watch: Watch) -> int:
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
            with _or_no_mount():
                mount = Mount(config, store, branch, state_dir, tuple(lock.fds), notifier)
            try:
                with _or_no_mount(), patience(notifier, mount.progress), watch(mount.recovery):
                    mount.attach()
                trio.run(mount.serve, ready)
            except BaseException as error:
                if isinstance(error, BaseExceptionGroup) and not mount.fs.broken:
                    raise _cause(error) from error
                if not mount.fs.broken:
                    raise
                log.critical("internal error: ended without a commit; the next mount recovers", exc_info=True)
                mount.exit_code = 1
            finally:
                mount.close()
            return mount.exit_code


@contextlib.contextmanager
def _or_no_mount() -> Iterator[None]:
    """Whatever fails in here, there is no mount: that is what the exit code says."""
    try:
        yield
    except CaiafsError as error:
        error.exit_code = MountError.exit_code
        raise


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What is to be told of a mount that failed: the one error in the group, if that is all."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner if isinstance(inner, CaiafsError) else group


def _open_store(config: Config) -> Store:
    try:
        return Store.open(config.repo)
    except RepositoryMissing:
        if not config.init:
            raise
    return Store.create(config.repo, os.fsencode(config.branch or "main"))


def _warn_of_an_unborn_branch(config: Config, branch: bytes, others: list[bytes]) -> None:
    # Such as a bare clone or backup, made with another name for the first branch than its content has.
    if others:
        names = ", ".join(os.fsdecode(name) for name in others[:5]) + (", …" if len(others) > 5 else "")
        log.warning(
            "HEAD of %s names the branch %s, which has no commit: the mount begins empty. The repository has "
            "%s: mount one of them with -o branch=NAME",
            config.repo, os.fsdecode(branch), names,
        )  # fmt: skip


def _choose_branch(config: Config, store: Store) -> bytes:
    """The branch to mount. Refuses one that a work tree has checked out: its files would not follow."""
    branch = os.fsencode(config.branch) if config.branch else store.head_branch()
    if branch is None:
        raise MountError(
            f"{config.repo}: HEAD names no branch (it is detached); name one with -o branch=NAME"
        )
    if config.branch is None and store.read_ref(b"refs/heads/" + branch) is None:
        _warn_of_an_unborn_branch(config, branch, store.branches())
    place = store.checked_out_at(branch)
    if place is not None and not config.ro:
        name = os.fsdecode(branch)
        raise MountError(
            f"branch {name} is checked out in the work tree {place}, which would not see what the mount "
            f"commits; mount another branch (-o branch=NAME, a new name is begun where HEAD is), switch the "
            f"work tree (git -C {place} switch --detach), or mount read-only (-o ro)"
        )
    if not config.ro:
        _refuse_impossible(store, branch)
    return branch


def _refuse_impossible(store: Store, branch: bytes) -> None:
    """A branch that git cannot hold beside another would keep everything in the journal, for ever."""
    name = os.fsdecode(branch)
    other = store.ref_in_the_way(b"refs/heads/" + branch)
    if other is not None:
        shown = os.fsdecode(other.removeprefix(b"refs/heads/"))
        raise MountError(
            f"git cannot hold the branch {name} beside the branch {shown}: mount another one (-o branch=NAME)"
        )
    other = store.ref_in_the_way(side_ref(branch))
    if other is not None:
        command = ["git", "-C", store.git_dir, "update-ref", "-d", os.fsdecode(other)]
        raise MountError(
            f"{os.fsdecode(other)} is in the way of the branch {name}: it keeps the attributes of a branch "
            f"that was mounted once and is gone. Mount another one (-o branch=NAME), or, if that branch is "
            f"not wanted back, `{shlex.join(command)}`"
        )


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
        self, config: Config, store: Store, branch: bytes, state_dir: str, lock_fds: tuple[int, ...],
        notifier: Notifier,
    ) -> None:  # fmt: skip
        self.config = config
        self._lock_fds = lock_fds
        self.notifier = notifier
        self.born_read_only = config.ro
        """Nothing can be kept: neither journal nor committer were made for it."""
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
        self.pace = Pace()
        self.worker = WorkerProcess(
            place,
            self._tip_seen,
            lock_fds,
            self.fs.health.policy,
            lambda seconds: self.committer.silent(seconds),
            self.pace,
        )
        self.committer = Committer(
            self.fs,
            self.worker,
            config,
            self.metrics,
            identity(config, store),
            self._invalidate,
            self.flush_kernel,
            self.pace,
        )
        self.probes = Probes(self.fs, self.committer)
        self.report = Report(config, branch, self._state_dir_now, self.fs, self.committer, self.metrics)
        self._mounted = False
        self._device: str | None = None
        self._reload_trouble = ""
        self.leaving = trio.Event()
        self._taken_away = False
        self._automounted = False
        self._on_terminal = os.isatty(2)
        self.http = self._http_server()

    def _http_server(self) -> HttpServer | None:
        if self.config.http is None:
            return None
        from ..control.http.process import HttpServer, Sources

        report, metrics = self.report, self.metrics
        sources = Sources(report.health, report.stats, report.config, metrics.snapshot, metrics.clear)
        server = HttpServer(self.config, self.state_dir, self.store.git_dir, self.ref, sources)
        self.report.http = server
        return server

    def close(self) -> None:
        """Let go of everything; nothing is written any more."""
        if self.http is not None:
            self.http.close()
        self.worker.stop()
        self.fs.contents.close()
        self.journal.close()

    # ---- start

    def attach(self) -> None:
        """Show what git has, then what the journal has beyond it. Takes as long as the journal is large."""
        uid, gid = os.getuid(), os.getgid()
        store = self.store
        tip = store.read_ref(self.ref)
        side = self._read_side()
        head = side.commit if side is not None else tip
        if side is None and tip is None and not self.config.init:
            head = self._starting_point()
        commit = store.commit(head) if head is not None else None
        epoch = epoch_of(commit) if commit is not None else time.time_ns()
        self.fs.attach(commit.tree if commit is not None else None, epoch, side, uid, gid)
        position = (
            side.position if side is not None and side.is_about(self.journal.id) else self.journal.begin
        )
        last = self.fs.replay(position)
        landed = None if side is not None else tip
        if last is not None and last.commit == (head or NO_OID):
            landed = None if last.landed == NO_OID else last.landed
        self.committer.attach(head, side.oid if side is not None else None, landed, tip)
        if self.fs.replayed:
            fields = {"event": "replayed", "records": self.fs.replayed}
            log.info("replayed %d records of the journal", self.fs.replayed, extra={"fields": fields})
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
        self.fs.begin()
        async with trio.open_nursery() as background:
            background.start_soon(feed_watchdog, self.notifier)
            await background.start(self.worker.run)
            if self.http is not None:
                await background.start(self.http.run)
            if not self.config.ro:
                with patience(self.notifier, self.progress):
                    await self._reconcile()
            started = trio.Event()
            operations = self._kernel(started)
            self.report.operations = operations
            try:
                await self._serve_mounted(started, ready)
            finally:
                self._mounted = False
                # libfuse leaves it be where the kernel has let go already. A mount that only others still
                # have a copy of is not ours to touch; of one that we took away it would complain.
                pyfuse3.close(unmount=not (self.leaving.is_set() or self._taken_away))
                self.notifier.stopping(f"unmounted, {self.report.status_line()}")
                with patience(self.notifier, self.progress), trio.CancelScope(shield=True):
                    await self._drain()
                background.cancel_scope.cancel()

    async def _serve_mounted(self, started: trio.Event, ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            if not self.config.ro:
                nursery.start_soon(self.committer.run)
                nursery.start_soon(self.probes.run)
            nursery.start_soon(self._announce, started, ready)
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._leave_when_closed)
            garbage.stay_short()
            with loop.installed(self.config.spin) as waiting:
                self.pace.is_asked = waiting.is_asked
                await pyfuse3.main(min_tasks=4, max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()

    def _state_dir_now(self) -> str:
        """Where the state directory is: somebody may have moved the repository, and it went along."""
        if not self._lock_fds:
            return self.state_dir
        return os.path.dirname(os.readlink(f"/proc/self/fd/{self._lock_fds[0]}"))

    async def _reconcile(self) -> None:
        try:
            await self.committer.reconcile()
        except CaiafsError as error:
            log.warning("the branch could not be brought up to date, will be tried again: %s", error)

    def _kernel(self, started: trio.Event) -> Operations:
        virtual = Virtual(self.report.files(), visible=self.config.virtual == "visible")
        operations = Operations(
            self.fs, virtual, self.metrics, started.set, self.store.git_dir, self._state_dir_now
        )
        self.fs.prune_in_kernel = self._prune_later
        if not self.config.ro:
            self.fs.write_through = self.committer.reach
            self.fs.forget_in_kernel = self._forget_later
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
        self._device = await trio.to_thread.run_sync(kernel.device_of, self.config.mountpoint)
        self.worker.mounted = self._device, self.config.mountpoint
        await trio.to_thread.run_sync(kernel.read_ahead, self._device)
        await trio.to_thread.run_sync(note_helper, self.config.mountpoint)
        self._automounted = is_automounted(self.config.mountpoint)
        fields = {"event": "mounted", "branch": os.fsdecode(self.branch), "state_dir": self.state_dir}
        log.info("%s is mounted on %s", self.config.source, self.config.mountpoint, extra={"fields": fields})
        ready()
        self._on_terminal = os.isatty(2)  # a daemon has left it by now
        self.notifier.ready(self.report.status_line())
        await report_status(self.notifier, self)

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGHUP: read the settings again, or end with the terminal that goes away. SIGTERM and SIGINT:
        commit what there is, then unmount; a second one unmounts at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                task_status.started()
                stopping = False
                async for number in signals:
                    if number == signal.SIGHUP and not self._on_terminal:
                        with contextlib.suppress(CaiafsError):  # it is in the log, and in the status
                            self.reload()
                        continue
                    if number == signal.SIGHUP:
                        daemonize.forget_terminal()
                    if stopping:
                        pyfuse3.terminate()
                    else:
                        stopping = True
                        nursery.start_soon(self._stop)

    async def _stop(self) -> None:
        self.committer.stopping = True
        self.notifier.stopping(f"stopping, {self.report.status_line()}")
        log.info("stopping: %s", self.report.status_line(), extra={"fields": {"event": "stopping"}})
        with patience(self.notifier, self.progress):
            await self.flush_kernel()
            if not self.born_read_only:
                try:
                    # Once: who goes on writing must not keep us from leaving. The rest follows, unmounted.
                    await self.committer.commit()
                except CaiafsError as error:
                    log.warning("%s", error)
            place = self.place() or self.config.mountpoint
            try:
                released = await trio.to_thread.run_sync(kernel.let_go, place)
            except OSError as error:
                log.warning("%s could not be unmounted in peace: %s", self.config.mountpoint, error.strerror)
                released = False
            else:
                self._taken_away = True
                if not released:
                    log.warning(
                        "programs still use %s: what they had written is kept, what comes after is not",
                        self.config.mountpoint,
                    )
        if released:
            await trio.sleep(PINNED_AFTER)  # by then it has ended, unless another namespace has a copy
        pyfuse3.terminate()

    # ---- what a service manager is told

    def status_line(self) -> str:
        """Health and what git does not have, in a few words."""
        return "; ".join(filter(None, (self.report.status_line(), self._reload_trouble)))

    def is_quiet(self) -> bool:
        """Nothing is on its way into git, and nothing is wrong."""
        return self.report.is_quiet()

    async def stirred(self) -> None:
        """A change was made, or a tier's health changed."""
        self.probes.noticed = trio.Event()
        async with trio.open_nursery() as nursery:

            async def first(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, self.fs.changed)
            nursery.start_soon(first, self.probes.noticed)

    def recovery(self) -> Step:
        """How far the journal is replayed, in MiB."""
        begin, end = self.journal.begin, self.journal.end
        done = max(self.fs.replayed_to - begin, 0)
        return done >> 20, (end - begin) >> 20, "replaying the journal, MiB"

    def progress(self) -> tuple[int, ...]:
        """Figures that stand still when nothing gets on. For other threads, too."""
        fs = self.fs
        return fs.replayed, fs.journal.appended, fs.tree.changes, self.worker.signs, self.committer.commits

    # ---- other settings, while it serves

    def reload(self, wanted: Config | None = None) -> Change:
        """Read the settings again (or take *wanted*) and obey what can change in a running mount.

        Raises UsageError for settings that do not hold; then all stays as it was.
        """
        self.notifier.reloading()
        try:
            if wanted is None:
                wanted = self.config.given.gather() if self.config.given is not None else self.config
            # Closed or not is for `mount -o remount` to say.
            change = compare(self.config.with_(ro=self.born_read_only), wanted)
            self._reconfigure(change.config.with_(ro=self.config.ro))
            self._reload_trouble = ""
        except UsageError as error:
            self._reload_trouble = f"not reloaded: {error}"
            log.error("not reloaded, the settings stay as they are: %s", error)
            raise
        finally:
            self.notifier.ready(self.status_line())
        fields = {"event": "reloaded", "changed": " ".join(change.changed), "kept": " ".join(change.kept)}
        log.log(
            logging.WARNING if change.kept else logging.INFO,
            "%s",
            change.describe(),
            extra={"fields": fields},
        )
        return change

    def _reconfigure(self, config: Config) -> None:
        set_level(config.log_level)
        self.config = config
        self.report.reconfigure(config)
        self.memory.resize(config.memory)
        self.fs.reconfigure(config.with_(ro=self.born_read_only))  # `closed` says the rest
        self.worker.policy = self.fs.health.policy
        self.committer.reconfigure(config, identity(config, self.store))

    async def close_to_writers(self, closed: bool) -> None:
        """Obey `mount -o remount,ro` or `rw`. Closing commits what there is. Raises CaiafsError."""
        if self.born_read_only and not closed:
            raise MountError(
                f"{self.config.mountpoint} was mounted read-only, and keeps no journal: to write to it, "
                f"unmount it and mount it again"
            )
        if closed == self.config.ro:
            return
        self.fs.closed = closed
        self.config = self.config.with_(ro=closed)
        self.report.reconfigure(self.config)
        if closed:
            await self.committer.drain()
        fields = {"event": "remounted", "ro": closed}
        said = "read-only" if closed else "open to writers"
        log.info("%s is %s now", self.config.mountpoint, said, extra={"fields": fields})
        self.notifier.status(self.status_line())

    async def _drain(self) -> None:
        """The mount is gone: what the journal still holds goes into git, if git takes it."""
        self.committer.stopping = True
        if self.born_read_only:
            return
        if self.fs.broken:
            return
        try:
            await self.committer.drain()
        except CaiafsError as error:
            log.warning("%s; the next mount commits it", error)
            self.exit_code = 1

    # ---- what others ask for

    def _tip_seen(self, tip: bytes | None) -> None:
        self.committer.tip_seen(tip)

    async def _invalidate(self, names: list[tuple[int, bytes]]) -> None:
        """Make the kernel forget *names*. In a thread: it may wait for requests that we serve."""
        if self._mounted and names:
            await trio.to_thread.run_sync(kernel.forget, names)

    def _forget_later(self, names: list[tuple[int, bytes]], inodes: set[int]) -> None:
        """Changes were undone: the kernel is to ask again. Not waited for: it may hold what the call that
        failed holds."""
        if self._mounted:
            trio.lowlevel.spawn_system_task(self._forget, names, inodes)

    @staticmethod
    async def _forget(names: list[tuple[int, bytes]], inodes: set[int]) -> None:
        await trio.to_thread.run_sync(kernel.forget, names, inodes, abandon_on_cancel=True)

    def place(self) -> str | None:
        """Where the mount is now, in the mount namespace of this process; None: nowhere."""
        if self._device is None:
            return self.config.mountpoint
        return kernel.place_of(self._device, self.config.mountpoint)

    def _prune_later(self, names: list[tuple[int, bytes]]) -> None:
        """Inodes take more memory than they may: the kernel is to let go of these."""
        trio.lowlevel.spawn_system_task(self._prune, names)

    async def _prune(self, names: list[tuple[int, bytes]]) -> None:
        try:
            prune = partial(kernel.prune, names, lambda: self._mounted)
            await trio.to_thread.run_sync(prune, abandon_on_cancel=True)
        finally:
            self.fs.pruned()

    async def flush_kernel(self) -> None:
        """Let the kernel hand over what it holds in its write-back cache."""
        operations = self.report.operations
        if not self._mounted or operations is None or not operations.kernel_holds():
            return
        operations.handing_over()
        place = self.place()
        if place is None:
            return  # no name leads there any more; who still has files open hands over by closing them
        # While an automounter ends an idle mount, whoever goes there has to wait for that end: for ours.
        limit = AUTOMOUNT_PATIENCE if self._automounted else math.inf
        try:
            with trio.fail_after(limit):
                await trio.to_thread.run_sync(hand_over, place, abandon_on_cancel=True)
        except trio.TooSlowError:
            log.warning("the kernel did not hand over all it holds within %g s", limit)
        except OSError as error:
            # Also raised for a write-back that failed earlier, whose program was told then.
            log.warning("the kernel could not hand over everything it holds: %s", error)

    async def _listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await control.serve(self.state_dir, Commands(self).handlers(), task_status=task_status)

    async def _leave_when_closed(self) -> None:
        await self.leaving.wait()
        # Rare, and soon over: not worth an event for every release.
        while self.open_handles():  # noqa: ASYNC110
            await trio.sleep(0.2)
        pyfuse3.terminate()

    def open_handles(self) -> int:
        """How many files and directories programs have open."""
        operations = self.report.operations
        return 0 if operations is None else int(operations.statistics()["open_handles"])


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


def _escaped(source: str) -> str:
    """A source name as libfuse's option parser takes it; in octal what pyfuse3 does not: all beyond ASCII."""
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    return "".join(chr(byte) if byte < 128 else f"\\{byte:03o}" for byte in os.fsencode(escaped))
