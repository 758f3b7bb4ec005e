"""Flushes that nobody waits for: fdatasync(2) by the kernel's asynchronous I/O (io_submit(2)).

The disk starts one and gets on with its work; an event descriptor turns readable when it is done. A
thread that calls fdatasync(2) fights with the event loop for the interpreter's lock before and after
every call, which cost more than the flush itself. Weighed and not chosen: io_uring, which containers
and hardened kernels switch off.

Python does not offer these calls, so they are made by number, for the machines whose numbers are known.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit: arch/x86/entry/syscalls, asm-generic/unistd.h."""
_FDSYNC = 3  # linux/aio_abi.h: IOCB_CMD_FDSYNC
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


class Flusher:
    """One flush at a time; `done` is readable once it is over. OSError where there is no such thing."""

    def __init__(self) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "the numbers of this machine's system calls are not known")
        setup, self._destroy, self._getevents, self._submit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._call(setup, ctypes.c_uint(1), ctypes.byref(self._context))
        self.done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._order = _Order(operation=_FDSYNC, flags=_NOTIFY, notified=self.done)
        self._orders = (ctypes.c_void_p * 1)(ctypes.addressof(self._order))
        self._outcome = _Outcome()
        self._one, self._at = ctypes.c_long(1), ctypes.byref(self._outcome)

    def _call(self, *arguments: object) -> int:
        answer: int = self._syscall(*arguments)
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return answer

    def start(self, fd: int) -> None:
        """Begin to flush the file *fd*; OSError if that is not possible."""
        self._order.fd = fd
        self._call(self._submit, self._context, self._one, self._orders)

    def finish(self) -> None:
        """Wait until the flush is over, not at all once `done` is readable; raises its OSError."""
        while True:
            with contextlib.suppress(InterruptedError):
                if self._call(self._getevents, self._context, self._one, self._one, self._at, None) == 1:
                    break
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.done)
        if self._outcome.result < 0:
            code = -self._outcome.result
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Let go of it, after the flush that may be under way."""
        self._call(self._destroy, self._context)
        os.close(self.done)
