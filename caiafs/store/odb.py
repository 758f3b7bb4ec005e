"""The object directory: where an object is, and its bytes.

One reader for loose and packed objects, deltas, alternates and multi-pack-indexes, used by
Store for everything it reads. dulwich has readers, too; they were measured and not chosen:
they hold three copies of a blob in memory, refuse loose objects over 512 MiB, keep four file
descriptors per pack, and cannot tell a size without inflating. What dulwich does well, applying
deltas, is used here.

Other processes repack at any time. The rules that make that harmless:
- an open file stays readable after its name is gone, so readers keep a reference to it;
- a pack that cannot be opened any more is forgotten and the object looked up again;
- an object is missing only when known packs, loose files, and a fresh look at the pack
  directories all say so, and the pack directories did not change meanwhile.

Safe to use from several threads: lookups read immutable tuples; the lock guards only replacing them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta
from isal import isal_zlib

from caiafs.errors import ObjectCorrupt, ObjectMissing, StoreError
from caiafs.store.disk import File, failed
from caiafs.store.objects import KINDS, Oid
from caiafs.store.packindex import MultiPackIndex, PackIndex

T = TypeVar("T")

OFS_DELTA, REF_DELTA = 6, 7
STEP = 256 * 1024  # bytes inflated at a time
_HEADER_READ = 512  # deflate may spend 300 bytes on its tables before the first byte comes out
_FIRST_READ = 4096  # most small objects come with one pread
_OPEN_PACKS = 48  # pack files kept open per store
_MAPPED_INDEXES = 256
_BASE_CACHE = 8 * 1024 * 1024  # bytes of delta bases kept
_SETTLED = 2_000_000_000  # ns after which a directory's mtime can be trusted to show the next change
_LOOKUPS = 8
WHOLE_LIMIT = 128 * 1024 * 1024
"""Objects beyond this are not inflated in memory: a tree of it has more than two million entries."""
_CHAIN_LIMIT = 5000  # deltas in a row; git makes no more than 4095
_DELTAS_LIMIT = 256 * 1024 * 1024  # bytes of deltas that wait for their base
_LOOK_AGAIN = 2.0  # s between looks at the pack directories, so that packs that are gone free their space

InflateError = (cast("type[Exception]", isal_zlib.IsalError), zlib.error)


class GoneError(Exception):
    """A pack or loose file vanished between lookup and open: look again. Never leaves this package."""


class Pack:
    """A pack by name; its index and its file are opened when first needed."""

    __slots__ = ("_file", "_index", "base", "name")

    def __init__(self, directory: str, name: str) -> None:
        self.name = name  # pack-<hash>
        self.base = os.path.join(directory, "pack", name)
        self._index: PackIndex | None = None
        self._file: File | None = None

    def index(self) -> PackIndex:
        index = self._index
        if index is None:
            try:
                index = self._index = PackIndex(self.base + ".idx")
            except FileNotFoundError:
                raise GoneError(self.base) from None
        return index

    def file(self) -> File:
        file = self._file
        if file is None:
            try:
                file = self._file = File(self.base + ".pack")
            except FileNotFoundError:
                raise GoneError(self.base) from None
        return file

    @property
    def is_open(self) -> bool:
        return self._file is not None

    @property
    def is_mapped(self) -> bool:
        return self._index is not None and self._index.mapped

    def drop_file(self) -> None:
        self._file = None

    def drop_index(self) -> None:
        self._index = None


class _Directory:
    """One objects directory and what was last seen in its pack folder. Replaced whole, never changed."""

    __slots__ = ("by_name", "midx", "midx_stat", "path", "seen_mtime", "settled", "unlisted")

    def __init__(self, path: str, old: _Directory | None) -> None:
        self.path = path
        pack_dir = os.path.join(path, "pack")
        self.seen_mtime = _mtime(pack_dir)
        self.settled = time.time_ns() - self.seen_mtime > _SETTLED
        try:
            names = set(os.listdir(pack_dir))
        except FileNotFoundError:
            names = set()
        self.by_name: dict[str, Pack] = {}
        for file_name in names:
            if file_name.endswith(".idx") and file_name.startswith("pack-"):
                name = file_name[:-4]
                if name + ".pack" in names:
                    known = old.by_name.get(name) if old else None
                    self.by_name[name] = known or Pack(path, name)
        self.midx: MultiPackIndex | None = None
        self.midx_stat: tuple[int, ...] = ()
        if "multi-pack-index" in names:
            self._load_midx(os.path.join(pack_dir, "multi-pack-index"), old)
        covered: set[str] = set()
        if self.midx is not None:
            covered = set(self.midx.packs)
            if not covered <= self.by_name.keys():  # names a pack that is gone: whatever it says may be old
                self.midx, covered = None, set()
        self.unlisted = tuple(pack for name, pack in self.by_name.items() if name not in covered)

    def _load_midx(self, path: str, old: _Directory | None) -> None:
        try:
            st = os.stat(path)
            self.midx_stat = (st.st_ino, st.st_size, st.st_mtime_ns)
            if old is not None and old.midx_stat == self.midx_stat:
                self.midx = old.midx
            else:
                self.midx = MultiPackIndex(path)
        except (FileNotFoundError, StoreError):
            self.midx = None  # damaged or gone: the packs' own indexes hold the same

    def changed(self) -> bool:
        return not self.settled or _mtime(os.path.join(self.path, "pack")) != self.seen_mtime


def _with_alternates(objects_dir: str) -> list[str]:
    """The objects directory and those it borrows from (objects/info/alternates, transitively), each once."""
    found = [objects_dir]
    seen = {os.path.realpath(objects_dir)}
    for path in found:
        try:
            with open(os.path.join(path, "info", "alternates"), "rb") as file:
                lines = file.read().split(b"\n")
        except OSError:  # what is not there or may not be read lends nothing, as in git
            continue
        for line in lines:
            name = _unquoted(line)
            if not name or line.startswith(b"#") or b"\0" in name:
                continue
            other = os.path.normpath(os.path.join(path, os.fsdecode(name)))
            real = os.path.realpath(other)
            if real not in seen and os.path.isdir(real):
                seen.add(real)
                found.append(other)
    return found


_ESCAPE = re.compile(rb'\\([0-3][0-7]{2}|[abfnrtv"\\])')
_ESCAPED = dict(zip(b'abfnrtv"\\', b'\a\b\f\n\r\t\v"\\', strict=True))


def _unquoted(line: bytes) -> bytes:
    """git quotes an unusual path as C does; b"" for what is not quoted well, which git passes over, too."""
    if not (line.startswith(b'"') and line.endswith(b'"') and len(line) >= 2):
        return line
    text = line[1:-1]
    if b"\\" in _ESCAPE.sub(b"", text):
        return b""
    return _ESCAPE.sub(lambda m: bytes((int(m[1], 8) if len(m[1]) == 3 else _ESCAPED[m[1][0]],)), text)


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


class Packed(NamedTuple):
    """An object's place in a pack; *file* stays readable whatever happens to its name."""

    pack: Pack
    file: File
    offset: int


class Loose(NamedTuple):
    """A loose object's file."""

    file: File


Place = Packed | Loose


class Header(NamedTuple):
    """A pack entry's header; *at* is where its deflated data starts."""

    kind: int
    size: int
    at: int
    base_offset: int = 0
    base_oid: bytes = b""


class ObjectDatabase:
    """All objects of a repository, alternates included."""

    def __init__(self, objects_dir: str) -> None:
        self.path = objects_dir
        self._lock = threading.Lock()
        self._directories: tuple[_Directory, ...] = ()
        self._recent: Pack | None = None
        self._open: OrderedDict[str, Pack] = OrderedDict()
        self._mapped: OrderedDict[str, Pack] = OrderedDict()
        self._bases: OrderedDict[tuple[str, int], tuple[int, bytes]] = OrderedDict()
        self._bases_size = 0
        self._damaged_index: StoreError | None = None
        self._closed = False
        self._look_again = 0.0
        self._refresh()

    def close(self) -> None:
        """Let go of every file; objects held by readers stay readable."""
        with self._lock:
            self._closed = True
            self._directories = ()
            self._recent = None
            self._open.clear()
            self._mapped.clear()
            self._bases.clear()
            self._bases_size = 0

    # --- where

    def locate(self, oid: Oid) -> Place:
        """Where *oid* is, its file open; ObjectMissing when it is nowhere."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_AGAIN
            if self._changed():
                self._refresh(force=True)
        for _ in range(_LOOKUPS):
            try:
                place = self._find_packed(oid) or self._find_loose(oid)
                if place is not None:
                    return place
                if self._refresh():
                    place = self._find_packed(oid)
                place = place or self._find_loose(oid)
                if place is not None:
                    return place
                if not self._changed():
                    break
            except GoneError:
                self._refresh(force=True)
            except OSError as error:
                raise failed(f"cannot look up object {oid.hex()}", error) from error
        if self._closed:
            raise StoreError("the repository is closed")
        if not os.path.isdir(self.path):
            raise StoreError(f"{self.path} is not there: the repository was moved away, or its disk is gone")
        if self._damaged_index is not None:
            raise ObjectMissing(f"object {oid.hex()} is not in {self.path}, and {self._damaged_index}")
        raise ObjectMissing(f"object {oid.hex()} is not in {self.path}; git fsck shows what else is missing")

    def has(self, oid: Oid) -> bool:
        """Whether it is there now; a pack whose name is gone does not count, though it may still be open."""
        if self._changed():
            self._refresh(force=True)
        try:
            self.locate(oid)
        except ObjectMissing:
            return False
        return True

    def _find_packed(self, oid: Oid) -> Packed | None:
        recent = self._recent
        if recent is not None:
            found = self._find_in(recent, oid)
            if found is not None:
                return found
        for directory in self._directories:
            if directory.midx is not None:
                hit = directory.midx.find(oid)
                if hit is not None:
                    pack = directory.by_name[hit[0]]
                    return Packed(pack, self._file(pack), hit[1])
            for pack in directory.unlisted:
                if pack is not recent:
                    found = self._find_in(pack, oid)
                    if found is not None:
                        self._recent = pack
                        return found
        return None

    def _find_in(self, pack: Pack, oid: Oid) -> Packed | None:
        fresh = not pack.is_mapped
        try:
            offset = pack.index().find(oid)
        except StoreError as error:  # the objects in other packs are still fine
            self._damaged_index = error
            return None
        if fresh and pack.is_mapped:
            self._note_mapped(pack)
        return None if offset < 0 else Packed(pack, self._file(pack), offset)

    def _file(self, pack: Pack) -> File:
        """The pack's file; the least recently opened ones are let go beyond _OPEN_PACKS."""
        if pack.is_open:
            return pack.file()
        file = pack.file()
        with self._lock:
            self._open[pack.base] = pack
            if len(self._open) > _OPEN_PACKS:
                self._open.popitem(last=False)[1].drop_file()
        return file

    def _note_mapped(self, pack: Pack) -> None:
        with self._lock:
            self._mapped[pack.base] = pack
            if len(self._mapped) > _MAPPED_INDEXES:
                self._mapped.popitem(last=False)[1].drop_index()

    def _find_loose(self, oid: Oid) -> Loose | None:
        name = oid.hex()
        for directory in self._directories:
            try:
                return Loose(File(f"{directory.path}/{name[:2]}/{name[2:]}"))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failed(f"cannot read loose object {name}", error) from error
        return None

    def _changed(self) -> bool:
        """Whether a pack directory changed since it was listed (here an unsettled mtime does not count)."""
        return any(_mtime(os.path.join(d.path, "pack")) != d.seen_mtime for d in self._directories)

    def _refresh(self, force: bool = False) -> bool:
        """Look at the pack directories again where they may have changed; True if one was listed."""
        with self._lock:
            if self._closed:
                return False
            old = {directory.path: directory for directory in self._directories}
            if not force and old and not any(directory.changed() for directory in self._directories):
                return False
            directories = []
            for path in _with_alternates(self.path):
                known = old.get(path)
                directories.append(_Directory(path, known))
            self._directories = tuple(directories)
            self._damaged_index = None
            live = {pack.base for directory in directories for pack in directory.by_name.values()}
            for table in (self._open, self._mapped):
                for base in [base for base in table if base not in live]:
                    del table[base]
            if self._recent is not None and self._recent.base not in live:
                self._recent = None
            return True

    def rescan(self) -> None:
        """See packs that were just added or removed by this process."""
        self._refresh(force=True)

    def local_packs(self) -> list[Pack]:
        """The packs of the repository itself, without alternates."""
        self._refresh()
        return list(self._directories[0].by_name.values()) if self._directories else []

    def local_midx_packs(self) -> tuple[str, ...]:
        """Names of the packs that the repository's multi-pack-index covers."""
        midx = self._directories[0].midx if self._directories else None
        return midx.packs if midx is not None else ()

    @property
    def has_alternates(self) -> bool:
        return len(self._directories) > 1

    # --- whole objects

    def read(self, oid: Oid, limit: int = WHOLE_LIMIT) -> tuple[int, bytes]:
        """(kind, content), whole in memory, verified; a damaged copy is passed over for another.

        ObjectCorrupt for an object that says it is larger than *limit*: no byte of it is inflated.
        """

        def read_verified(oid: Oid, place: Place) -> tuple[int, bytes]:
            return self._read_verified(oid, place, limit)

        try:
            return self.retry(oid, read_verified)
        except ObjectCorrupt:
            for place in self._every_place(oid):
                with contextlib.suppress(StoreError, OSError, GoneError):
                    return self._read_verified(oid, place, limit)
            raise

    def _every_place(self, oid: Oid) -> Iterator[Place]:
        for directory in self._directories:
            for pack in directory.by_name.values():
                with contextlib.suppress(GoneError, OSError):
                    found = self._find_in(pack, oid)
                    if found is not None:
                        yield found
        loose = self._find_loose(oid)
        if loose is not None:
            yield loose

    def _read_verified(self, oid: Oid, place: Place, limit: int) -> tuple[int, bytes]:
        if isinstance(place, Loose):
            kind, data = read_loose(oid, place.file, limit)
        else:
            kind, data = self._read_packed(oid, place, limit)
        name = _KIND_PREFIX.get(kind)
        if name is None:
            raise ObjectCorrupt(f"object {oid.hex()} is of unknown kind {kind}")
        digest = hashlib.sha1(b"%b %d\0" % (name, len(data)), usedforsecurity=False)
        digest.update(data)
        if digest.digest() != oid:
            raise ObjectCorrupt(f"object {oid.hex()} does not match its name: its content was damaged")
        return kind, data

    def retry(self, oid: Oid, read: Callable[[Oid, Place], T]) -> T:
        """`read(oid, place)`, again with a fresh lookup when a file vanished in between."""
        for _ in range(_LOOKUPS):
            try:
                return read(oid, self.locate(oid))
            except GoneError:
                self._refresh(force=True)
            except OSError as error:
                raise failed(f"cannot read object {oid.hex()}", error) from error
        raise ObjectMissing(f"object {oid.hex()} keeps moving in {self.path}; try again")

    def _read_packed(self, oid: Oid, place: Packed, limit: int) -> tuple[int, bytes]:
        """Follow the deltas to their base, then apply them from there: a loop, however long the chain."""
        deltas: list[tuple[Packed, bytes]] = []
        waiting = 0
        chain = Chain(oid)
        kind, data = 0, b""
        while True:
            cached = self._cached_base(place) if deltas else None
            if cached is not None:
                kind, data = cached
                break
            header, content = read_entry(oid, place, limit)
            if header.kind not in (OFS_DELTA, REF_DELTA):
                kind, data = header.kind, content
                if deltas:
                    self._cache_base(place, kind, data)
                break
            chain.add(place)
            waiting += len(content)
            if waiting > _DELTAS_LIMIT:
                raise ObjectCorrupt(f"object {oid.hex()} needs more deltas than memory has room for")
            deltas.append((place, content))
            if header.kind == OFS_DELTA:
                place = Packed(place.pack, place.file, header.base_offset)
                continue
            base = self.locate_base(place, header.base_oid)
            if isinstance(base, Loose):
                kind, data = read_loose(header.base_oid, base.file, limit)
                break
            place = base
        while deltas:
            place, delta = deltas.pop()
            data = _applied(oid, data, delta, limit)
            if deltas:
                self._cache_base(place, kind, data)
        return kind, data

    def locate_base(self, place: Packed, oid: Oid) -> Place:
        """A REF_DELTA's base: nearly always in the same pack, which may have lost its name already."""
        try:
            offset = place.pack.index().find(oid)
        except GoneError:
            offset = -1
        if offset >= 0:
            return Packed(place.pack, place.file, offset)
        return self.locate(oid)

    def _cached_base(self, place: Packed) -> tuple[int, bytes] | None:
        key = (place.pack.base, place.offset)
        with self._lock:
            found = self._bases.get(key)
            if found is not None:
                self._bases.move_to_end(key)
            return found

    def _cache_base(self, place: Packed, kind: int, data: bytes) -> None:
        if len(data) > _BASE_CACHE // 4:
            return
        key = (place.pack.base, place.offset)
        with self._lock:
            if self._closed or key in self._bases:
                return
            self._bases[key] = (kind, data)
            self._bases_size += len(data)
            while self._bases_size > _BASE_CACHE:
                _, (_, old) = self._bases.popitem(last=False)
                self._bases_size -= len(old)

    # --- sizes

    def blob_size(self, oid: Oid) -> int:
        """The blob's size from its header alone: about 10 microseconds."""
        return self.retry(oid, _size_at)


class Chain:
    """The deltas between an object and its base: as many as git makes at most, and none twice."""

    def __init__(self, oid: Oid) -> None:
        self._oid = oid
        self._seen: set[tuple[str, int]] = set()

    def add(self, place: Packed) -> None:
        """One more. Raises ObjectCorrupt for a delta that leads to itself, and for too many."""
        key = (place.pack.base, place.offset)
        if key in self._seen:
            raise ObjectCorrupt(f"object {self._oid.hex()} is a delta of itself")
        self._seen.add(key)
        if len(self._seen) > _CHAIN_LIMIT:
            raise ObjectCorrupt(f"object {self._oid.hex()} is made of more than {_CHAIN_LIMIT:,} deltas")


def _applied(oid: Oid, base: bytes, delta: bytes, limit: int) -> bytes:
    needed, at = delta_size(oid, delta, 0)
    size, _ = delta_size(oid, delta, at)
    _refuse_beyond(oid, size, limit)
    if needed != len(base):
        raise ObjectCorrupt(f"object {oid.hex()} has a delta for another base")
    try:
        return b"".join(apply_delta(base, delta))
    except (ApplyDeltaError, ValueError, IndexError) as error:
        raise ObjectCorrupt(f"object {oid.hex()} has a damaged delta: {error}") from error


def _refuse_beyond(oid: Oid, size: int, limit: int) -> None:
    if size > limit:
        raise ObjectCorrupt(
            f"object {oid.hex()} says that it is {size:,} bytes long; {limit:,} are taken here"
        )


def _size_at(oid: Oid, place: Place) -> int:
    if isinstance(place, Loose):
        kind, size, _ = loose_header(oid, place.file.read_at(_HEADER_READ, 0))
    else:
        raw = place.file.read_at(_HEADER_READ, place.offset)
        header = entry_header(oid, raw, place.offset)
        kind, size = header.kind, header.size
        if kind in (OFS_DELTA, REF_DELTA):
            start = header.at - place.offset
            try:
                head = zlib.decompressobj().decompress(raw[start:], 24)
            except zlib.error as error:
                raise ObjectCorrupt(f"object {oid.hex()} is damaged in its pack: {error}") from error
            _, at = delta_size(oid, head, 0)
            size, _ = delta_size(oid, head, at)
            kind = 3
    if kind != 3:
        raise ObjectCorrupt(f"object {oid.hex()} is used as a file, but is none")
    return size


_KIND_PREFIX = {kind: name for name, kind in KINDS.items()}


def entry_header(oid: Oid, raw: bytes, offset: int) -> Header:
    """The header of the pack entry that starts with *raw*, at *offset* of its pack."""
    try:
        byte = raw[0]
        kind, size = (byte >> 4) & 7, byte & 15
        at, shift = 1, 4
        while byte & 0x80:
            byte = raw[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
        if kind == OFS_DELTA:
            byte = raw[at]
            at += 1
            back = byte & 0x7F
            while byte & 0x80:
                byte = raw[at]
                at += 1
                back = ((back + 1) << 7) | (byte & 0x7F)
            if not 0 < back < offset:
                raise ObjectCorrupt(f"object {oid.hex()} has a delta base outside its pack")
            return Header(kind, size, offset + at, base_offset=offset - back)
        if kind == REF_DELTA:
            return Header(kind, size, offset + at + 20, base_oid=raw[at : at + 20])
    except IndexError:
        raise ObjectCorrupt(f"object {oid.hex()} is cut off in its pack") from None
    if kind not in _KIND_PREFIX:
        raise ObjectCorrupt(f"object {oid.hex()} has an unknown kind in its pack")
    return Header(kind, size, offset + at)


def delta_size(oid: Oid, delta: bytes, at: int) -> tuple[int, int]:
    """One of the two sizes a delta starts with, and where it ends."""
    size = shift = 0
    while True:
        if at >= len(delta):
            raise ObjectCorrupt(f"object {oid.hex()} has a damaged delta")
        byte = delta[at]
        at += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return size, at


def loose_header(oid: Oid, raw: bytes) -> tuple[int, int, int]:
    """(kind, size, length of the inflated header) from a loose file's first bytes."""
    try:
        head = zlib.decompressobj().decompress(raw, 64)
    except zlib.error as error:
        raise ObjectCorrupt(f"loose object {oid.hex()} is damaged: {error}") from error
    end = head.find(b"\0")
    word, _, digits = head[:end].partition(b" ")
    if end < 0 or word not in KINDS or not digits.isdigit():
        raise ObjectCorrupt(f"loose object {oid.hex()} has no header")
    return KINDS[word], int(digits), end + 1


def read_loose(oid: Oid, file: File, limit: int = WHOLE_LIMIT) -> tuple[int, bytes]:
    """A whole loose object; its hash is the caller's to check."""
    kind, size, start = loose_header(oid, file.read_at(_HEADER_READ, 0))
    _refuse_beyond(oid, size, limit)
    if file.size > 2 * size + _HEADER_READ:
        raise ObjectCorrupt(f"loose object {oid.hex()} is followed by what does not belong to it")
    raw = file.read_at(file.size, 0)
    while len(raw) < file.size:  # one pread(2) gives 2 GiB at most
        more = file.read_at(file.size - len(raw), len(raw))
        if not more:
            break
        raw += more
    inflater = isal_zlib.decompressobj()
    try:
        data = inflater.decompress(raw, start + size + 1)
    except InflateError as error:
        raise ObjectCorrupt(f"loose object {oid.hex()} is damaged: {error}") from error
    if not inflater.eof or len(data) - start != size:
        raise ObjectCorrupt(f"loose object {oid.hex()} is cut off or too long")
    return kind, data[start:]


def read_entry(oid: Oid, place: Packed, limit: int = WHOLE_LIMIT) -> tuple[Header, bytes]:
    """One pack entry, inflated, deltas not applied."""
    raw = place.file.read_at(_FIRST_READ, place.offset)
    header = entry_header(oid, raw, place.offset)
    _refuse_beyond(oid, header.size, limit)
    start = header.at - place.offset
    inflater = isal_zlib.decompressobj()
    pieces: list[bytes] = []
    total = 0
    position = place.offset + len(raw)
    chunk = raw[start:]
    try:
        while True:
            piece = inflater.decompress(chunk, header.size + 1 - total)
            pieces.append(piece)
            total += len(piece)
            if inflater.eof or total > header.size:
                break
            chunk = place.file.read_at(min(STEP, max(_FIRST_READ, header.size)), position)
            if not chunk:
                break
            position += len(chunk)
    except InflateError as error:
        raise ObjectCorrupt(f"object {oid.hex()} is damaged in {place.pack.base}.pack: {error}") from error
    if not inflater.eof or total != header.size:
        raise ObjectCorrupt(f"object {oid.hex()} is cut off or too long in {place.pack.base}.pack")
    return header, pieces[0] if len(pieces) == 1 else b"".join(pieces)
