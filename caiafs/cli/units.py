"""`caiafs install-units`: systemd's units, the helpers of mount(8), and an example configuration.

The files are those of the folder systemd/, which the package carries along; only the path of the
command is put into them. Each ends in a line with the digest of what stands above it. So a later
run, of another version too, knows its own files, and leaves alone what somebody has changed and
what was never ours. There is no list of what was written that could be lost or be wrong.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from caiafs.config import example
from caiafs.errors import CaiafsError, UsageError

COMMAND = "/usr/bin/caiafs"
"""How the files in systemd/ call the command."""
HELPERS = ("mount.caiafs", "umount.caiafs")
_MARK = "# Written by `caiafs install-units`, which `--remove` takes back. sha256:"
_NOTIFY_RELOAD = 253
"""The first systemd that knows Type=notify-reload."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file to be there, with its mode; or a symbolic link, if *mode* is 0."""

    path: str
    content: str
    mode: int = 0o644

    @property
    def text(self) -> str:
        """What the file holds: the content, and the line that makes it ours."""
        return f"{self.content}{_MARK}{_digest(self.content)}\n"


def run(arguments: argparse.Namespace) -> int:
    """Write or remove; 0 if all is as it should be, 1 if files of others are in the way."""
    if arguments.user and arguments.prefix:
        raise UsageError("--user and --prefix exclude each other: a user's units are in ~/.config")
    root = os.path.realpath(arguments.root)
    items = list(_user_items(root) if arguments.user else _system_items(root, arguments.prefix))
    for item in items:
        if os.path.commonpath([root, os.path.realpath(os.path.dirname(item.path))]) != root:
            raise UsageError(f"{item.path} leads out of {root}: a symbolic link on the way points elsewhere")
    try:
        done = [_remove(item) if arguments.remove else _write(item) for item in items]
    except PermissionError as problem:
        raise CaiafsError(
            f"cannot write {problem.filename}: {problem.strerror}; as root, or with --user for yourself",
            problem.errno,
        ) from None
    except OSError as problem:
        raise CaiafsError(f"cannot write {problem.filename}: {problem.strerror}", problem.errno) from None
    if arguments.remove:
        _remove_directories(items)
    if root == "/" and any(changed for changed, _ in done):
        _tell_systemd(arguments.user)
    if not arguments.remove and root == "/":
        _say_how_on(arguments.user)
    return 0 if all(fine for _, fine in done) else 1


# -- what there is to write -----------------------------------------------------------------------


def _system_items(root: str, prefix: str | None) -> Iterator[Item]:
    command = [os.path.join(prefix, "bin/caiafs")] if prefix else this_command()
    base = _below(root, prefix or "/etc")
    units = os.path.join(base, "lib/systemd" if prefix else "systemd")
    sbin = os.path.join(_below(root, prefix or "/"), "sbin")
    for manager in ("system", "user"):
        where = os.path.join(units, manager)
        name = "user/caiafs@.service" if manager == "user" else "caiafs@.service"
        yield Item(os.path.join(where, "caiafs@.service"), _unit(name, command))
        if prefix is None and root == "/" and _systemd_version() >= _NOTIFY_RELOAD:
            yield Item(
                os.path.join(where, "caiafs@.service.d/notify-reload.conf"),
                _unit("notify-reload.conf", command),
            )
    for name in HELPERS:
        text = _shipped(name).replace(COMMAND, shlex.join(command))
        yield Item(os.path.join(sbin, name), text, 0o755)
        yield Item(os.path.join(sbin, name.replace(".", ".fuse.", 1)), name, 0)
    yield Item(_below(root, "/etc/caiafs/example.toml"), example.render())


def _user_items(root: str) -> Iterator[Item]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    unit = os.path.join(_below(root, home), "systemd/user/caiafs@.service")
    yield Item(unit, _unit("user/caiafs@.service", this_command()))
    if root == "/" and _systemd_version() >= _NOTIFY_RELOAD:
        yield Item(f"{unit}.d/notify-reload.conf", _unit("notify-reload.conf", this_command()))
    yield Item(os.path.join(_below(root, home), "caiafs/example.toml"), example.render())


def this_command() -> list[str]:
    """How to call what is running here: the `caiafs` that was called, else this Python with -m."""
    for candidate in (sys.argv[0], shutil.which("caiafs")):
        if candidate and os.path.basename(candidate) == "caiafs" and os.access(candidate, os.X_OK):
            return [os.path.abspath(candidate)]
    return [sys.executable, "-m", "caiafs"]


def _unit(name: str, command: list[str]) -> str:
    # Quoted as systemd.service(5) has it: % is a specifier, and $ a variable.
    words = [word.replace("%", "%%").replace("$", "$$") for word in command]
    quoted = " ".join(f'"{word}"' if re.search(r"[\s\"'\\;]", word) else word for word in words)
    return _shipped(name).replace(COMMAND, quoted)


def _shipped(name: str) -> str:
    return (resources.files("caiafs") / "systemd" / name).read_text()


def _below(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _systemd_version() -> int:
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return 0
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else 0


# -- writing and removing -------------------------------------------------------------------------


def _write(item: Item) -> tuple[bool, bool]:
    """(something changed, it is as it should be)."""
    found = _kind(item)
    if found == "as it should be":
        return _say("is there already:", item, False, True)
    if found == "changed":
        return _say("was changed since, and is left alone:", item, False, True)
    if found == "foreign":
        return _say("is somebody else's, and is left alone:", item, False, False)
    os.makedirs(os.path.dirname(item.path), exist_ok=True)
    fresh = f"{item.path}.new-{os.getpid()}"
    if item.mode:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, item.mode)
        with open(fd, "w") as stream:
            os.fchmod(fd, item.mode)
            stream.write(item.text)
    else:
        os.symlink(item.content, fresh)
    os.replace(fresh, item.path)
    return _say("wrote" if found == "missing" else "brought up to date:", item, True, True)


def _remove(item: Item) -> tuple[bool, bool]:
    found = _kind(item)
    if found == "missing":
        return False, True
    if found == "changed":
        return _say("was changed since, and is left alone:", item, False, True)
    if found == "foreign":
        return _say("is somebody else's, and is left alone:", item, False, True)
    os.unlink(item.path)
    return _say("removed", item, True, True)


def _say(what: str, item: Item, changed: bool, fine: bool) -> tuple[bool, bool]:
    arrow = "" if item.mode else f" -> {item.content}"
    print(f"{what} {item.path}{arrow}")
    return changed, fine


def _kind(item: Item) -> str:
    """What is at the place of *item*: missing, as it should be, ours (of another time), changed, foreign."""
    try:
        found = os.lstat(item.path)
    except FileNotFoundError:
        return "missing"
    if not item.mode:
        ours = stat.S_ISLNK(found.st_mode) and os.readlink(item.path) == item.content
        return "as it should be" if ours else "foreign"
    if not stat.S_ISREG(found.st_mode):
        return "foreign"
    with open(item.path, errors="replace") as stream:
        text = stream.read()
    if text == item.text and stat.S_IMODE(found.st_mode) == item.mode:
        return "as it should be"
    content, mark, digest = text.rpartition(_MARK)
    if not mark:
        return "foreign"
    return "ours" if digest.strip() == _digest(content) else "changed"


def _remove_directories(items: list[Item]) -> None:
    for directory in {os.path.dirname(item.path) for item in items}:
        if os.path.basename(directory) in ("caiafs", "caiafs@.service.d"):
            try:
                os.rmdir(directory)
            except OSError as problem:
                if problem.errno == errno.ENOTEMPTY:
                    print(f"{directory} is not empty, and stays")
                elif problem.errno != errno.ENOENT:
                    raise


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:32]


# -- afterwards -----------------------------------------------------------------------------------


def _tell_systemd(user: bool) -> None:
    if not user and not os.path.isdir("/run/systemd/system"):
        return  # not what runs here
    words = ["systemctl", *(["--user"] if user else []), "daemon-reload"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    if done.returncode == 0:
        print(f"ran {shlex.join(words)}")
    else:
        print(f"run `{shlex.join(words)}` when systemd is there: {done.stderr.strip()}")


def _say_how_on(user: bool) -> None:
    place = "~/.config/caiafs" if user else "/etc/caiafs"
    print(
        f"now copy {place}/example.toml to {place}/NAME.toml, say in it what is mounted where, and run\n"
        f"  {'systemctl --user' if user else 'systemctl'} enable --now caiafs@NAME"
    )
