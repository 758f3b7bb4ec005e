"""Named places in daemon and worker at which a process ends, as kill -9 would end it there.

Nothing of this is in the product: a forked daemon is changed before it begins (see forks), and the
worker by the program text that the daemon starts it with. The process ends when the named
function is reached for the n-th time after SIGUSR2, before or after it did its work.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable
from typing import Any

DAEMON = {
    # The places are functions by module and name: what happens there is in their docstrings.
    "a record is appended": ("caiafs.journal:Journal.append_all", "after"),
    "a record is to be appended": ("caiafs.journal:Journal.append_all", "before"),
    "a change is applied": ("caiafs.tree:Tree.apply", "after"),
    "the changes are frozen": ("caiafs.filesystem:Filesystem.freeze", "after"),
    "the batch is captured": ("caiafs.committer.schedule:Committer._freeze", "after"),
    "git has it, nothing is settled": ("caiafs.filesystem:Filesystem.settle", "before"),
    "git has it, nothing is released": ("caiafs.journal:Journal.release", "before"),
    "released, not noted": ("caiafs.journal:Journal.release", "after"),
    "released and noted": ("caiafs.filesystem:Filesystem.release_journal", "after"),
    "a segment is begun": ("caiafs.journal:Journal._begin_segment", "after"),
    "the journal is synced": ("caiafs.journal:Journal.sync", "after"),
}
OFTEN = ("a record is appended", "a record is to be appended", "a change is applied")
WORKER = {
    "the objects are built": ("caiafs.committer.build:Builder.build", "after"),
    "the pack is to be published": ("caiafs.store.pack:PackWriter._publish", "before"),
    "the pack is published": ("caiafs.store.pack:PackWriter.finish", "after"),
    "a ref is locked": ("caiafs.store.refs:Refs._take_lock", "after"),
    "a ref is moved": ("caiafs.store.refs:Refs.swap", "after"),
    "the side ref is moved": ("caiafs.committer.worker:Worker._move_side", "after"),
    "the branch is moved": ("caiafs.committer.worker:Worker._move_branch", "after"),
    "the commit is done": ("caiafs.committer.worker:Worker.do_commit", "after"),
}
RECOVERY = {
    "the journal is opened": ("caiafs.journal:Journal._find_segments", "after"),
    "a record is replayed": ("caiafs.tree:Tree.apply", "after"),
    "the journal is replayed": ("caiafs.filesystem:Filesystem.replay", "after"),
    "the committer is attached": ("caiafs.committer.schedule:Committer.attach", "after"),
    "the branch is reconciled": ("caiafs.committer.schedule:Committer.reconcile", "after"),
    "the kernel is told": ("caiafs.mount:Mount._kernel", "after"),
}


def daemon_ends(moment: str, number: int) -> None:
    """The daemon ends at *moment* when it comes the *number*-th time after SIGUSR2."""
    place, side = {**DAEMON, **RECOVERY}[moment]
    end_at(place, side, number)


def recovery_ends(moment: str, number: int) -> None:
    """The same, counted from the start of the process."""
    daemon_ends(moment, number)
    _ARMED[0] = True


def worker_ends(moment: str, number: int, with_daemon: bool, by: int = signal.SIGKILL) -> None:
    """The first worker of this daemon ends there once it got SIGUSR2, and the daemon too if *with_daemon*;
    or is only stopped, *by* SIGSTOP."""
    from caiafs.committer import process

    place, side = WORKER[moment]
    plain = process._START
    call = f"end_at({place!r}, {side!r}, {number}, {with_daemon}, {int(by)})"
    start = process.WorkerProcess._start

    @functools.wraps(start)
    async def first(self: Any) -> None:
        process._START = (
            f"from support.drill.moments import end_at; {call}; {plain}" if self.starts == 0 else plain
        )
        await start(self)

    process.WorkerProcess._start = first  # type: ignore[method-assign]


_ARMED = [False]


def end_at(place: str, side: str, number: int, with_parent: bool = False, by: int = signal.SIGKILL) -> None:
    """This process ends where *place* ("module:Class.function") begins or ("after") is done."""
    owner, name = _find(place)
    left = [number]

    def reached() -> None:
        if not _ARMED[0]:
            return
        left[0] -= 1
        if left[0] == 0:
            if with_parent:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), by)

    _arm_by_signal()
    setattr(owner, name, _around(getattr(owner, name), side, reached))


def daemon_errs(place: str, side: str) -> None:
    """Once, at the first time after SIGUSR2, what is at *place* raises an error that nobody foresees."""
    owner, name = _find(place)

    def reached() -> None:
        if _ARMED[0]:
            _ARMED[0] = False
            raise RuntimeError("a bug, put here by a test")

    _arm_by_signal()
    setattr(owner, name, _around(getattr(owner, name), side, reached))


def _arm_by_signal() -> None:
    def arm(*_: object) -> None:
        _ARMED[0] = True

    signal.signal(signal.SIGUSR2, arm)


def _find(place: str) -> tuple[Any, str]:
    """The owner and the name of "module:Class.function"."""
    module, _, path = place.partition(":")
    *above, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in above:
        owner = getattr(owner, step)
    return owner, name


def _around(function: Callable[..., Any], side: str, reached: Callable[[], None]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        async def waiting(*args: Any, **kwargs: Any) -> Any:
            if side == "before":
                reached()
            result = await function(*args, **kwargs)
            if side == "after":
                reached()
            return result

        return functools.wraps(function)(waiting)

    def direct(*args: Any, **kwargs: Any) -> Any:
        if side == "before":
            reached()
        result = function(*args, **kwargs)
        if side == "after":
            reached()
        return result

    return functools.wraps(function)(direct)
