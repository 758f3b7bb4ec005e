"""A disk that forgets: what may be left of a directory when the power goes at any call.

A `Recorder` stands between a program in this process and its files: every call of `os` that
changes something below one directory is done, and noted. A `Platter` plays the notes back up to
any call, and knows what was synced by then. `survivor` builds what a machine may find again:

- bytes of a file that were synced are there. Of later writes each sector is there or not, whatever
  their order, and the file has its old length, its new one, or one between.
- names of a directory that were synced are there. Of later changes each name has any of the states
  that it went through, on its own: a rename may show both names, or none.
- the very last call may have come to its end in part.

This is harsher than any filesystem in use, and promises nothing but what fsync(2) does. At the end
of a recording the directory must be what the notes say, so nothing went past them.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import random
import stat
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from caiafs.aio import Flusher, Syncer

SECTOR = 512


class Call(NamedTuple):
    """One call: its kind, the inode it is about, and what it did. A new inode is a call of its own."""

    kind: str  # new write truncate sync flush flushed name mode
    ino: int
    offset: int = 0
    data: bytes = b""
    name: str = ""
    target: int | None = None  # the inode that the name stands for now


class Inode:
    """A file or directory: as it is, and as the platter has it for certain."""

    __slots__ = ("calls", "data", "entries", "flushing", "folder", "mode", "past", "sure", "sure_entries")

    def __init__(self, folder: bool, mode: int = 0o600) -> None:
        self.folder = folder
        self.mode = mode
        self.data = bytearray()
        self.sure = b""
        self.calls: list[Call] = []  # on the data, since the last sync
        self.flushing = b"", 0  # the data, and how many calls on it, when an asynchronous flush began
        self.entries: dict[str, int] = {}
        self.sure_entries: dict[str, int] = {}
        self.past: dict[str, list[int | None]] = {}  # states of a name since the last sync


class Platter:
    """Inodes by number; 0 is the directory that was recorded."""

    def __init__(self, start: dict[int, Inode]) -> None:
        self.inodes = start

    def play(self, call: Call) -> None:
        if call.kind == "new":
            self.inodes[call.ino] = Inode(bool(call.offset), int(call.data))
            return
        inode = self.inodes[call.ino]
        if call.kind == "write":
            _lay(inode.data, call.offset, call.data)
            inode.calls.append(call)
        elif call.kind == "truncate":
            _cut(inode.data, call.offset)
            inode.calls.append(call)
        elif call.kind == "sync":
            inode.sure, inode.calls = bytes(inode.data), []
            inode.sure_entries, inode.past = dict(inode.entries), {}
        elif call.kind == "flush":
            inode.flushing = bytes(inode.data), len(inode.calls)
        elif call.kind == "flushed":  # what came while it ran may be on the platter or not
            inode.sure, before = inode.flushing
            inode.calls = inode.calls[before:]
        elif call.kind == "name":
            states = inode.past.setdefault(call.name, [])
            if call.target is None:
                inode.entries.pop(call.name, None)
            else:
                inode.entries[call.name] = call.target
            states.append(call.target)
        elif call.kind == "mode":
            inode.mode = call.offset

    # ---- what a machine finds again

    def write_survivor(self, root: str, rng: random.Random, how: str, torn: Call | None = None) -> None:
        """Build below *root* what may be left. *how*: "all" of what was called, "none" of what was not
        synced, or "some". *torn* is one more call, which did not come to its end."""
        contents: dict[int, str] = {}
        waiting = [(0, root)]
        while waiting:
            number, path = waiting.pop()
            folder = self.inodes[number]
            for name, target in sorted(self._names(number, folder, rng, how, torn).items()):
                below = os.path.join(path, name)
                inode = self.inodes[target]
                if inode.folder:
                    if target in contents:
                        continue  # a directory has one name; a rename that shows both shows the first
                    contents[target] = below
                    os.mkdir(below, inode.mode)
                    waiting.append((target, below))
                elif target in contents:
                    os.link(contents[target], below)
                else:
                    contents[target] = below
                    fd = os.open(below, os.O_WRONLY | os.O_CREAT | os.O_EXCL, inode.mode | 0o200)
                    data = self._content(target, inode, rng, how, torn)
                    if data:
                        os.write(fd, data)
                    os.fchmod(fd, inode.mode)
                    os.close(fd)

    def _names(
        self, number: int, folder: Inode, rng: random.Random, how: str, torn: Call | None
    ) -> dict[str, int]:
        if how == "all":
            found = dict(folder.entries)
        else:
            found = dict(folder.sure_entries)
            for name, states in sorted(folder.past.items()) if how == "some" else ():
                state = rng.choice([folder.sure_entries.get(name), *states, states[-1]])
                if state is None:
                    found.pop(name, None)
                else:
                    found[name] = state
        if torn is not None and torn.kind == "name" and torn.ino == number and rng.random() < 0.5:
            if torn.target is None:
                found.pop(torn.name, None)
            else:
                found[torn.name] = torn.target
        return {name: target for name, target in found.items() if target in self.inodes}

    def _content(self, number: int, inode: Inode, rng: random.Random, how: str, torn: Call | None) -> bytes:
        calls = list(inode.calls)
        tear = torn is not None and torn.ino == number and torn.kind in ("write", "truncate")
        if how == "all" and not tear:
            return bytes(inode.data)
        data = bytearray(inode.data if how == "all" else inode.sure)
        if how == "some" and calls:
            _some(data, calls, rng, inode)
        if tear:
            assert torn is not None
            if torn.kind == "write":
                _lay(data, torn.offset, torn.data[: rng.randint(0, len(torn.data))])
            elif rng.random() < 0.5:
                _cut(data, torn.offset)
        return bytes(data)


def _some(data: bytearray, calls: list[Call], rng: random.Random, inode: Inode) -> None:
    """Of the *calls* since the last sync each sector or none; the length is decided on its own."""
    lengths = sorted((len(data), len(inode.data)))
    length = rng.choice([len(data), len(inode.data), rng.randint(*lengths)])
    likely = rng.choice((0.2, 0.5, 0.9))
    for call in calls:
        if call.kind == "truncate":
            if rng.random() < likely:
                _cut(data, call.offset)
            continue
        end = call.offset + len(call.data)
        at = call.offset
        while at < end:
            stop = min(end, (at // SECTOR + 1) * SECTOR)
            if rng.random() < likely:
                _lay(data, at, call.data[at - call.offset : stop - call.offset])
            at = stop
    _cut(data, length)


def _lay(data: bytearray, offset: int, piece: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _cut(data: bytearray, length: int) -> None:
    del data[length:]
    data.extend(bytes(length - len(data)))


def scan(base: str) -> Platter:
    """A directory as it is, all of it on disk for certain: what a machine that starts finds."""
    inodes = {0: Inode(True)}
    waiting = [(inodes[0], base)]
    while waiting:
        folder, path = waiting.pop()
        for name in sorted(os.listdir(path)):
            below = os.path.join(path, name)
            info = os.lstat(below)
            if stat.S_ISSOCK(info.st_mode):
                continue
            made = Inode(stat.S_ISDIR(info.st_mode), stat.S_IMODE(info.st_mode))
            folder.entries[name] = folder.sure_entries[name] = len(inodes)
            inodes[len(inodes)] = made
            if made.folder:
                waiting.append((made, below))
            else:
                with open(below, "rb") as file:
                    made.sure = file.read()
                made.data = bytearray(made.sure)
    return Platter(inodes)


# ---- recording


class Recorder:
    """Notes every change below *base* that this process makes inside of the `with`."""

    def __init__(self, base: str) -> None:
        self.base = os.path.abspath(base)
        self.calls: list[Call] = []
        self.writes = 0
        self._lock = threading.RLock()
        self._fds: dict[int, tuple[int, bool]] = {}  # fd -> inode number, O_APPEND
        self._flushing: dict[Flusher, int] = {}
        self.origin = scan(self.base)
        self._platter = scan(self.base)
        self._next = len(self._platter.inodes)
        self._saved: list[tuple[Any, str, Any]] = []

    def _note(self, call: Call) -> None:
        self.calls.append(call)
        self.writes += call.kind == "write"
        self._platter.play(call)

    def _new(self, folder: bool, mode: int) -> int:
        ino = self._next
        self._next += 1
        self._note(Call("new", ino, int(folder), b"%d" % mode))
        return ino

    def _place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """The directory's inode and the name in it; None outside of the base."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(text):
            if dir_fd not in self._fds:
                return None
            return self._fds[dir_fd][0], text
        text = os.path.abspath(text)
        if text == self.base:
            return 0, ""
        if not text.startswith(self.base + "/"):
            return None
        number = 0
        *above, name = text[len(self.base) + 1 :].split("/")
        for step in above:
            below = self._platter.inodes[number].entries.get(step)
            if below is None:
                return None  # the call is about to fail
            number = below
        return number, name

    def _at(self, place: tuple[int, str]) -> int | None:
        number, name = place
        return number if not name else self._platter.inodes[number].entries.get(name)

    # ---- the calls

    def __enter__(self) -> Recorder:
        for name in (
            "open", "close", "write", "writev", "pwrite", "ftruncate", "truncate", "fsync", "fdatasync",
            "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "symlink", "fchmod", "chmod",
            "dup",
        ):  # fmt: skip
            self._patch(os, name, getattr(self, f"_{name}"))
        self._patch(builtins, "open", self._builtin_open)
        self._patch(Flusher, "start", self._flush)
        self._patch(Flusher, "finish", self._flushed)
        self._patch(Syncer, "sync", self._sync_group)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in reversed(self._saved):
            setattr(owner, name, function)
        self._saved = []

    def _patch(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def noted(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return function(plain, *args, **kwargs)

        self._saved.append((owner, name, plain))
        setattr(owner, name, noted)

    def _builtin_open(self, plain: Any, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or self._place(file) is None:
            return plain(file, mode, *args, **kwargs)
        flags = {"w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL}[
            mode[0]
        ]
        raw = _Raw(os.open(file, os.O_RDWR | flags | os.O_CLOEXEC, 0o666))
        assert "b" in mode, "text files are not recorded"
        return io.BufferedWriter(raw)

    def _open(
        self, plain: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        place = self._place(path, dir_fd)
        known = place is not None and self._at(place) is not None
        fd = int(plain(path, flags, mode, dir_fd=dir_fd))
        if place is None:
            return fd
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            self._fds[fd] = self._new(False, mode), False
            return fd
        number, name = place
        if not known:
            ino = self._new(False, stat.S_IMODE(os.fstat(fd).st_mode))
            self._note(Call("name", number, name=name, target=ino))
        ino = self._at(place)  # type: ignore[assignment]
        if known and flags & os.O_TRUNC:
            self._note(Call("truncate", ino, 0))
        self._fds[fd] = ino, bool(flags & os.O_APPEND)
        return fd

    def _dup(self, plain: Any, fd: int) -> int:
        twin = int(plain(fd))
        if fd in self._fds:
            self._fds[twin] = self._fds[fd]
        return twin

    def _close(self, plain: Any, fd: int) -> None:
        self._fds.pop(fd, None)
        plain(fd)

    def _written(self, fd: int, data: bytes, offset: int | None, done: int) -> None:
        ino, appends = self._fds[fd]
        if appends:
            offset = len(self._platter.inodes[ino].data)
        elif offset is None:
            offset = os.lseek(fd, 0, os.SEEK_CUR) - done
        self._note(Call("write", ino, offset, data[:done]))

    def _write(self, plain: Any, fd: int, data: Any) -> int:
        done = int(plain(fd, data))
        if fd in self._fds:
            self._written(fd, bytes(data), None, done)
        return done

    def _writev(self, plain: Any, fd: int, buffers: Any) -> int:
        done = int(plain(fd, buffers))
        if fd in self._fds:
            self._written(fd, b"".join(buffers), None, done)
        return done

    def _pwrite(self, plain: Any, fd: int, data: Any, offset: int) -> int:
        done = int(plain(fd, data, offset))
        if fd in self._fds:
            self._written(fd, bytes(data), offset, done)
        return done

    def _ftruncate(self, plain: Any, fd: int, length: int) -> None:
        plain(fd, length)
        if fd in self._fds:
            self._note(Call("truncate", self._fds[fd][0], length))

    def _truncate(self, plain: Any, path: Any, length: int) -> None:
        plain(path, length)
        place = None if isinstance(path, int) else self._place(path)
        ino = self._fds[path][0] if isinstance(path, int) and path in self._fds else place and self._at(place)
        if ino is not None:
            self._note(Call("truncate", ino, length))

    def _fsync(self, plain: Any, fd: int) -> None:
        plain(fd)
        if fd in self._fds:
            self._note(Call("sync", self._fds[fd][0]))

    _fdatasync = _fsync

    def _sync_group(self, plain: Any, syncer: Syncer, fds: Any) -> None:
        """Which of them is on disk first nobody knows."""
        plain(syncer, fds)
        for fd in random.Random(len(self.calls)).sample(fds, len(fds)):
            if fd in self._fds:
                self._note(Call("sync", self._fds[fd][0]))

    def _flush(self, plain: Any, flusher: Flusher, fd: int) -> None:
        plain(flusher, fd)
        if fd in self._fds:
            self._flushing[flusher] = self._fds[fd][0]
            self._note(Call("flush", self._fds[fd][0]))

    def _flushed(self, plain: Any, flusher: Flusher) -> None:
        plain(flusher)
        if flusher in self._flushing:
            self._note(Call("flushed", self._flushing.pop(flusher)))

    def _rename(self, plain: Any, old: Any, new: Any, **kwargs: Any) -> None:
        source = self._place(old, kwargs.get("src_dir_fd"))
        target = self._place(new, kwargs.get("dst_dir_fd"))
        plain(old, new, **kwargs)
        if source is None:
            assert target is None, "a rename into the recorded directory"
            return
        assert target is not None
        ino = self._at(source)
        if ino == self._at(target):
            return  # two names of one file: rename(2) does nothing
        self._note(Call("name", target[0], name=target[1], target=ino))
        self._note(Call("name", source[0], name=source[1], target=None))

    _replace = _rename

    def _link(self, plain: Any, old: Any, new: Any, **kwargs: Any) -> None:
        source = self._place(old, kwargs.get("src_dir_fd"))
        target = self._place(new, kwargs.get("dst_dir_fd"))
        plain(old, new, **kwargs)
        if target is not None:
            assert source is not None
            self._note(Call("name", target[0], name=target[1], target=self._at(source)))

    def _unlink(self, plain: Any, path: Any, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        plain(path, dir_fd=dir_fd)
        if place is not None:
            self._note(Call("name", place[0], name=place[1], target=None))

    _remove = _unlink
    _rmdir = _unlink

    def _mkdir(self, plain: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        plain(path, mode, dir_fd=dir_fd)
        if place is not None:
            info = os.stat(path, dir_fd=dir_fd)
            ino = self._new(True, stat.S_IMODE(info.st_mode))
            self._note(Call("name", place[0], name=place[1], target=ino))

    def _symlink(self, plain: Any, target: Any, path: Any, **kwargs: Any) -> None:
        assert self._place(path) is None, "symbolic links are not recorded"
        plain(target, path, **kwargs)

    def _fchmod(self, plain: Any, fd: int, mode: int) -> None:
        plain(fd, mode)
        if fd in self._fds:
            self._note(Call("mode", self._fds[fd][0], mode))

    def _chmod(self, plain: Any, path: Any, mode: int, **kwargs: Any) -> None:
        plain(path, mode, **kwargs)
        place = self._place(path)
        ino = None if place is None else self._at(place)
        if ino is not None:
            self._note(Call("mode", ino, mode))

    # ---- proof

    def assert_complete(self) -> None:
        """The directory is what the notes say: nothing was changed past them."""
        self._assert_same(0, self.base)

    def _assert_same(self, number: int, path: str) -> None:
        folder = self._platter.inodes[number]
        found = {
            name for name in os.listdir(path) if not stat.S_ISSOCK(os.lstat(os.path.join(path, name)).st_mode)
        }
        assert found == folder.entries.keys(), f"{path}: {sorted(found ^ folder.entries.keys())}"
        for name, ino in folder.entries.items():
            below = os.path.join(path, name)
            inode = self._platter.inodes[ino]
            if inode.folder:
                self._assert_same(ino, below)
            else:
                with open(below, "rb") as file:
                    assert file.read() == inode.data, f"{below} was written past the recorder"


class _Raw(io.RawIOBase):
    """A file whose writes go through `os`, and so through the recorder."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, bytes(data))

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)
