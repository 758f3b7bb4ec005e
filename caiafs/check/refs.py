"""The few things a check needs of refs that the store does not offer: a listing, and a removal.

The removal follows git's own protocol for two places: the ref's lock and the one of packed-refs
are held while the packed line goes first and the loose file second, so that no moment shows an
older value.
"""

from __future__ import annotations

import contextlib
import os
import re

from ..errors import RefLocked, StoreError
from ..store.disk import fsync_dir

_LINE = re.compile(rb"^([0-9a-f]{40}) (refs/[^\r\n]+)", re.MULTILINE)


def names_under(git_dir: str, prefix: bytes) -> list[bytes]:
    """The full names of all refs that begin with *prefix* (which ends in a slash), sorted."""
    found: set[bytes] = set()
    top = os.path.join(os.fsencode(git_dir), prefix.rstrip(b"/"))
    for directory, _, files in os.walk(top):
        for name in files:
            if not name.endswith(b".lock"):
                found.add(prefix + os.path.relpath(os.path.join(directory, name), top))
    with contextlib.suppress(FileNotFoundError), open(os.path.join(git_dir, "packed-refs"), "rb") as file:
        found.update(match[2] for match in _LINE.finditer(file.read()) if match[2].startswith(prefix))
    return sorted(found)


def remove(git_dir: str, name: bytes) -> None:
    """Delete the ref *name*, durably, whatever it holds. Raises RefLocked, StoreError."""
    path = os.path.join(git_dir, os.fsdecode(name))
    packed = os.path.join(git_dir, "packed-refs")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.callback(_unlink, _lock(path + ".lock"))
            held.callback(_unlink, _lock(packed + ".lock"))
            _remove_packed(packed, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            fsync_dir(os.path.dirname(path))
        except OSError as error:
            raise StoreError(f"cannot remove ref {os.fsdecode(name)}: {error.strerror}") from error


def _remove_packed(packed: str, name: bytes) -> None:
    try:
        with open(packed, "rb") as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = []
    peeled = False
    for line in lines:
        if not line.startswith(b"^"):
            peeled = line[40:].strip() == name
        if not peeled:
            kept.append(line)
    if len(kept) == len(lines):
        return
    with open(packed + ".lock", "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.rename(packed + ".lock", packed)
    fsync_dir(os.path.dirname(packed))


def _lock(path: str) -> str:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        raise RefLocked(
            f"{path} exists: another git process holds the ref; if none runs, remove the file"
        ) from None
    return path


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
