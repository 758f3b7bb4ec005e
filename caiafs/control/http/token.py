"""The token that HTTP asks for: a file that only the user who mounts can read.

Made when it is missing, and never on a command line, in the environment or in `.stats`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat

from caiafs.errors import MountError

_LEAST = 16
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/-]{{{_LEAST},512}}=*", re.ASCII)  # what RFC 6750 lets a bearer send


def load_token(path: str) -> str:
    """The token in the file *path*, which is made if it does not exist; MountError if it is of no use."""
    for _ in range(2):
        try:
            return _read(path)
        except FileNotFoundError:
            _make(path)
    return _read(path)


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise _bad(path, "is no regular file")
    with open(fd, "rb") as stream:
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
            raise _bad(path, "must be for you alone: chown it to yourself and chmod 600 it")
        text = stream.read(4096).strip().decode("latin-1")
    if not _TOKEN.fullmatch(text):
        raise _bad(
            path,
            f"must hold one token of at least {_LEAST} characters out of A-Z a-z 0-9 . _ ~ + / -; "
            "remove the file, and a new one is made",
        )
    return text


def _make(path: str) -> None:
    """A new token, durable, under its name in one step, and never instead of one that is there."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as stream:
                stream.write(secrets.token_urlsafe(32).encode() + b"\n")
                stream.flush()
                os.fsync(fd)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass  # somebody else made one meanwhile: that is the one
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise _bad(path, f"cannot be made: {error.strerror}") from None


def _bad(path: str, what: str) -> MountError:
    return MountError(f"the token file {path} {what} (http_token_file=FILE names another)")
