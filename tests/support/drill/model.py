"""What one writer's folder must hold: the same operations on memory as on a directory.

An operation is a tuple of plain values, so that it fits a line of the manifest. `perform` does it
with system calls, `Model.apply` in memory. After a crash `Model.compare` says how a directory
differs: of the operation that was under way every effect may be there or not, as far as the
calls it is made of can be told apart; everything else must be exact.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
from typing import Any

from support.syscalls import RENAME_EXCHANGE, renameat2

Operation = tuple[Any, ...]
PAGE = 4096
SIZES = (0, 10, 700, 3000, 5000, 20_000, 70_000)
COUNTERS = ("a", "z")
"""Two files that are written before and after each operation: a commit shows between which two it was."""


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Item:
    """One inode."""

    __slots__ = ("_blob", "data", "ino", "kind", "mode", "mtime", "owner", "xattrs")

    def __init__(self, kind: str, mode: int, data: bytes = b"") -> None:
        self.kind = kind  # "f", "d" or "l"
        self.mode = mode
        self.data = data
        self.mtime: int | None = None
        self.owner: int | None = None
        self.xattrs: dict[str, bytes] = {}
        self.ino = 0
        self._blob: tuple[bytes, str] | None = None

    @property
    def blob(self) -> str:
        """The id of the git blob with this content."""
        if self._blob is None or self._blob[0] is not self.data:
            self._blob = self.data, hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()
        return self._blob[1]

    def written(self, data: bytes) -> None:
        self.data = data
        self.mtime = None


def perform(root: str, operation: Operation) -> None:
    """Do it for real, below *root*. Raises OSError."""
    kind, path, *rest = operation
    at = os.path.join(root, path)
    if kind == "write":
        seed, size, synced = rest
        data = content(seed, size)
        fd = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with _closing(fd):
            half = len(data) // 2
            _write_all(fd, data[:half])
            _write_all(fd, data[half:])
            if synced:
                os.fsync(fd)
    elif kind == "patch":
        offset, seed, size = rest
        with _closing(os.open(at, os.O_RDWR)) as fd:
            _pwrite_all(fd, content(seed, size), offset)
    elif kind == "append":
        seed, size, synced = rest
        with _closing(os.open(at, os.O_WRONLY | os.O_APPEND)) as fd:
            _write_all(fd, content(seed, size))
            if synced:
                os.fsync(fd)
    elif kind == "save":
        temporary, seed, size, synced = rest
        beside = os.path.join(root, temporary)
        with _closing(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)) as fd:
            _write_all(fd, content(seed, size))
            if synced:
                os.fsync(fd)
        os.rename(beside, at)
    elif kind == "rename":
        os.rename(at, os.path.join(root, rest[0]))
    elif kind == "exchange":
        renameat2(at, os.path.join(root, rest[0]), RENAME_EXCHANGE)
    elif kind == "link":
        os.link(at, os.path.join(root, rest[0]))
    elif kind == "symlink":
        os.symlink(rest[0], at)
    elif kind == "unlink":
        os.unlink(at)
    elif kind == "mkdir":
        os.mkdir(at, 0o755)
    elif kind == "rmdir":
        os.rmdir(at)
    elif kind == "chmod":
        os.chmod(at, rest[0])
    elif kind == "chown":
        os.chown(at, rest[0], rest[0])
    elif kind == "utime":
        os.utime(at, ns=(rest[0], rest[0]))
    elif kind == "setxattr":
        os.setxattr(at, rest[0], bytes.fromhex(rest[1]))
    elif kind == "removexattr":
        os.removexattr(at, rest[0])
    elif kind == "truncate":
        os.truncate(at, rest[0])
    elif kind == "fsync":
        with _closing(os.open(at, os.O_RDONLY)) as fd:
            os.fsync(fd)
    else:
        raise AssertionError(operation)


class _closing:
    """close(2) reports what the kernel could not hand over, so its error must not be lost."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


class Model:
    """A folder in memory; the paths are relative to it, parents are always there."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {name: Item("f", 0o644, b"%08d" % 0) for name in COUNTERS}

    # ---- choosing

    def choose(self, dice: random.Random, number: int, limit: int = 24) -> Operation:
        """An operation that will succeed on this folder."""
        while True:
            found = self._choose(dice, number, limit)
            if found is not None:
                return found

    def _choose(self, dice: random.Random, number: int, limit: int) -> Operation | None:
        names = [name for name in self.items if name not in COUNTERS]
        files = [name for name in names if self.items[name].kind == "f"]
        folders = [name for name in names if self.items[name].kind == "d"]
        parent = dice.choice(["", "", *folders])
        fresh = os.path.join(parent, f"n{number}")
        seed = dice.randrange(1 << 40)
        kind = dice.choices(
            ("write", "save", "patch", "append", "rename", "exchange", "link", "unlink", "mkdir", "rmdir",
             "symlink", "chmod", "utime", "setxattr", "removexattr", "truncate", "fsync", "chown"),
            (14, 8, 8, 8, 8, 3, 4, 8, 5, 4, 3, 5, 4, 4, 2, 4, 3, 2),
        )[0]  # fmt: skip
        crowded = len(names) >= limit
        if crowded and kind in ("mkdir", "symlink", "link"):
            kind = "unlink"
        if kind == "write":
            path = dice.choice([*files, fresh]) if files and not crowded else dice.choice(files or [fresh])
            return "write", path, seed, dice.choice(SIZES), dice.random() < 0.3
        if kind == "save":
            path = dice.choice(files) if files else fresh
            return (
                "save", path, f"{os.path.dirname(path) and os.path.dirname(path) + '/'}t{number}", seed,
                dice.choice(SIZES), dice.random() < 0.5,
            )  # fmt: skip
        if kind == "mkdir":
            return ("mkdir", fresh) if len(folders) < 5 and fresh.count("/") < 4 else None
        if kind == "symlink":
            return "symlink", fresh, f"to/{number}"
        if not names:
            return None
        any_name = dice.choice(names)
        item = self.items[any_name]
        if kind == "unlink":
            return ("unlink", any_name) if item.kind != "d" else None
        if kind == "rmdir":
            return ("rmdir", any_name) if item.kind == "d" and not self._below(any_name) else None
        if kind == "rename":
            if item.kind == "d" and (parent + "/").startswith(any_name + "/"):
                return None
            onto = dice.choice([fresh, *files]) if item.kind != "d" else fresh
            return (
                ("rename", any_name, onto) if onto != any_name and self.items.get(onto) is not item else None
            )
        if kind == "exchange":
            other = dice.choice(names)
            apart = not (other + "/").startswith(any_name + "/") and not (any_name + "/").startswith(
                other + "/"
            )
            return ("exchange", any_name, other) if apart and self.items[other] is not item else None
        if kind in ("chmod", "chown", "setxattr", "removexattr", "utime") and item.kind == "l":
            return None
        if kind == "chmod":
            modes = (0o700, 0o755, 0o1777) if item.kind == "d" else (0o600, 0o644, 0o755, 0o640, 0o711)
            if item.kind == "f" and os.geteuid() == 0:
                modes += (0o444,)
            return "chmod", any_name, dice.choice(modes)
        if kind == "chown":
            return ("chown", any_name, dice.randrange(1, 5)) if os.geteuid() == 0 else None
        if kind == "utime":
            return "utime", any_name, dice.randrange(10**18, 10**18 + 10**17)
        if kind == "setxattr":
            return (
                "setxattr",
                any_name,
                f"user.x{dice.randrange(3)}",
                dice.randbytes(dice.randrange(1, 60)).hex(),
            )
        if kind == "removexattr":
            return ("removexattr", any_name, dice.choice(sorted(item.xattrs))) if item.xattrs else None
        if item.kind != "f":
            return None
        size = len(item.data)
        if kind == "patch":
            return "patch", any_name, dice.randrange(size + 5000), seed, dice.choice(SIZES[1:5])
        if kind == "append":
            return (
                ("append", any_name, seed, dice.choice(SIZES[1:6]), dice.random() < 0.3)
                if size < 200_000
                else None
            )
        if kind == "truncate":
            return "truncate", any_name, dice.randrange(size + 3000)
        return "fsync", any_name

    def _below(self, path: str) -> list[str]:
        return [name for name in self.items if name.startswith(path + "/")]

    # ---- applying

    def apply(self, operation: Operation) -> None:
        """What *operation* leaves when it has come to its end."""
        kind, path, *rest = operation
        items = self.items
        if kind == "write":
            seed, size, _ = rest
            if path not in items:
                items[path] = Item("f", 0o644)
            items[path].written(content(seed, size))
        elif kind == "patch":
            offset, seed, size = rest
            old = items[path].data
            new = old[:offset].ljust(offset, b"\0") + content(seed, size)
            items[path].written(new + old[len(new) :])
        elif kind == "append":
            seed, size, _ = rest
            items[path].written(items[path].data + content(seed, size))
        elif kind == "save":
            _, seed, size, _ = rest
            items[path] = Item("f", 0o600, content(seed, size))
        elif kind in ("rename", "exchange"):
            self._move(path, rest[0], exchange=kind == "exchange")
        elif kind == "link":
            items[rest[0]] = items[path]
        elif kind == "symlink":
            items[path] = Item("l", 0o777, os.fsencode(rest[0]))
        elif kind in ("unlink", "rmdir"):
            del items[path]
        elif kind == "mkdir":
            items[path] = Item("d", 0o755)
        elif kind == "chmod":
            items[path].mode = rest[0]
        elif kind == "chown":
            items[path].owner = rest[0]
        elif kind == "utime":
            items[path].mtime = rest[0]
        elif kind == "setxattr":
            items[path].xattrs[rest[0]] = bytes.fromhex(rest[1])
        elif kind == "removexattr":
            del items[path].xattrs[rest[0]]
        elif kind == "truncate":
            data = items[path].data
            items[path].written(data[: rest[0]].ljust(rest[0], b"\0"))
        self.forget_times(operation)

    def forget_times(self, operation: Operation) -> None:
        """The times of the folders in which *operation* changes names are the clock's from now on."""
        for above in self._touched_folders(operation):
            if above in self.items:
                self.items[above].mtime = None

    def _touched_folders(self, operation: Operation) -> set[str]:
        kind, path, *rest = operation
        if kind in (
            "chmod",
            "chown",
            "utime",
            "setxattr",
            "removexattr",
            "truncate",
            "fsync",
            "patch",
            "append",
        ):
            return set()
        places = {os.path.dirname(path)}
        if kind in ("rename", "exchange", "link"):
            places.add(os.path.dirname(rest[0]))
        return places

    def _move(self, old: str, new: str, exchange: bool) -> None:
        there = {name: self.items[name] for name in (old, *self._below(old))}
        here = {name: self.items[name] for name in (new, *self._below(new)) if name in self.items}
        for name in (*there, *here):
            del self.items[name]
        for name, item in there.items():
            self.items[new + name[len(old) :]] = item
        if exchange:
            for name, item in here.items():
                self.items[old + name[len(new) :]] = item

    def copy(self) -> Model:
        """Another folder that is the same; its items are its own."""
        twins: dict[int, Item] = {}
        made = Model()
        made.items = {}
        for name, item in self.items.items():
            twin = twins.get(id(item))
            if twin is None:
                twin = twins[id(item)] = Item(item.kind, item.mode, item.data)
                twin.mtime, twin.owner, twin.ino = item.mtime, item.owner, item.ino
                twin.xattrs = dict(item.xattrs)
            made.items[name] = twin
        return made

    def touched(self, operation: Operation) -> set[str]:
        """Every name that may look otherwise while *operation* is under way."""
        kind, path, *rest = operation
        names = {path, *self._below(path)}
        if kind in ("rename", "exchange", "link", "save"):
            other = rest[0]
            names |= {other, *self._below(other)}
            if kind != "save":
                names |= {other + name[len(path) :] for name in self._below(path)}
                names |= {path + name[len(other) :] for name in self._below(other)}
        items = {id(self.items[name]) for name in names if name in self.items}
        return names | {name for name, item in self.items.items() if id(item) in items}

    # ---- comparing

    def view(self) -> dict[str, tuple[str, str]]:
        """What a git tree shows of it: (mode, blob) of files and links."""
        shown = {}
        for name, item in self.items.items():
            if item.kind == "f":
                shown[name] = ("100755" if item.mode & 0o100 else "100644", item.blob)
            elif item.kind == "l":
                shown[name] = ("120000", item.blob)
        return shown

    def compare(self, root: str, ignore: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """How the directory *root* differs, one line each; names in *ignore* are not looked at.

        Inode numbers are learned where they are not known, and must not change from then on.
        """
        found: list[str] = []
        seen = dict(walk(root))
        for name in sorted(self.items.keys() | seen.keys()):
            if name in ignore:
                continue
            item, info = self.items.get(name), seen.get(name)
            if item is None:
                found.append(f"{name}: is there and must not be")
            elif info is None:
                found.append(f"{name}: gone")
            else:
                found += [f"{name}: {line}" for line in self._differences(root, name, item, info)]
        return found

    def _differences(self, root: str, name: str, item: Item, info: os.stat_result) -> list[str]:
        path = os.path.join(root, name)
        kind = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}.get(stat.S_IFMT(info.st_mode), "?")
        if kind != item.kind:
            return [f"is a {kind} and not a {item.kind}"]
        lines = []
        links = sum(other is item for other in self.items.values())
        item.ino = item.ino or info.st_ino
        expected = {
            "mode": (item.mode, stat.S_IMODE(info.st_mode)),
            "links": (links, links if kind == "d" else info.st_nlink),
            "inode": (item.ino, info.st_ino),
            "mtime": (item.mtime if item.mtime is not None else info.st_mtime_ns, info.st_mtime_ns),
            "owner": (item.owner if item.owner is not None else info.st_uid, info.st_uid),
        }
        lines += [f"{what} {is_} instead of {due}" for what, (due, is_) in expected.items() if due != is_]
        if kind == "l":
            target = os.readlink(os.fsencode(path))
            return lines + ([f"points at {target!r}"] if target != item.data else [])
        if kind == "f":
            data = read(path)
            if data != item.data:
                lines.append(f"content differs: {_where(item.data, data)}")
        xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.x")}
        if xattrs != item.xattrs:
            lines.append(f"attributes {xattrs} instead of {item.xattrs}")
        return lines

    def adopt(self, root: str, names: set[str]) -> None:
        """Take *names* as the directory has them: an operation was under way, and nobody knows how far."""
        seen = {name: info for name, info in walk(root) if name in names}
        by_ino = {item.ino: item for name, item in self.items.items() if name not in names and item.ino}
        for name in names:
            self.items.pop(name, None)
        for name, info in sorted(seen.items()):
            path = os.path.join(root, name)
            item = by_ino.get(info.st_ino)
            if item is None:
                kind = "d" if stat.S_ISDIR(info.st_mode) else "l" if stat.S_ISLNK(info.st_mode) else "f"
                data = b"" if kind == "d" else os.readlink(os.fsencode(path)) if kind == "l" else read(path)
                item = by_ino[info.st_ino] = Item(kind, stat.S_IMODE(info.st_mode), data)
                item.ino, item.owner = info.st_ino, info.st_uid
                if kind != "l":
                    names_ = [key for key in os.listxattr(path) if key.startswith("user.x")]
                    item.xattrs = {key: os.getxattr(path, key) for key in names_}
            self.items[name] = item


def implausible(before: Model, after: Model, root: str, names: set[str]) -> list[str]:
    """Bytes in the files *names* that neither state had: each page is of one state, or zeros."""
    lines = []
    for name, info in walk(root):
        if name not in names or not stat.S_ISREG(info.st_mode):
            continue
        data = read(os.path.join(root, name))
        sources = [
            m.items[n].data for m in (before, after) for n in names if n in m.items and m.items[n].kind == "f"
        ]
        for start in range(0, len(data), PAGE):
            page = data[start : start + PAGE]
            if any(page) and not any(_mixes(page, [s[start : start + PAGE] for s in sources])):
                lines.append(f"{name}: bytes at {start} that nobody wrote")
                break
    return lines


def _mixes(page: bytes, sources: list[bytes]) -> list[bool]:
    """Of each source whether *page* is its beginning, with zeros where a write had not arrived."""
    padded = [source.ljust(len(page), b"\0")[: len(page)] for source in sources]
    whole = [page == source for source in padded]
    if any(whole) or len(page) < 1:
        return whole
    # The kernel hands pages over by what was written: an old page with the new bytes up to some length.
    mixed = all(any(source[at] == byte for source in padded) or byte == 0 for at, byte in enumerate(page))
    return [mixed]


def walk(root: str, prefix: str = "") -> list[tuple[str, os.stat_result]]:
    """Every entry below *root*."""
    found = []
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            name = os.path.join(prefix, entry.name)
            found.append((name, info))
            if stat.S_ISDIR(info.st_mode):
                found += walk(root, name)
    return found


def read(path: str) -> bytes:
    """The file's bytes. A writer that is killed in the middle of close(2) leaves an interrupted write-back
    behind, of which the kernel tells whoever closes the file next, although all bytes are there."""
    file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed below, where EIO is no news
    try:
        return file.read()
    finally:
        try:
            file.close()
        except OSError as error:
            if error.errno != errno.EIO:
                raise


def _where(due: bytes, found: bytes) -> str:
    at = next(
        (i for i, (x, y) in enumerate(zip(due, found, strict=False)) if x != y), min(len(due), len(found))
    )
    kind = "zeros there" if not any(found[at : at + 512]) else "other bytes there"
    return f"{len(found)} bytes instead of {len(due)}, the first difference at {at}, {kind}"
