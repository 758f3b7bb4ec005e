"""What reads bytes from elsewhere, as functions of bytes: each may refuse, in one way, and nothing else.

`TARGETS` are run by tests/unit/test_fuzz.py with what Hypothesis thinks of, and by run.py beside this
module with what coverage leads to. A target raises whatever it is not allowed to: that is a finding.
`SEEDS` gives each a few good inputs, from which both begin.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from caiafs.config import Config
from caiafs.control.server import _request
from caiafs.errors import CaiafsError, JournalDamaged, JournalError, ObjectCorrupt, StoreError, UsageError
from caiafs.journal import Journal
from caiafs.journal.segment import Header, encode_header, name_of
from caiafs.mount.preflight import read_lock
from caiafs.records import (
    NO_OID,
    Adopt,
    AdoptEntry,
    BadRecord,
    Committed,
    Create,
    Link,
    Name,
    Remove,
    Rename,
    SetAttr,
    SetXattr,
    Synced,
    Write,
    decode,
    encode,
)
from caiafs.records.side import (
    Meta,
    SideRecord,
    decode_meta,
    decode_records,
    encode_meta,
    encode_record,
    parse_side_message,
    quote_name,
    side_message,
    split_records,
    unquote_name,
)
from caiafs.store.blobs import Spool, _patched
from caiafs.store.disk import File
from caiafs.store.names import storable_content, storable_entry
from caiafs.store.objects import (
    encode_commit,
    graft_unfit,
    parse_commit,
    parse_tag,
    parse_tree,
    patch_tree,
    unfit_entries,
)
from caiafs.store.odb import Loose, Pack, Packed, _applied, _size_at, _with_alternates, read_entry, read_loose
from caiafs.store.pack import index_v2
from caiafs.store.packindex import MultiPackIndex, PackIndex
from caiafs.store.refs import Refs

OID = b"\x11" * 20
PLACE = os.environ.get("CAIAFS_FUZZ_PLACE") or tempfile.mkdtemp(
    prefix="caiafs-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
)


def clean_up() -> None:
    """Take away what the targets wrote."""
    shutil.rmtree(PLACE, ignore_errors=True)


def _file(name: str, data: bytes) -> str:
    path = os.path.join(PLACE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(data)
    return path


# ---- the journal


def record(data: bytes) -> None:
    """What decodes is what its encoding decodes to."""
    with suppress(BadRecord):
        found, end = decode(memoryview(data), 0)
        assert 0 < end <= len(data)
        again, _ = decode(memoryview(b"".join(encode(found))), 0)
        assert again == found


class BytesDisk:
    """A disk that is a dictionary: thousands of journals a second."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {name: bytearray(data) for name, data in files.items()}
        self._fds: dict[int, bytearray] = {}

    def open(self, path: str, *, create: bool) -> int:
        name = os.path.basename(path)
        if create == (name in self.files):
            raise OSError(errno.EEXIST if create else errno.ENOENT, name)
        fd = len(self._fds) + 1000
        self._fds[fd] = self.files.setdefault(name, bytearray())
        return fd

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        self._fds[fd] += b"".join(buffers)
        return sum(map(len, buffers))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._fds[fd][offset : offset + length])

    def size(self, fd: int) -> int:
        return len(self._fds[fd])

    def truncate(self, fd: int, length: int) -> None:
        del self._fds[fd][length:]

    def sync(self, fd: int) -> None: ...
    def start_sync(self, fd: int) -> None: ...
    def finish_sync(self) -> None: ...
    def close(self, fd: int) -> None: ...
    def sync_directory(self, directory: str) -> None: ...

    def unlink(self, path: str) -> None:
        del self.files[os.path.basename(path)]

    def rename(self, old: str, new: str) -> None:
        self.files[os.path.basename(new)] = self.files.pop(os.path.basename(old))

    def list(self, directory: str) -> list[str]:
        return list(self.files)


def journal(data: bytes) -> None:
    """A replay ends, refuses by name, and comes to the same the second time."""
    files, position = {}, 0
    for piece in data.split(b"|SEGMENT|")[:4]:
        shift = piece[:1]
        if shift in (b"+", b"-") and position:
            position += 1 if shift == b"+" else -1
        files[name_of(position)] = piece
        position += len(piece)
    disk = BytesDisk(files)
    try:
        first = _replay(disk)
    except (JournalDamaged, JournalError):
        assert {name: bytes(data) for name, data in disk.files.items()} == files
        return
    assert _replay(disk) == first
    kept = sum(map(len, disk.files.values()))
    assert kept <= sum(map(len, files.values()))


def _replay(disk: BytesDisk) -> list[tuple[Any, int]]:
    opened = Journal("/d", disk)
    return [(found._replace(data=bytes(found.data)) if isinstance(found, Write) else found, at)
            for found, at in opened.replay(0)]  # fmt: skip


# ---- metadata


def side(data: bytes) -> None:
    """Buckets decode to what encodes to them; quoting is undone by unquoting."""
    with suppress(BadRecord):
        found = decode_records(data)
        assert b"".join(map(encode_record, found)) == data
        assert set(split_records(data)) == {one.name for one in found}
    with suppress(BadRecord):
        split_records(data)
    with suppress(BadRecord):
        meta = decode_meta(data)
        assert decode_meta(encode_meta(meta)) == meta
    with suppress(BadRecord):
        _, journal_id, position = parse_side_message(data)
        assert len(journal_id) == 16
        assert position >= 0
    assert unquote_name(quote_name(data)) == data


# ---- git's objects


def tree(data: bytes) -> None:
    """Whatever is no tree is refused; a change of one name touches nothing else."""
    try:
        entries, unfit = parse_tree(data, OID), unfit_entries(data, OID)
    except ObjectCorrupt:
        return
    names = {entry.name for entry in entries}
    assert len(names) == len(entries)
    assert names.isdisjoint(one.name for one in unfit)
    assert all(name and b"/" not in name and name not in (b".", b"..") and len(name) < 256 for name in names)
    patched = patch_tree(data, {b"patched": (0o100644, OID)})
    assert {e for e in parse_tree(patched, OID) if e.name != b"patched"} == {
        entry for entry in entries if entry.name != b"patched"
    }
    assert sorted(unfit_entries(patched, OID)) == sorted(unfit)
    assert unfit_entries(graft_unfit(data, b""), OID) == []
    assert sorted(unfit_entries(graft_unfit(b"", data), OID)) == sorted(unfit)


def commit(data: bytes) -> None:
    """Commits and tags."""
    with suppress(ObjectCorrupt):
        found = parse_commit(data, OID)
        assert len(found.tree) == 20
        assert abs(found.time) < 10**18
    with suppress(ObjectCorrupt):
        assert len(parse_tag(data, OID)[0]) == 20


def delta(data: bytes) -> None:
    """Two ways to apply a delta, in memory and streamed, come to the same."""
    cut = data[0] if data else 0
    base, instructions = data[1 : 1 + cut], data[1 + cut :]
    try:
        whole: bytes | None = _applied(OID, base, instructions, 1 << 20)
    except ObjectCorrupt:
        whole = None
    spool = Spool(PLACE)
    spool.append(base)
    streamed: bytes | None
    try:
        size, pieces = _patched(
            OID, spool, iter([instructions[n : n + 3] for n in range(0, len(instructions), 3)])
        )
        streamed = b"".join(pieces) if size <= 1 << 20 else None
    except ObjectCorrupt:
        streamed = None
    if streamed is None and whole is not None:
        assert len(whole) < len(instructions) + len(base) * 100  # dulwich overlooks what follows an end
        return
    assert whole == streamed, (whole, streamed)


def objects(data: bytes) -> None:
    """A pack entry and a loose object, by every reader."""
    place = Packed(Pack(PLACE, "x"), File(_file("x.pack", b"PACK" + bytes(8) + data)), 12)
    for read in (lambda: read_entry(OID, place), lambda: _size_at(OID, place)):
        with suppress(ObjectCorrupt):
            read()
    file = File(_file("loose", data))
    for read in (lambda: read_loose(OID, file), lambda: _size_at(OID, Loose(file))):
        with suppress(ObjectCorrupt):
            read()


def index(data: bytes) -> None:
    """Indexes of packs, of both versions."""
    with suppress(StoreError):
        found = PackIndex(_file("x.idx", data))
        for oid in (OID, bytes(20), b"\xff" * 20):
            assert found.find(oid) >= -1
        if found.count < 1000:
            assert len(list(found.entries())) == found.count


def midx(data: bytes) -> None:
    """Multi-pack-indexes."""
    with suppress(StoreError):
        found = MultiPackIndex(_file("midx", data))
        for oid in (OID, bytes(20), b"\xff" * 20):
            found.find(oid)


def refs(data: bytes) -> None:
    """packed-refs and loose refs."""
    _file("refs/heads/main", data)
    _file("packed-refs", b"")
    for _ in range(2):
        found = Refs(PLACE, False)
        for name in (b"refs/heads/main", b"refs/heads/other"):
            with suppress(StoreError):
                oid = found.read(name)
                assert oid is None or len(oid) == 20
            found.signature(name)
        os.unlink(os.path.join(PLACE, "refs/heads/main"))
        _file("packed-refs", data)
        _file("refs/heads/main", b"0" * 40)


def alternates(data: bytes) -> None:
    """objects/info/alternates."""
    _file("objects/info/alternates", data)
    with suppress(StoreError):
        assert _with_alternates(os.path.join(PLACE, "objects"))[0].endswith("objects")


def names(data: bytes) -> None:
    """What git takes into a tree."""
    for name in (data, b".gitmodules", b".gitattributes", b".GITMODULES:x"):
        for mode in (0o100644, 0o040000, 0o120000):
            storable_entry(name, mode)
        storable_content(name, data)


# ---- people and programs


def options(data: bytes) -> None:
    """The words of -o, and of a settings file."""
    text = os.fsdecode(data)
    with suppress(UsageError):
        Config.load("/r", "/m", [text], {})
    with suppress(UsageError):
        Config.load("/r", "/m", [], {"CAIAFS_MEMORY": text.replace("\0", ""), "PORT": text.replace("\0", "")})
    with suppress(UsageError):
        Config.load(None, "/m", [], {}, _file("settings.toml", data))


def control(data: bytes) -> None:
    """What a client of the command socket may send."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)

        async def ask() -> None:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                try:
                    command, arguments = await _request(stream)
                except CaiafsError:
                    return
                assert isinstance(command, str)
                assert isinstance(arguments, dict)

        trio.run(ask)


def lock(data: bytes) -> None:
    """What a lock file says of its holder."""
    path = os.path.join(PLACE, "lock")
    _file("lock", data)
    assert read_lock(os.path.dirname(path)) is None
    from caiafs.mount.preflight import _read_holder

    fd = os.open(path, os.O_RDONLY)
    try:
        _read_holder(fd)
    finally:
        os.close(fd)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        record, journal, side, tree, commit, delta, objects, index, midx, refs, alternates, names, options,
        control, lock,
    )
}  # fmt: skip


# ---- good inputs


def seeds(target: str) -> list[bytes]:
    """A few inputs that *target* takes."""
    return _SEEDS[target]()


def _records() -> list[bytes]:
    made = (
        Create(1, 2, 0o100644, 0, 0, 0, 5, b"name", b"target", ((b"user.a", b"b"),)), Link(2, 1, 5, b"link"),
        Remove(1, 5, b"gone"), Rename(1, 1, 5, 0, b"a", b"b"), Write(2, 0, 5, b"data"),
        SetAttr(2, 127, 0, 0, 0, 1, 2, 3, 4), SetXattr(2, 5, b"user.x", b"y"), Name(2, 1, b"name"),
        Adopt(OID, 5, (AdoptEntry(1, b"n", 0o100644, OID, 3, 9),)), Committed(52, OID, OID, OID), Synced(52),
    )  # fmt: skip
    return [b"".join(encode(one)) for one in made]


def _journals() -> list[bytes]:
    frames, made = _records(), []
    for count in (1, 2, 3):
        parts, position = [], 0
        for number in range(count):
            body = encode_header(Header(b"i" * 16, position, 0, position)) + b"".join(frames[number::count])
            parts.append(body)
            position += len(body)
        made.append(b"|SEGMENT|".join(parts))
    return made


def _sides() -> list[bytes]:
    one = SideRecord(b"n", 2, 0o100600, 1, 2, 1, 0, 3, 4, 5, 6, 0o100644, OID, 7, ((b"user.x", b"y"),), b"t")
    root = one._replace(name=b"", ino=1, mode=0o040755)
    meta = encode_meta(Meta(root, 9, 5, ((2, b"a/b"), (2, b"c"))))
    both = encode_record(one) + encode_record(one._replace(name=b"o"))
    return [encode_record(one), both, meta, side_message(OID, b"j" * 16, 52), b"%5C\\%25"]


def _trees() -> list[bytes]:
    good = b"40000 a\0" + OID + b"100644 a.b\0" + OID + b"120000 l\0" + OID + b"160000 m\0" + OID
    return [b"", good, good + b"100644 ..\0" + OID, good + good, b"100644 x/y\0" + OID, b"0 z\0" + OID]


def _commits() -> list[bytes]:
    who = b"A <a@b>"
    tag = b"object " + OID.hex().encode() + b"\ntype commit\ntag v\ntagger A <a@b> 1 +0000\n\nm"
    return [encode_commit(OID, (OID, OID), who, who, 1, 2, 90, b"message\n"), tag]


def _deltas() -> list[bytes]:
    return [b"\x04base\x04\x06\x90\x04\x02xy", b"\x04base\x04\x04\x91\x00\x04", b"\x00\x00\x01\x01x"]


def _objects() -> list[bytes]:
    loose = zlib.compress(b"blob 5\0hello")
    entry = b"\x35" + zlib.compress(b"hello")
    of_delta = b"\x75" + OID + zlib.compress(b"\x04\x04\x90\x04")
    return [loose, entry, of_delta, b"\x65\x05" + zlib.compress(b"\x04\x04\x90\x04"), b"\xb5\x01" + entry[1:]]


def _indexes() -> list[bytes]:
    oids = {hashlib.sha1(b"%d" % n).digest(): (12 + n, n) for n in range(5)} | {OID: (1 << 33, 7)}
    first = struct.pack(">256I", *[6 if n >= 0x11 else 0 for n in range(256)])
    old = first + b"".join(struct.pack(">I", 12) + b"\x11" * 19 + bytes((n,)) for n in range(6)) + bytes(40)
    return [index_v2(oids, b"c" * 20), index_v2({}, b"c" * 20), old]


def _midxes() -> list[bytes]:
    names_chunk = b"pack-a.idx\0pack-b.idx\0\0\0"
    fan = struct.pack(">256I", *[1 if n >= 0x11 else 0 for n in range(256)])
    start = 12 + 12 * 5
    at = [start, start + len(names_chunk), start + len(names_chunk) + 1024]
    at += [at[2] + 20, at[2] + 28]
    table = b"".join(
        name + struct.pack(">Q", where)
        for name, where in zip((b"PNAM", b"OIDF", b"OIDL", b"OOFF", bytes(4)), at, strict=True)
    )
    body = names_chunk + fan + OID + struct.pack(">II", 1, 12) + bytes(20)
    return [struct.pack(">4sBBBBI", b"MIDX", 1, 1, 4, 0, 2) + table + body]


def _refs() -> list[bytes]:
    packed = b"# pack-refs with: peeled fully-peeled sorted\n" + OID.hex().encode() + b" refs/heads/main\n"
    return [OID.hex().encode() + b"\n", b"ref: refs/heads/other\n", packed, packed + b"^" + b"2" * 40 + b"\n"]


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "record": _records,
    "journal": _journals,
    "side": _sides,
    "tree": _trees,
    "commit": _commits,
    "delta": _deltas,
    "objects": _objects,
    "index": _indexes,
    "midx": _midxes,
    "refs": _refs,
    "alternates": lambda: [b"/srv/objects\n# comment\n../other\n", b'"/a\\142c\\n"\n'],
    "names": lambda: [
        b".git", b"git~1", b'[submodule "a"]\n\tpath = a\n\turl = https://example.org/a\n', b"* text=auto\n",
        ".g\u200cit".encode(),
    ],
    "options": lambda: [
        b"ro,memory=64MiB,author=A\\, B <a@b>,commit_quiet=500ms", b"branch=a/b,http=127.0.0.1:80",
        b'memory = "1GiB"\nro = true\nrepo = "/r"\n',
    ],
    "control": lambda: [b'{"command": "commit", "arguments": {"message": "m"}}\n', b"[1]\n", b"{}"],
    "lock": lambda: [json.dumps({"pid": 5, "mountpoint": "/m", "started": "now"}).encode(), b"[]", b"5"],
}  # fmt: skip

assert _SEEDS.keys() == TARGETS.keys()
assert len(NO_OID) == 20
