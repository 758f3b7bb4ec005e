"""Acting as another user.

Root lowers its ids for a while, so that a check of permissions costs two system calls and no
process. The kernel drops the effective capabilities with the effective uid and gives them back
with it, so what happens in between is judged as for any ordinary user.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest

_CLONE_NEWNS = 0x20000
ALICE = 65534
BOB = 65533
CAROL = 65532


def is_root() -> bool:
    return os.geteuid() == 0


def need_root() -> None:
    if not is_root():
        pytest.skip("needs root")


@contextmanager
def acting_as(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Runs the body as *uid* with the group *gid* (the same number unless given) and *groups*."""
    need_root()
    gid = uid if gid is None else gid
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before)


def words_as_nobody() -> list[str]:
    """Words that run a program as an ordinary user.

    Where this Python lies behind a directory that only root may search, the user gets the one
    capability that lets it read there. fusermount3, being set-uid, does not inherit it.
    """
    words = ["setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups"]
    # The first program still starts with the rights of setpriv itself; its child shows what is left.
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'], check=True)"
    done = subprocess.run([*words, sys.executable, "-c", again], cwd="/", capture_output=True, check=False)
    if done.returncode == 0:
        return words
    return [*words, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def in_child(work: Callable[[], object]) -> int:
    """Forks a child that runs *work*; gives its pid. The child exits 0, or 1 after a traceback."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def own_namespace() -> None:
    """From here on the mounts of this process are its own and end with it. For children, of root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def together(count: int, work: Callable[[int], object]) -> None:
    """Runs *work* in so many children at once, each with its number from 0, and waits for them."""
    join(*[in_child(partial(work, number)) for number in range(count)])


def as_user(uid: int, work: Callable[[], object]) -> None:
    """Runs *work* in a child that is this user with every id, as a mount for one user asks."""

    def inside() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        work()

    need_root()
    join(in_child(inside))


def join(*pids: int) -> None:
    """Waits for children of in_child and fails if one of them failed."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert not any(codes), f"children exited with {codes}"
