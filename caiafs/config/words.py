"""The words of -o, of fstab's fourth field and of a remount: ours, the kernel's, and mount(8)'s own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caiafs.config.options import BY_NAME, flag, suggest
from caiafs.errors import UsageError

# What mount(8) calls filesystem-independent options. The first group means something to FUSE and is
# handed on (each with its opposite: the later word wins); the second belongs to mount(8), fstab and
# systemd, and reaches a helper only because they pass the whole list on.
KERNEL = {
    "dev": "nodev", "suid": "nosuid", "exec": "noexec", "atime": "noatime", "async": "sync",
    "diratime": "nodiratime",
}  # fmt: skip
OPPOSITE = KERNEL | {no: yes for yes, no in KERNEL.items()}
HANDED_ON = {"dev", "nodev", "suid", "nosuid", "exec", "noexec", "noatime", "nodiratime", "sync", "dirsync"}
IMPLIED = {
    "user": ("noexec", "nosuid", "nodev"), "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"), "group": ("nosuid", "nodev"),
}  # fmt: skip
IGNORED = {
    "defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "nouser", "users", "nousers",
    "owner", "noowner", "group", "nogroup", "relatime", "norelatime", "strictatime", "nostrictatime",
    "lazytime", "nolazytime", "silent", "loud", "iversion", "noiversion", "mand", "nomand",
    "symfollow", "comment", "uhelper", "helper", "default_permissions",
}  # fmt: skip


_OF_FUSE = {"user_id", "group_id", "rootmode", "fd", "max_read", "blksize", "subtype", "default_permissions"}
"""What the kernel says of a FUSE mount in /proc/self/mountinfo: mount(8) hands it back on a remount."""


def split_options(options: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    r"""Take apart the values of `-o`: (name, value or None) for each word, in order.

    A comma that belongs to a value is written `\,` (as libfuse reads it), or the value is put in
    double quotes (as mount(8) reads it).
    """
    for text in options:
        word, quoted, escaped = "", False, False
        for char in text + ",":
            if escaped:
                word, escaped = word + char, False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = not quoted
            elif char == "," and not quoted:
                name, equals, value = word.partition("=")
                if word:
                    yield name.strip(), value if equals else None
                word = ""
            else:
                word += char
        if word or quoted or escaped:
            raise UsageError(f"-o {text}: a quotation mark or a backslash is left open at the end")


def file_named(words: Iterable[tuple[str, str | None]], file: str | None) -> str | None:
    """The settings file that the words or *file* name. Raises UsageError where these are two."""
    for name, value in words:
        if name == "config":
            if not value:
                raise UsageError("-o config needs the path of a TOML file: -o config=FILE")
            if file is not None and os.path.abspath(value) != os.path.abspath(file):
                raise UsageError(f"two configuration files are named, {file} and {value}: give one")
            file = value
    return file


@dataclass(frozen=True, slots=True)
class Remount:
    """What `-o remount,…` asks for."""

    ro: bool | None
    """True, False, or None where neither ro nor rw is said."""
    kernel: tuple[str, ...]
    """nosuid, suid, …, in order: the later word wins."""
    settings: tuple[tuple[str, str | None], ...]
    """Settings of ours, as they were written."""


def split_remount(options: Iterable[str]) -> Remount:
    """Take apart the values of `-o` of a remount. Raises UsageError for words that nobody knows."""
    ro, kernel, settings = None, [], []
    for name, value in split_options(options):
        if name in ("ro", "rw"):
            ro = (name == "ro") == (value is None or flag(value))
        elif name in KERNEL or name in HANDED_ON or name in ("relatime", "strictatime"):
            kernel.append(name)
        elif name in BY_NAME:
            settings.append((name, value))
        elif not (name in IGNORED or name in _OF_FUSE or name == "remount" or name.startswith(("x-", "X-"))):
            raise UsageError(f"-o {name}: unknown option{suggest(name, BY_NAME)}")
    return Remount(ro, tuple(kernel), tuple(settings))
