"""Refs as files: read, compare-and-swap, and a token for polling.

Used by Store only. Reads take no lock and see what another process wrote a moment ago:
a loose file wins over packed-refs, and packed-refs is parsed again when the file changed.

`swap_ref` follows git's own protocol: create `<ref>.lock` exclusively, compare under it, let a
file that is on disk take the ref's name. What git and dulwich leave out is added, because a journal
segment is dropped once a ref is said to be durable: the directories are fsynced, too.

A lock of ours says so, by its content, and is locked with flock(2) as long as its process lives: so
one that a kill or a power loss left behind is known for ours, and for stale, and is removed at the
next start. All locks of a process are one file, made and synced once, under more names by link(2):
a name that comes back after a power loss without the rest of its directory still leads to these
bytes. A lock of another program is never removed: nothing proves that nobody needs it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time

from dulwich.refs import Ref, check_ref_format

from caiafs.errors import RefLocked, StoreError
from caiafs.store.disk import NewFiles, failed, fsync_dir

_ZERO = "0" * 40
_HEX = re.compile(rb"[0-9a-fA-F]{40}")
_SYMREF_DEPTH = 5
_OURS = b"caiafs holds this ref; stale if no process has a lock on this file\n"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


def valid_ref(name: bytes) -> bool:
    """Whether git takes *name* for a full ref name (git-check-ref-format(1))."""
    return name.startswith(b"refs/") and check_ref_format(Ref(name))


class Value:
    """A file with the new value of a ref, where git does not look. To be dropped when nobody waits."""

    __slots__ = ("_replaced", "fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._replaced = -1

    def take_name(self, path: str) -> None:
        """Be the ref at *path*."""
        with contextlib.suppress(OSError):  # what it is will show
            self._replaced = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        _rename_over(self.path, path)
        self.path = ""

    def drop(self) -> None:
        """Let go of it: the file is removed, unless it is a ref now. What it replaced is freed by this close,
        which takes ext4 longer than the rename."""
        if self.path:
            with contextlib.suppress(OSError):  # the next start clears it away
                os.unlink(self.path)
            self.path = ""
        for fd in (self.fd, self._replaced):
            if fd >= 0:
                os.close(fd)
        self.fd = self._replaced = -1


class Refs:
    """The refs of one repository (*git_dir* is the common directory). Safe to use from several threads."""

    def __init__(self, git_dir: str, log_new_refs: bool) -> None:
        self._own = os.path.join(git_dir, "caiafs", "locks")
        self._files = NewFiles(self._own)
        self._owner: tuple[str, int, int] | None = None  # path, descriptor, process
        self._making = threading.Lock()
        self._dir = git_dir
        self._log_new_refs = log_new_refs
        self._durable: set[tuple[str, int]] = set()
        self._packed: tuple[tuple[int, ...], dict[bytes, bytes]] = ((), {})

    def read(self, refname: bytes) -> bytes | None:
        """The object *refname* points at, None when there is no such ref; StoreError when it is broken."""
        name, content = self._follow(refname)
        return self._value_in(name, content)

    def branches(self) -> list[bytes]:
        """The short names of all branches that have a commit, in order."""
        heads = self._path(b"refs/heads")
        found = {name for name in self._packed_refs() if name.startswith(b"refs/heads/")}
        for folder, _, files in os.walk(os.fsencode(heads)):
            below = os.path.relpath(folder, os.fsencode(heads))
            for name in files:
                full = os.path.normpath(os.path.join(b"refs/heads", below, name))
                if valid_ref(full) and self._loose(full) is not None:
                    found.add(full)
        return sorted(name.removeprefix(b"refs/heads/") for name in found)

    def signature(self, refname: bytes) -> tuple[object, ...]:
        """A token that changes whenever *refname* may point elsewhere. Costs one small read or two stats.

        The loose file's content is its own best token: no clock granularity can hide a change.
        """
        token: list[object] = []
        name = refname
        for _ in range(_SYMREF_DEPTH):
            content = self._loose(name)
            if content is None:
                token.append(self._packed_stat())
                break
            token.append(content)
            if not content.startswith(b"ref:"):
                break
            name = content[4:].strip()
            if not valid_ref(name):
                break
        return tuple(token)

    def swap(
        self, refname: bytes, old: bytes | None, new: bytes, message: bytes, who: bytes,
        value: Value | None = None,
    ) -> bool:  # fmt: skip
        """Point *refname* at *new* if it still points at *old* (None: does not exist), durably. *value* holds
        *new*, and is on disk; it is the caller's to drop.

        False when it moved; RefLocked when somebody holds its lock; StoreError otherwise. Nothing is
        changed unless True is returned (or the final fsync of a directory failed, which raises).
        """
        if not valid_ref(refname):
            raise StoreError(f"{os.fsdecode(refname)!r} is no name for a ref")
        name = self._resolve(refname)
        path = self._path(name)
        own: Value | None = None
        try:
            if value is None:
                value = own = self.value(new)
                os.fsync(own.fd)
            return self._swap_locked(name, path, old, new, message, who, value)
        except OSError as error:
            raise failed(f"cannot write ref {os.fsdecode(name)}", error) from error
        finally:
            if own is not None:
                own.drop()

    def _swap_locked(
        self, name: bytes, path: str, old: bytes | None, new: bytes, message: bytes, who: bytes, value: Value
    ) -> bool:
        lock = path + ".lock"
        held = self._take_lock(name, path, lock)
        try:
            if self._read_one(name) != old:
                return False
            if old is None:
                self._refuse_conflicts(name)
            self._log(name, old, new, message, who)
            value.take_name(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)
            if held is not None:
                os.close(held)
        self._sync_directories(os.path.dirname(path))
        return True

    def value(self, new: bytes) -> Value:
        """A file with the value *new*, which the caller syncs and drops. Raises StoreError."""
        try:
            made = Value(*self._new_file(".ref"))
            try:
                os.write(made.fd, new.hex().encode() + b"\n")
            except BaseException:
                made.drop()
                raise
        except OSError as error:
            raise failed(f"cannot write in {self._own}", error) from error
        return made

    def make_ready(self, count: int) -> None:
        """Make the files of *count* values ahead. Raises OSError."""
        self._files.make_ahead(count)

    def _new_file(self, suffix: str) -> tuple[int, str]:
        try:
            return self._files.make(suffix)
        except FileNotFoundError:
            os.makedirs(self._own, mode=0o700, exist_ok=True)
            return self._files.make(suffix)

    # --- locks

    def _take_lock(self, name: bytes, path: str, lock: str) -> int | None:
        """Make *lock* exist, or raise RefLocked. A descriptor to keep open meanwhile, if it needs one."""
        for attempt in range(10):
            try:
                os.link(self._owner_file(), lock)
                return None
            except FileExistsError:
                raise _locked(lock) from None
            except (FileNotFoundError, NotADirectoryError):
                if attempt == 9:  # git pack-refs removes directories it emptied: make them again
                    raise
                self._make_parents(name, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._make_parents(name, path)
                return self._make_lock(lock)
        raise AssertionError("not reached")

    def _owner_file(self) -> str:
        """The file that all locks of this process are names of."""
        with self._making:
            if self._owner is not None:
                path, _, pid = self._owner
                if pid == os.getpid() and os.path.exists(path):
                    return path
            fd, path = self._new_file(".owner")
            os.write(fd, _OURS)
            os.fsync(fd)  # whatever name of it is found after a power loss: these are its bytes
            self.close()
            self._owner = path, fd, os.getpid()
            return path

    def _make_lock(self, lock: str) -> int:
        """A lock of its own, on a filesystem without hard links."""
        try:
            fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise _locked(lock) from None
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, _OURS)
        os.fsync(fd)
        return fd

    def close(self) -> None:
        """Let go of what locks are made of."""
        self._files.close()
        if self._owner is not None:
            path, fd, pid = self._owner
            self._owner = None
            if pid == os.getpid():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            os.close(fd)

    def probe(self, refname: bytes) -> None:
        """Raises RefLocked while somebody holds the ref's lock, StoreError where it does not read."""
        name = self._resolve(refname)
        self._read_one(name)
        lock = self._path(name) + ".lock"
        if os.path.lexists(lock):
            raise RefLocked(
                f"{lock} exists: another git process holds the ref; if none runs, remove the file"
            )

    def clear_stale_locks(self) -> int:
        """Remove the ref locks that processes of ours left when they ended early; how many.

        A lock is known to be ours by what it says, and to be stale because nobody holds its flock any
        more. Locks of other git processes stay.
        """
        cleared = 0
        for folder in ("refs/heads", "refs/caiafs"):
            for directory, _, files in os.walk(os.path.join(self._dir, folder)):
                for file in files:
                    if file.endswith(".lock"):
                        cleared += _remove_stale(os.path.join(directory, file), _OURS)
        for entry in os.listdir(self._own) if os.path.isdir(self._own) else ():
            _remove_stale(os.path.join(self._own, entry), b"")
        return cleared

    def sync(self, refname: bytes) -> None:
        """The ref stays where it is after a power loss, too, whoever moved it there. Raises StoreError."""
        path = self._path(self._resolve(refname))
        try:
            self._sync_directories(os.path.dirname(path))
        except OSError as error:
            raise failed(f"cannot sync ref {os.fsdecode(refname)}", error) from error

    def _sync_directories(self, directory: str) -> None:
        """The ref's directory, and the parents that this process did not sync before, whoever made them."""
        fsync_dir(directory)
        while directory != self._dir:
            identity = (directory, os.stat(directory).st_ino)
            directory = os.path.dirname(directory)
            if identity in self._durable:
                break
            fsync_dir(directory)
            self._durable.add(identity)

    def _make_parents(self, name: bytes, path: str) -> None:
        """Create missing directories."""
        missing = []
        directory = os.path.dirname(path)
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        for directory in reversed(missing):
            try:
                os.mkdir(directory)
            except FileExistsError:
                if not os.path.isdir(directory):
                    raise StoreError(
                        f"ref {os.fsdecode(name)} cannot exist beside {os.path.relpath(directory, self._dir)}"
                    ) from None

    def in_the_way(self, name: bytes) -> bytes | None:
        """A ref beside which *name* cannot exist: of `a` and `a/b`, git holds one. None if there is none."""
        for parent in _parents(name):
            if self._loose(parent) is not None:
                return parent
        top = os.fsencode(self._path(name))
        for folder, _, files in os.walk(top):
            for file in files:
                full = name + (folder + b"/" + file).removeprefix(top)
                if valid_ref(full) and self._loose(full) is not None:  # no lock of one that is being made
                    return full
        return self._packed_conflict(name)

    def _packed_conflict(self, name: bytes) -> bytes | None:
        """The same among packed refs, where no file stands in the way."""
        parents, prefix = _parents(name), name + b"/"
        found = (other for other in self._packed_refs() if other in parents or other.startswith(prefix))
        return next(found, None)

    def _refuse_conflicts(self, name: bytes) -> None:
        other = self._packed_conflict(name)
        if other is not None:
            raise StoreError(f"ref {os.fsdecode(name)} cannot exist beside {os.fsdecode(other)}")

    def _log(self, name: bytes, old: bytes | None, new: bytes, message: bytes, who: bytes) -> None:
        """Append to the reflog where git would. A reflog is a courtesy: its failure fails nothing."""
        path = os.path.join(self._dir, "logs", os.fsdecode(name))
        wanted = self._log_new_refs and name.startswith((b"refs/heads/", b"refs/remotes/", b"refs/notes/"))
        if not wanted and not os.path.exists(path):
            return
        before = old.hex() if old is not None else _ZERO
        subject = b" ".join(message.split())
        line = b"%b %b %b %d +0000" % (before.encode(), new.hex().encode(), who, time.time())
        line += (b"\t" + subject if subject else b"") + b"\n"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)

    # --- reading

    def _path(self, name: bytes) -> str:
        return os.path.join(self._dir, os.fsdecode(name))

    def _loose(self, name: bytes) -> bytes | None:
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)  # a file object costs five calls more
            try:
                return os.read(fd, 4096)
            finally:
                os.close(fd)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise failed(f"cannot read ref {os.fsdecode(name)}", error) from error

    def _resolve(self, refname: bytes) -> bytes:
        """The name that symbolic refs lead to."""
        return self._follow(refname)[0]

    def _follow(self, refname: bytes) -> tuple[bytes, bytes | None]:
        """Where symbolic refs lead, and what the file there holds, if there is one."""
        name = refname
        for _ in range(_SYMREF_DEPTH):
            content = self._loose(name)
            if content is None or not content.startswith(b"ref:"):
                return name, content
            name = content[4:].strip()
            if not valid_ref(name):
                raise StoreError(f"ref {os.fsdecode(refname)} points at {os.fsdecode(name)!r}: no ref")
        raise StoreError(f"ref {os.fsdecode(refname)} is a loop of symbolic refs")

    def _read_one(self, name: bytes) -> bytes | None:
        return self._value_in(name, self._loose(name))

    def _value_in(self, name: bytes, content: bytes | None) -> bytes | None:
        if content is None:
            return self._packed_refs().get(name)
        match = _HEX.match(content)
        if match is None or content[40:41].strip():
            raise StoreError(
                f"ref {os.fsdecode(name)} is broken: {content[:60]!r} is no object id; "
                f"restore it with git update-ref"
            )
        return bytes.fromhex(match.group().decode())

    def _packed_stat(self) -> tuple[int, ...]:
        try:
            st = os.stat(os.path.join(self._dir, "packed-refs"))
        except FileNotFoundError:
            return ()
        return (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)

    def _packed_refs(self) -> dict[bytes, bytes]:
        """name -> oid; parsed again when the file changed."""
        key = self._packed_stat()
        known, refs = self._packed
        # A file that changed within the clock's granularity may change again unseen: trust only older ones.
        if key == known and (not key or time.time_ns() - key[2] > 1_000_000_000):
            return refs
        refs = {}
        try:
            with open(os.path.join(self._dir, "packed-refs"), "rb") as file:
                st = os.fstat(file.fileno())
                for line in file.read().split(b"\n"):
                    if not line or line[0] in b"#^":
                        continue
                    if _HEX.match(line) is None or line[40:41] != b" ":
                        raise StoreError(f"packed-refs in {self._dir} is damaged: {line[:60]!r}")
                    refs[line[41:].rstrip(b"\r")] = bytes.fromhex(line[:40].decode())
                key = (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
        except FileNotFoundError:
            key = ()
        except OSError as error:
            raise failed(f"cannot read packed-refs in {self._dir}", error) from error
        self._packed = (key, refs)
        return refs


def _parents(name: bytes) -> list[bytes]:
    """The refs below which *name* would lie, if they were any."""
    parts = name.split(b"/")
    return [b"/".join(parts[:n]) for n in range(2, len(parts))]


def _locked(lock: str) -> RefLocked:
    return RefLocked(f"{lock} exists: another git process holds the ref; if none runs, remove the file")


def _remove_stale(path: str, begins: bytes) -> bool:
    """Remove *path* if it begins so and no living process holds its flock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not os.read(fd, len(_OURS)).startswith(begins):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    return True


def _rename_over(fresh: str, path: str) -> None:
    """Rename; empty directories that a deleted ref left at *path* make way."""
    try:
        os.rename(fresh, path)
    except (IsADirectoryError, FileExistsError):
        for root, _, _ in os.walk(path, topdown=False):
            os.rmdir(root)  # not empty: refs live below, and the error says so
        os.rename(fresh, path)
