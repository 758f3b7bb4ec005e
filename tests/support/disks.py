"""Disks for tests: one that fails on request, one that forgets what was not synced.

Both stand in for journal.RealDisk. FailingDisk is the machine's disk with faults let in;
ForgetfulDisk lives in memory and, at a crash, keeps of every file and every directory
entry only what the calls of POSIX promise: what was synced is there, all else is there or
not, as a seed decides, whatever the order in which it was written.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence

from caiafs.journal import RealDisk

PAGE = 512
"""What a disk writes whole: the unit in which unsynced bytes survive or do not."""


class Crash(BaseException):
    """The machine lost power; nobody in the program under test catches this."""


class FailingDisk(RealDisk):
    """The machine's disk. `plan[call]` is asked before each call; an errno it returns is raised.

    *room* bounds the bytes that all files of *directory* hold together: beyond it a write is
    short, and then fails with ENOSPC, as on a disk that is full.
    """

    def __init__(self, directory: str | None = None, room: int | None = None) -> None:
        super().__init__()
        self.plan: dict[str, Callable[[], int | None]] = {}
        self.directory = directory
        self.room = room
        self.short: int | None = None
        self.calls: list[str] = []

    def fail(self, call: str, code: int = errno.EIO, after: int = 0, times: int | None = 1) -> None:
        """Let *call* fail *times* times (None: from now on) once it succeeded *after* times."""
        left = [after, times]

        def ask() -> int | None:
            if left[0]:
                left[0] -= 1
                return None
            if left[1] is None:
                return code
            if not left[1]:
                return None
            left[1] -= 1
            return code

        self.plan[call] = ask

    def heal(self) -> None:
        """No more faults."""
        self.plan.clear()
        self.room = self.short = None

    def used(self) -> int:
        assert self.directory is not None
        return sum(entry.stat().st_size for entry in os.scandir(self.directory) if entry.is_file())

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        ask = self.plan.get(call)
        code = ask() if ask is not None else None
        if code is not None:
            raise OSError(code, os.strerror(code))

    def open(self, path: str, *, create: bool) -> int:
        self._enter("create" if create else "open")
        return super().open(path, create=create)

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        if self.short is not None:  # so many bytes arrive, then the disk says why not more
            data, self.short = b"".join(buffers)[: self.short], None
            return os.write(fd, data) if data else 0
        self._enter("writev")
        if self.room is not None:
            data = b"".join(buffers)
            free = self.room - self.used()
            if free <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return os.write(fd, data[:free])
        return super().writev(fd, buffers)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._enter("pread")
        return super().pread(fd, length, offset)

    def truncate(self, fd: int, length: int) -> None:
        self._enter("truncate")
        super().truncate(fd, length)

    def sync(self, fd: int) -> None:
        self._enter("sync")
        super().sync(fd)

    def finish_sync(self) -> None:
        super().finish_sync()
        self._enter("sync")

    def unlink(self, path: str) -> None:
        self._enter("unlink")
        super().unlink(path)

    def rename(self, old: str, new: str) -> None:
        self._enter("rename")
        super().rename(old, new)

    def list(self, directory: str) -> list[str]:
        self._enter("list")
        return super().list(directory)

    def sync_directory(self, directory: str) -> None:
        self._enter("sync_directory")
        super().sync_directory(directory)


class _Inode:
    """One file: its bytes now, and its bytes as the platter has them."""

    __slots__ = ("data", "synced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""

    def after_crash(self, rng: random.Random) -> bytes:
        """Of each page that differs either version, of the length any between the two."""
        now, before = bytes(self.data), self.synced
        if now == before:
            return now
        lengths = sorted((len(before), len(now)))
        size = rng.choice([len(before), len(now), rng.randint(*lengths)])
        whole = bytearray(max(len(now), len(before)))
        for start in range(0, len(whole), PAGE):
            source = now if rng.random() < 0.5 else before
            page = source[start : start + PAGE]
            whole[start : start + len(page)] = page
        return bytes(whole[:size])


class ForgetfulDisk:
    """A disk in memory with one directory. *crash_at* is the number of the call that never returns.

    A write at that moment is torn. `crashed` gives the disk as the machine finds it again.
    """

    def __init__(self, crash_at: int | None = None, seed: int = 0) -> None:
        self.crash_at = crash_at
        self.calls = 0
        self._rng = random.Random(seed)
        self._names: dict[str, _Inode] = {}
        self._synced_names: dict[str, _Inode] = {}
        self._fds: dict[int, _Inode] = {}
        self._next_fd = 1000
        self.down = False

    def _step(self) -> bool:
        """True if this call is the one that does not come to its end."""
        if self.down:
            raise Crash
        self.calls += 1
        return self.calls - 1 == self.crash_at

    def _crash(self) -> None:
        self.down = True
        raise Crash

    def _at(self, path: str) -> _Inode:
        inode = self._names.get(os.path.basename(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    # ---- what the journal calls

    def open(self, path: str, *, create: bool) -> int:
        last = create and self._step()
        name = os.path.basename(path)
        if create:
            if name in self._names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self._names[name] = _Inode()
            if last:
                self._crash()
        fd = self._next_fd
        self._next_fd += 1
        self._fds[fd] = self._at(path)
        return fd

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        last = self._step()
        data = b"".join(buffers)
        if last:
            self._fds[fd].data += data[: self._rng.randint(0, len(data))]
            self._crash()
        self._fds[fd].data += data
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._fds[fd].data[offset : offset + length])

    def size(self, fd: int) -> int:
        return len(self._fds[fd].data)

    def truncate(self, fd: int, length: int) -> None:
        last = self._step()
        data = self._fds[fd].data
        del data[length:]
        data.extend(bytes(length - len(data)))
        if last:
            self._crash()

    def sync(self, fd: int) -> None:
        if self._step():
            self._crash()
        inode = self._fds[fd]
        inode.synced = bytes(inode.data)

    def start_sync(self, fd: int) -> int | None:
        return None

    def finish_sync(self) -> None:
        raise AssertionError("none was started")

    def close(self, fd: int) -> None:
        if not self.down:
            del self._fds[fd]

    def unlink(self, path: str) -> None:
        last = self._step()
        self._at(path)
        del self._names[os.path.basename(path)]
        if last:
            self._crash()

    def rename(self, old: str, new: str) -> None:
        last = self._step()
        inode = self._at(old)
        del self._names[os.path.basename(old)]
        self._names[os.path.basename(new)] = inode
        if last:
            self._crash()

    def list(self, directory: str) -> list[str]:
        return list(self._names)

    def sync_directory(self, directory: str) -> None:
        if self._step():
            self._crash()
        self._synced_names = dict(self._names)

    # ---- after the crash

    def crashed(self, *, power: bool = True) -> ForgetfulDisk:
        """The disk after power was lost (or, without *power*, after only the process died)."""
        again = ForgetfulDisk(seed=self._rng.randrange(1 << 30))
        names = dict(self._names)
        if power:
            for name in sorted(self._names.keys() | self._synced_names.keys()):
                if self._names.get(name) is not self._synced_names.get(name) and self._rng.random() < 0.5:
                    before = self._synced_names.get(name)
                    if before is None:
                        names.pop(name, None)
                    else:
                        names[name] = before
        copies: dict[int, _Inode] = {}
        for name, inode in names.items():
            copy = copies.get(id(inode))
            if copy is None:
                copy = copies[id(inode)] = _Inode()
                data = inode.after_crash(self._rng) if power else bytes(inode.data)
                copy.data, copy.synced = bytearray(data), data
            again._names[name] = copy
        again._synced_names = dict(again._names)
        return again
