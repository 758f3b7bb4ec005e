"""What can go wrong, each with its errno and its exit code.

Raised by every module, shown by cli.py, turned into FUSE errors by operations.py
and nowhere else. A class docstring says when it is raised; the message of the
instance names the cause and the way out, ready to be shown to a person.
"""

from __future__ import annotations

import errno
import os


class CaiafsError(Exception):
    """Anything caiafs reports to a person: `str()` is the whole message."""

    errno: int = errno.EIO
    exit_code: int = 1

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message)
        if code:
            self.errno = code


class FSError(CaiafsError):
    """One filesystem call failed with *errno*; nothing was changed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or os.strerror(code))
        self.errno = code


class Broken(BaseException):
    """A bug struck between the journal and the tree: what memory shows may not be what is kept.

    The daemon ends at once, without a commit; the next one recovers from the journal. Not an
    Exception, so that nobody turns it into an answer and goes on.
    """


class UsageError(CaiafsError):
    """Command line words, options or settings that cannot be meant."""

    errno = errno.EINVAL
    exit_code = 2


class MountError(CaiafsError):
    """The mount cannot start, or a mount command could not be carried out (mount(8): 32)."""

    exit_code = 32


class BranchLocked(MountError):
    """The branch is mounted already, by the process and at the place the message names."""

    errno = errno.EBUSY


class JournalError(CaiafsError):
    """The journal cannot keep a record: disk full, read-only, or an I/O error."""


class JournalDamaged(CaiafsError):
    """Bytes that were durable in the journal do not read back; `caiafs check` shows what is affected."""


class StoreError(CaiafsError):
    """The git repository refused or failed; the message names the file or the ref."""


class ObjectMissing(StoreError):
    """An object that a commit or a tree names is not in the repository."""


class ObjectCorrupt(StoreError):
    """An object is there but does not read back as what its name says."""


class FormatNewer(StoreError):
    """A newer caiafs wrote it: mount with that version, which reads it. Nothing of it is changed."""


class RefLocked(StoreError):
    """Another process holds the ref's lock file; worth trying again."""

    errno = errno.EAGAIN


class StoreTooSlow(StoreError):
    """Git did not answer within the time that a call may wait."""

    errno = errno.ETIMEDOUT


class RepositoryMissing(StoreError):
    """There is no git repository at the path; `-o init` creates a bare one."""

    errno = errno.ENOENT
    exit_code = 32


class RepositoryUnsupported(StoreError):
    """The repository uses a format that caiafs does not write: SHA-256 or reftable."""

    errno = errno.ENOTSUP
    exit_code = 32
