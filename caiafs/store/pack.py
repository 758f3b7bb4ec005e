"""Writing packs: the one way objects get into the repository.

The committer adds objects and gets one durable pack per commit: two files, synced together, and their
directory, however many objects; loose objects would be one fsync each and were slower from the first
file on (docs/decisions.md). dulwich's writer was not chosen: it holds every object in memory,
reads each one twice again, and syncs nothing.

Order of finish(): temporary pack and index are synced, `.keep` appears, then the pack, then the
index, then the directory is synced. An object in the pack is visible only when everything is
there. Until its ref has moved, `.keep` protects the pack from `git gc`; a lock on that file, which
the kernel drops when this process ends, tells the next start which `.keep` files are stale.

Temporary files live outside objects/, where `git prune` would delete them.
One thread uses a PackWriter at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from isal import isal_zlib

from caiafs.errors import StoreError
from caiafs.store.disk import NewFiles, failed, fsync_dir, fsync_each, write_all
from caiafs.store.objects import BLOB, KIND_NAMES, Oid
from caiafs.store.parts import LEVEL

TEMP_PREFIX = "caiafs-pack-"
KEEP_PREFIX = b"caiafs "
_IN_MEMORY = 8 * 1024 * 1024  # a pack up to this size is written in one go
_COPY = 1024 * 1024
_SYNC_EVERY = 16 * 1024 * 1024
"""Bytes of a pack after which it is synced: one fsync of gigabytes on a slow disk is silent for minutes."""


class _Deflater(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Keeper:
    """What the `.keep` files of this process are names of: one file, synced once and locked while it is open.

    So a `.keep` costs no fsync of its own, and what a power loss leaves of it has its content and no lock.
    A filesystem without hard links gets a file for each. One thread uses a Keeper at a time.
    """

    def __init__(self, directory: str) -> None:
        """*directory* is where the file is, on the repository's filesystem; made when it is needed."""
        self._directory = directory
        self._fd = -1
        self._path = ""
        self._process = 0

    def put(self, path: str) -> Keep | None:
        """A `.keep` at *path*; None when somebody else keeps the pack. Raises OSError."""
        for _ in range(2):
            if self._fd < 0 or self._process != os.getpid():
                self._begin()
            try:
                os.link(self._path, path)
            except FileExistsError:
                return None
            except FileNotFoundError:
                self.close()  # somebody tidied up
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                return self._put_alone(path)
            else:
                return Keep(path, self)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._directory)

    def _begin(self) -> None:
        self.close()
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._fd, self._path = temporary_files(self._directory).make(".owner")
        self._process = os.getpid()
        try:
            os.write(self._fd, KEEP_PREFIX + b"%d\n" % os.getpid())
            os.fsync(self._fd)  # or power loss leaves an empty file, which nobody may take for stale
        except BaseException:
            self.close()
            raise

    def _put_alone(self, path: str) -> Keep | None:
        """The file itself at *path*: what a rename could overwrite between here and there is only the `.keep`
        of somebody who keeps a pack with these very objects."""
        if os.path.lexists(path):
            return None
        alone = Keeper(self._directory)
        alone._begin()
        os.rename(alone._path, path)
        alone._path = ""
        return Keep(path, alone)

    def close(self) -> None:
        """Let go of the file. What it still keeps counts as left behind."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._path and self._process == os.getpid():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Keep(NamedTuple):
    """A `.keep`; it is locked as long as its keeper is there."""

    path: str
    keeper: Keeper


class KeptPack:
    """A durable pack that `.keep` protects until `release()`."""

    def __init__(self, path: str, keep: Keep | None, objects: int, size: int) -> None:
        self.path = path  # of the .pack
        self.name = os.path.basename(path)
        self.objects = objects
        self.size = size
        self._keep = keep

    def release(self) -> None:
        """Remove `.keep`: a ref leads to the objects now. Harmless when done twice."""
        keep, self._keep = self._keep, None
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(keep.path)


class PackWriter:
    """Collects objects into one pack. Ends with finish() or abort(); also a context manager that aborts."""

    def __init__(
        self, objects_dir: str, tmp_dir: str, alive: Callable[[], None] = lambda: None,
        keeper: Keeper | None = None, files: NewFiles | None = None,
        sync: Callable[[Sequence[int]], None] = fsync_each,
    ) -> None:  # fmt: skip
        """*alive* is told of progress, at the latest after each MiB that is written, hashed or copied."""
        self._alive = alive
        self._files = files or temporary_files(tmp_dir)
        self._sync = sync
        self._keeper = keeper or Keeper(tmp_dir)
        self._synced = 0
        self._objects_dir = objects_dir
        self._tmp_dir = tmp_dir
        self._entries: dict[Oid, tuple[int, int]] = {}  # oid -> (offset, crc32)
        self._buffer = bytearray(_header(0))
        self._flushed = 0  # bytes of the pack that are in the file already
        self._fd = -1
        self._path = ""
        self._open = True

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, oid: object) -> bool:
        return oid in self._entries

    @property
    def size(self) -> int:
        """Bytes of pack so far."""
        return self._flushed + len(self._buffer)

    def add(self, kind: int, data: bytes, deflated: bytes | None = None) -> Oid:
        """Add an object (1 commit, 2 tree, 3 blob); nothing is written twice. *deflated* is *data* as a zlib
        stream, if the caller has it."""
        digest = _digest(kind, len(data)).copy()
        digest.update(data)
        oid = digest.digest()
        if oid not in self._entries:
            if deflated is None:
                deflated = isal_zlib.compress(data, LEVEL)
            self._add_raw(oid, _entry_header(kind, len(data)) + deflated)
        return oid

    def add_raw(self, oid: Oid, raw: bytes) -> None:
        """Add an entry copied from another pack: its header and deflated data, no delta."""
        if oid not in self._entries:
            self._add_raw(oid, raw)

    def add_stream(self, size: int, chunks: Iterable[bytes]) -> Oid:
        """Add a blob of exactly *size* bytes; memory does not grow with it.

        StoreError when *chunks* hold more or less; the writer can go on without that blob then, and
        also when *chunks* raises.
        """
        self._check_open()
        start = self.size
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        deflater: _Deflater = isal_zlib.compressobj(LEVEL)
        try:
            head = _entry_header(BLOB, size)
            self._write(head)
            crc = isal_zlib.crc32(head)
            total = 0
            for chunk in chunks:
                total += len(chunk)
                if total > size:
                    raise StoreError(f"a blob of {size} bytes is longer; it changed while it was stored")
                digest.update(chunk)
                piece = deflater.compress(chunk)
                crc = isal_zlib.crc32(piece, crc)
                self._write(piece)
            if total != size:
                raise StoreError(f"a blob of {size} bytes ended after {total}; it changed meanwhile")
            piece = deflater.flush()
            crc = isal_zlib.crc32(piece, crc)
            self._write(piece)
        except BaseException:
            self._truncate(start)
            raise
        oid = digest.digest()
        if oid in self._entries:
            self._truncate(start)
        else:
            self._entries[oid] = (start, crc)
        return oid

    def finish(self, beside: Sequence[int] = ()) -> KeptPack | None:
        """Make the pack durable and visible; None when nothing was added. Else what was written to the files
        *beside* is durable, too: the disk has all in the time that it takes for one.

        After an error nothing is visible; the writer is closed either way. StoreError carries the errno.
        """
        self._check_open()
        if not self._entries:
            self.abort()
            return None
        try:
            return self._finish(beside)
        except OSError as error:
            raise failed(f"cannot write a pack into {self._objects_dir}", error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget everything that was added, and remove the temporary file."""
        self._open = False
        self._buffer = bytearray()
        self._entries = {}
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            self.abort()

    # --- inside

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError("the pack writer is closed")

    def _add_raw(self, oid: Oid, raw: bytes) -> None:
        self._check_open()
        offset = self._flushed + len(self._buffer)
        try:
            self._write(raw)
        except BaseException:
            self._truncate(offset)
            raise
        self._entries[oid] = (offset, isal_zlib.crc32(raw))

    def _write(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if len(buffer) >= _COPY and (self._flushed or len(buffer) >= _IN_MEMORY):
            self._flush()

    def _flush(self) -> None:
        try:
            if self._fd < 0:
                self._fd, self._path = self._files.make(".pack")
            write_all(self._fd, self._buffer, self._flushed)
            if self._flushed + len(self._buffer) - self._synced >= _SYNC_EVERY:
                self._alive()
                os.fdatasync(self._fd)
                self._synced = self._flushed + len(self._buffer)
        except OSError as error:
            raise failed(f"cannot write a pack in {self._tmp_dir}", error) from error
        self._flushed += len(self._buffer)
        self._buffer.clear()
        self._alive()

    def _truncate(self, size: int) -> None:
        """Back to *size* bytes. What lies behind in the file is overwritten, or cut off in the end."""
        if size >= self._flushed:
            del self._buffer[size - self._flushed :]
        else:
            self._buffer.clear()
            self._flushed = size
            self._synced = min(self._synced, size)

    def _finish(self, beside: Sequence[int]) -> KeptPack:
        header = _header(len(self._entries))
        if self._fd < 0:
            self._buffer[: len(header)] = header
            checksum = hashlib.sha1(self._buffer, usedforsecurity=False).digest()
            self._buffer += checksum
            self._flush()
        else:
            self._flush()
            os.pwrite(self._fd, header, 0)
            checksum = self._hash_file()
            self._buffer += checksum
            self._flush()
        os.ftruncate(self._fd, self._flushed)
        os.fchmod(self._fd, 0o444)
        index_fd, index_path = self._files.make(".idx")
        try:
            write_all(index_fd, index_v2(self._entries, checksum), 0)
            os.fchmod(index_fd, 0o444)
            self._alive()
            self._sync((self._fd, index_fd, *beside))
            return self._publish(checksum, index_path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(index_path)
            os.close(index_fd)

    def _hash_file(self) -> bytes:
        digest = hashlib.sha1(usedforsecurity=False)
        position = 0
        while position < self._flushed:
            piece = os.pread(self._fd, min(_COPY, self._flushed - position), position)
            if not piece:
                raise StoreError(f"{self._path} became shorter while it was written")
            digest.update(piece)
            position += len(piece)
            self._alive()
        return digest.digest()

    def _publish(self, checksum: bytes, index_path: str) -> KeptPack:
        pack_dir = os.path.join(self._objects_dir, "pack")
        with contextlib.suppress(FileExistsError):
            os.mkdir(pack_dir)
            fsync_dir(self._objects_dir)
        base = os.path.join(pack_dir, f"pack-{checksum.hex()}")
        kept = KeptPack(base + ".pack", self._keeper.put(base + ".keep"), len(self._entries), self._flushed)
        try:
            os.rename(self._path, base + ".pack")
            try:
                os.rename(index_path, base + ".idx")
            except BaseException:
                if not os.path.exists(base + ".idx"):
                    os.unlink(base + ".pack")
                raise
            fsync_dir(pack_dir)
        except BaseException:
            kept.release()
            raise
        return kept


def _header(count: int) -> bytes:
    return struct.pack(">4sII", b"PACK", 2, count)


def blob_oid(data: bytes) -> Oid:
    """What git calls a blob of *data*."""
    digest = _digest(BLOB, len(data)).copy()
    digest.update(data)
    return digest.digest()


@lru_cache(1024)
def _digest(kind: int, size: int) -> hashlib._Hash:
    """What names an object, before its bytes; to be copied."""
    return hashlib.sha1(b"%b %d\0" % (KIND_NAMES[kind], size), usedforsecurity=False)


@lru_cache(1024)
def _entry_header(kind: int, size: int) -> bytes:
    byte = (kind << 4) | (size & 15)
    size >>= 4
    out = bytearray()
    while size:
        out.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    out.append(byte)
    return bytes(out)


def index_v2(entries: dict[Oid, tuple[int, int]], checksum: bytes) -> bytes:
    """The index (version 2) of a pack with *entries* (oid -> offset, crc32)."""
    oids = sorted(entries)
    counts = [0] * 256
    for oid in oids:
        counts[oid[0]] += 1
    total = len(oids)
    places = [entries[oid] for oid in oids]
    long_offsets: list[int] = []
    offsets = []
    for offset, _ in places:
        if offset >= 0x80000000:
            offsets.append(0x80000000 | len(long_offsets))
            long_offsets.append(offset)
        else:
            offsets.append(offset)
    body = b"".join(
        (
            b"\377tOc\0\0\0\2",
            struct.pack(">256I", *accumulate(counts)),
            b"".join(oids),
            struct.pack(f">{total}I", *[crc for _, crc in places]),
            struct.pack(f">{total}I", *offsets),
            struct.pack(f">{len(long_offsets)}Q", *long_offsets),
            checksum,
        )
    )
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def temporary_files(directory: str) -> NewFiles:
    """Where packs and indexes in *directory* begin. `clear_stale_temps` knows them."""
    return NewFiles(directory, TEMP_PREFIX, 0o644)


def clear_stale_keeps(pack_dir: str) -> int:
    """Remove `.keep` files that a caiafs process left behind; how many. Others' are never touched."""
    try:
        names = os.listdir(pack_dir)
    except FileNotFoundError:
        return 0
    removed = 0
    for name in names:
        if name.endswith(".keep"):
            path = os.path.join(pack_dir, name)
            removed += _remove_unlocked(path, KEEP_PREFIX)
    return removed


def clear_stale_temps(tmp_dir: str) -> int:
    """Remove temporary pack files whose writer is gone; how many."""
    try:
        names = os.listdir(tmp_dir)
    except FileNotFoundError:
        return 0
    names = [name for name in names if name.startswith(TEMP_PREFIX)]
    return sum(_remove_unlocked(os.path.join(tmp_dir, name), b"") for name in names)


def _remove_unlocked(path: str, prefix: bytes) -> bool:
    """Remove *path* if it starts with *prefix* and no living process holds its lock."""
    try:
        writable = os.access(path, os.W_OK)  # over NFS only a writable descriptor can be locked
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not os.read(fd, 64).startswith(prefix):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
