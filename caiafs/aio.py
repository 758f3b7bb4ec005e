"""Flushes by the kernel's asynchronous I/O (io_submit(2)): one that nobody waits for, or several at once.

A `Flusher` starts an fdatasync(2), and an event descriptor turns readable when it is done. A thread that
calls fdatasync(2) fights with the event loop for the interpreter's lock before and after every call, which
cost more than the flush itself. A `Syncer` waits for the fsync(2) of several files, which the filesystem
then mostly keeps with one commit of its own journal. Weighed and not chosen: io_uring, which containers and
hardened kernels switch off.

Python does not offer these calls, so they are made by number, for the machines whose numbers are known.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import threading
from collections.abc import Sequence

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit: arch/x86/entry/syscalls, asm-generic/unistd.h."""
_FSYNC, _FDSYNC = 2, 3  # linux/aio_abi.h: IOCB_CMD_FSYNC, IOCB_CMD_FDSYNC
_NOTIFY = 1  # linux/aio_abi.h: IOCB_FLAG_RESFD


class _Order(ctypes.Structure):
    """struct iocb of linux/aio_abi.h, little endian."""

    _fields_ = (
        ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_uint32),
        ("operation", ctypes.c_uint16), ("priority", ctypes.c_int16), ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64), ("length", ctypes.c_uint64), ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("notified", ctypes.c_uint32),
    )  # fmt: skip


class _Outcome(ctypes.Structure):
    """struct io_event of linux/aio_abi.h."""

    _fields_ = (
        ("data", ctypes.c_uint64), ("order", ctypes.c_uint64),
        ("result", ctypes.c_int64), ("result2", ctypes.c_int64),
    )  # fmt: skip


class _Queue:
    """A context for orders, io_setup(2). OSError where there is no such thing."""

    def __init__(self, room: int) -> None:
        self._context = ctypes.c_ulong(0)
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "the numbers of this machine's system calls are not known")
        setup, self._destroy, self._getevents, self._submit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._call(setup, ctypes.c_uint(room), ctypes.byref(self._context))

    def _call(self, *arguments: object) -> int:
        answer: int = self._syscall(*arguments)
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return answer

    def submit(self, count: int, orders: ctypes.Array[ctypes.c_void_p]) -> int:
        """How many of the orders were begun, the first ones."""
        return self._call(self._submit, self._context, ctypes.c_long(count), orders)

    def wait(self, count: int, outcomes: ctypes.Array[_Outcome]) -> None:
        """Until *count* orders are done; *outcomes* are in the order in which they were."""
        done = 0
        while done < count:
            left, at = ctypes.c_long(count - done), ctypes.byref(outcomes, done * ctypes.sizeof(_Outcome))
            with contextlib.suppress(InterruptedError):
                done += self._call(self._getevents, self._context, left, left, at, None)

    def __del__(self) -> None:
        """What is under way comes to its end first."""
        if self._context:
            self._syscall(self._destroy, self._context)


class Flusher:
    """One flush at a time; `done` is readable once it is over. OSError where there is no such thing."""

    def __init__(self) -> None:
        self._queue = _Queue(1)
        self.done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._order = _Order(operation=_FDSYNC, flags=_NOTIFY, notified=self.done)
        self._orders = (ctypes.c_void_p * 1)(ctypes.addressof(self._order))
        self._outcomes = (_Outcome * 1)()

    def start(self, fd: int) -> None:
        """Begin to flush the file *fd*; OSError if that is not possible."""
        self._order.fd = fd
        self._queue.submit(1, self._orders)

    def finish(self) -> None:
        """Wait until the flush is over, not at all once `done` is readable; raises its OSError."""
        self._queue.wait(1, self._outcomes)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.done)
        _raise_for(self._outcomes[0].result)

    def close(self) -> None:
        """Let go of it, after the flush that may be under way."""
        del self._queue
        os.close(self.done)


class Syncer:
    """fsync(2) of up to ROOM files at the same time, or one by one where the kernel cannot."""

    ROOM = 8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: _Queue | None = None
        self._has_asked = False
        self._orders = [_Order(operation=_FSYNC) for _ in range(self.ROOM)]
        self._addresses = (ctypes.c_void_p * self.ROOM)(*map(ctypes.addressof, self._orders))
        self._outcomes = (_Outcome * self.ROOM)()

    def sync(self, fds: Sequence[int]) -> None:
        """All of *fds* are on disk. Raises the OSError of one that is not."""
        with self._lock:
            begun = self._begin(fds)
            if self._queue is not None:
                self._queue.wait(begun, self._outcomes)
            worst = min((outcome.result for outcome in self._outcomes[:begun]), default=0)
        for fd in fds[begun:]:
            os.fsync(fd)
        _raise_for(worst)

    def _begin(self, fds: Sequence[int]) -> int:
        """How many the kernel syncs by itself."""
        with contextlib.suppress(OSError):  # a kernel or a container without it; a process that was forked
            if not self._has_asked:
                self._has_asked = True
                self._queue = _Queue(self.ROOM)
            if self._queue is not None:
                for order, fd in zip(self._orders, fds, strict=False):
                    order.fd = fd
                return self._queue.submit(min(len(fds), self.ROOM), self._addresses)
        return 0


def _raise_for(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
