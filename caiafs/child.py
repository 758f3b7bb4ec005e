"""How a process that serves the daemon begins: the commit worker's, and the HTTP server's.

It ends when the daemon does, however that ends, and at no signal of a terminal's: the daemon says when. It
gives way to the daemon wherever both want to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

NICE = 10
_PR_SET_PDEATHSIG = 1
_MNT_FORCE = 1  # sys/mount.h


def begin() -> bool:
    """Follow the daemon whose process id is the first argument; False if it is gone already."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    daemon = int(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    return os.getppid() == daemon


def guard(device: str, mountpoint: str) -> None:
    """Be told of the daemon's death: end the connection of its mount *device* (major:minor), then end.

    A daemon that was killed keeps the FUSE descriptor while a thread of it waits in the kernel for a lock
    whose holder waits for the daemon's answer. Then nobody else would ever be told of its death.
    """

    daemon = int(sys.argv[1])

    def ended(*_: object) -> None:
        until = time.monotonic() + 1
        while not _is_dead(daemon):
            if time.monotonic() > until:
                return  # somebody else's signal
            time.sleep(0.001)  # it is about to die
        try:
            _end_connection(device, mountpoint)
        finally:
            os._exit(1)

    signal.signal(signal.SIGUSR1, ended)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if _is_dead(daemon):
        ended()


def _is_dead(pid: int) -> bool:
    """True also for a process that is still there for the sake of a thread."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return os.getppid() != pid or file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _end_connection(device: str, mountpoint: str) -> None:
    """Whoever waits for the mount gets an error, and it stays until it is taken away. The kernel lets its
    owner ask for that where /sys/fs/fuse/connections is mounted, and root anywhere."""
    try:
        with open(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort", "r+b", buffering=0) as ask:
            ask.write(b"1")
    except OSError:
        fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # keeps it busy, and so mounted
        if _device_of(fd) == device:
            ctypes.CDLL(None).umount2(b"/proc/self/fd/%d" % fd, _MNT_FORCE)
        os.close(fd)


def _device_of(fd: int) -> str | None:
    """major:minor of the filesystem that *fd* is on, by what the kernel knows without asking its daemon."""
    with open(f"/proc/self/fdinfo/{fd}") as info, open("/proc/self/mountinfo") as table:
        said = dict(line.split(":", 1) for line in info)
        found = (line.split(" ", 3) for line in table)
        return next((device for mount, _, device, _ in found if mount == said["mnt_id"].strip()), None)


def take_standard_streams() -> tuple[int, int]:
    """Standard input and output as descriptors of their own: what prints or reads by mistake harms nobody."""
    inlet, outlet = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return inlet, outlet
