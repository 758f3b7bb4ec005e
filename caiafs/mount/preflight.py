"""What is looked at before mounting, so that a mount that cannot work fails with its cause and its way out.

`check` looks at the machine and the mountpoint; `acquire_lock` makes sure that a branch is mounted
once. Everything here is blocking, runs before the event loop starts, and changes nothing but the
state directory and a stale mount: the mount that a dead caiafs daemon left at the mountpoint is
cleared, since it can answer nothing any more and whoever mounts there again wants exactly that.
A dead mount of another filesystem is left to its owner.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pwd
import shlex
import stat
import time

from caiafs.config import Config
from caiafs.config import state_directory as _state_directory
from caiafs.control import ControlError, Mount, mount_at, read_stats
from caiafs.control.client import DEAD
from caiafs.control.mounts import (
    fuse_device_problem,
    fusermount_problem,
    is_within,
    others_allowed,
    unmount,
)
from caiafs.errors import BranchLocked, MountError
from caiafs.store.disk import fsync_dir

LOCK = "lock"

log = logging.getLogger(__name__)


def check(config: Config, git_dir: str | None = None) -> None:
    """Everything that can be known before the repository is opened; MountError names what is wrong.

    *git_dir* is the repository's git directory where it is known already (it may not exist yet with init).
    """
    check_machine()
    check_allow_other(config.allow_other)
    check_nesting(config, git_dir)
    check_repository(config.repo)
    check_mountpoint(config.mountpoint)
    if git_dir is not None:
        check_git_dir(git_dir, config.ro)


def check_machine() -> None:
    """FUSE is there and this user may use it."""
    if problem := fuse_device_problem():
        raise _error(problem, errno.ENODEV)
    if os.geteuid() != 0 and (problem := fusermount_problem()):
        raise _error(problem, errno.ENOENT)


def check_allow_other(allow_other: bool) -> None:
    """allow_other as an ordinary user needs the administrator's consent, see fuse(8)."""
    if allow_other and os.geteuid() != 0 and not others_allowed():
        raise _error(
            "allow_other needs the line `user_allow_other` in /etc/fuse.conf; "
            "ask the administrator, or mount without allow_other",
            errno.EPERM,
        )


def check_nesting(config: Config, git_dir: str | None = None) -> None:
    """The mount must not cover what it lives on, nor lie inside it."""
    mountpoint = os.path.realpath(config.mountpoint)
    places = {
        "the repository": config.repo,
        "the git directory": git_dir,
        "the state directory": config.state_dir,
    }
    for what, path in places.items():
        if path is None:
            continue
        real = os.path.realpath(path)
        if is_within(real, mountpoint):
            raise _error(
                f"{what} {path} lies inside the mountpoint {config.mountpoint}, which would hide it: "
                f"mount somewhere else",
                errno.EINVAL,
            )
        if is_within(mountpoint, real):
            raise _error(
                f"the mountpoint {config.mountpoint} lies inside {what} {path}: mount somewhere else",
                errno.EINVAL,
            )


def check_repository(path: str) -> None:
    """What is at *path* can be looked at; whether it is a repository is for the store to say."""
    try:
        with os.scandir(path):
            pass
    except PermissionError:
        raise _error(
            f"no permission to look into the repository {path}: mount as its owner, or as root", errno.EACCES
        ) from None
    except OSError:
        pass


def check_mountpoint(mountpoint: str) -> None:
    """An existing, empty directory that this user may mount on; a stale caiafs mount there is cleared."""
    quoted = shlex.quote(mountpoint)
    _clear_stale_or_refuse(mountpoint)
    try:
        found = os.stat(mountpoint)
        if not stat.S_ISDIR(found.st_mode):
            raise _error(f"the mountpoint {mountpoint} is not a directory", errno.ENOTDIR)
        with os.scandir(mountpoint) as entries:
            first = next(entries, None)
    except FileNotFoundError:
        raise _error(
            f"the mountpoint {mountpoint} does not exist; create it with `mkdir -p {quoted}`", errno.ENOENT
        ) from None
    except OSError as problem:
        code = problem.errno or errno.EIO
        covering = mount_at(os.path.realpath(mountpoint))
        if code in DEAD and covering is not None:
            raise _error(
                f"a dead {covering.fstype} mount of {covering.source} covers {mountpoint}; clear it with "
                f"`fusermount3 -u {quoted}` (as root: `umount -l {quoted}`)",
                errno.ENOTCONN,
            ) from None
        raise _error(f"cannot look into {mountpoint}: {problem.strerror}", code) from None
    if first is not None:
        raise _error(
            f"the mountpoint {mountpoint} is not empty (it holds {first.name!r}), and a mount would hide "
            f"what it holds: empty it, or mount on another directory",
            errno.ENOTEMPTY,
        )
    if os.geteuid() != 0:
        # The rule is fusermount3's own: writable, and in a sticky directory such as /tmp one's own.
        if not os.access(mountpoint, os.W_OK):
            raise _error(
                f"you may not write to {mountpoint}, so fusermount3 will not mount there: "
                f"choose a directory of your own",
                errno.EACCES,
            )
        if found.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid():
            raise _error(
                f"{mountpoint} is sticky and belongs to {_user(found.st_uid)}, so fusermount3 will not mount "
                f"there: choose a directory of your own",
                errno.EACCES,
            )


def check_git_dir(git_dir: str, read_only: bool) -> None:
    """The repository can be written, or at least read where the mount is read-only."""
    mode = os.R_OK | os.X_OK | (0 if read_only else os.W_OK)
    for path in (git_dir, os.path.join(git_dir, "objects"), os.path.join(git_dir, "refs")):
        if not os.path.exists(path) or os.access(path, mode, effective_ids=True):
            continue
        if not read_only and os.statvfs(path).f_flag & os.ST_RDONLY:
            cause = f"{path} is on a read-only filesystem"
        else:
            cause = (
                f"no permission to {'read' if read_only else 'write'} {path} (it belongs to {_owner(path)})"
            )
        way_out = "" if read_only else "; mount as its owner, or look at it with -o ro"
        raise _error(cause + way_out, errno.EACCES)


def _clear_stale_or_refuse(mountpoint: str) -> None:
    """Refuse a place where a caiafs mount is alive; clear dead ones, which can lie on top of each other."""
    quoted = shlex.quote(mountpoint)
    while (mount := mount_at(os.path.realpath(mountpoint))) is not None and mount.is_caiafs:
        shown = mount.source
        try:
            # stat(2) would not tell a dead mount: the kernel answers it from its cache.
            config = read_stats(mount.mountpoint, "config.json", timeout=2.0)
        except ControlError as problem:
            if problem.errno == errno.ENOTCONN:
                _clear_stale(mount, mountpoint)
                continue
            if problem.errno == errno.EACCES:
                raise _error(
                    f"another user has mounted {mount.source} at {mountpoint}: mount on another directory, "
                    f"or clear it with `sudo caiafs umount {quoted}`",
                    errno.EACCES,
                ) from None
        else:
            shown = f"branch {config.get('branch')} of {mount.source} (process {config.get('pid')})"
        raise _error(
            f"{mountpoint} is mounted already: it shows {shown}. "
            f"Unmount it first with `caiafs umount {quoted}`",
            errno.EBUSY,
        )


def _clear_stale(mount: Mount, mountpoint: str) -> None:
    try:
        unmount(mount.mountpoint, lazy=True)
    except OSError as problem:
        raise _error(
            f"a dead caiafs daemon left its mount at {mountpoint}, and you may not clear it "
            f"({problem.strerror}): `sudo caiafs umount {shlex.quote(mountpoint)}`",
            errno.ENOTCONN,
        ) from None
    log.warning("cleared the stale mount of %s that a dead daemon left at %s", mount.source, mountpoint)


# -- the branch lock --------------------------------------------------------------------------------


def state_directory(config: Config, git_dir: str, branch: bytes | str) -> str:
    """Where this mount keeps journal, lock and socket: `config.state_dir`, or a place in *git_dir*."""
    return _state_directory(git_dir, branch, config.state_dir)


class Lock:
    """Holds a branch for one mount, until `release` or the end of the process.

    flock(2) belongs to the open file: a forked child that keeps a descriptor keeps the lock, even
    past the daemon's death. Release only in the daemon; close `fds` in children that do not exec.
    """

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def release(self) -> None:
        """Give the branch free. The file stays (unlinking it would race with the next holder)."""
        while self.fds:
            fd = self.fds.pop()
            os.ftruncate(fd, 0)
            os.close(fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_branch(config: Config, git_dir: str, branch: bytes | str) -> Lock:
    """Take the lock in the state directory and, where that is elsewhere, the one in *git_dir* too.

    Without the second, two mounts with different state_dir= would not know of each other. It is
    left out only where *git_dir* cannot be written: then nobody commits there either.
    """
    try:
        lock = acquire_lock(state_directory(config, git_dir, branch), branch, config.mountpoint)
    except BranchLocked:
        raise
    except MountError as problem:
        if config.ro and config.state_dir is None and problem.errno in (errno.EACCES, errno.EROFS):
            way_out = "to look at what git has, name a directory of your own: -o ro,state_dir=DIR"
            raise _error(f"{problem}; {way_out}", problem.errno) from None
        raise
    usual = _state_directory(git_dir, branch)
    if config.state_dir is None or os.path.realpath(usual) == os.path.realpath(config.state_dir):
        return lock
    try:
        lock.fds += acquire_lock(usual, branch, config.mountpoint).fds
    except BranchLocked:
        lock.release()
        raise
    except MountError as problem:
        if problem.errno not in (errno.EACCES, errno.EROFS):
            lock.release()
            raise
        log.warning("other mounts of this branch cannot be told of this one: %s", problem)
    return lock


def acquire_lock(state_dir: str, branch: bytes | str, mountpoint: str) -> Lock:
    """Make *state_dir* (mode 0700) and take its lock; BranchLocked names the process that has it.

    What a dead holder wrote is overwritten: the kernel, not the file's text, says whether it is held.
    """
    shown = os.fsdecode(branch)
    directory = _private_directory(state_dir)
    path = os.path.join(state_dir, LOCK)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(LOCK, flags, 0o600, dir_fd=directory)
    except OSError as problem:
        raise _error(f"cannot open {path}: {problem.strerror}", problem.errno or errno.EIO) from None
    finally:
        os.close(directory)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(fd)
        raise _error(f"{path} is not a file of yours: move it away", errno.EPERM)
    os.fchmod(fd, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = _holder(fd, shown)
        os.close(fd)
        raise BranchLocked(message) from None
    except OSError as problem:
        os.close(fd)
        raise _error(f"cannot lock {path}: {problem.strerror}", problem.errno or errno.EIO) from None
    holder = {
        "pid": os.getpid(),
        "mountpoint": mountpoint,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
    return Lock([fd])


def read_lock(state_dir: str) -> dict[str, object] | None:
    """Who holds the lock of *state_dir* (pid, mountpoint, started); None when it is free."""
    try:
        fd = os.open(os.path.join(state_dir, LOCK), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    else:
        return None
    finally:
        os.close(fd)


def _private_directory(state_dir: str) -> int:
    try:
        above = os.path.dirname(state_dir)
        if not os.path.isdir(above):
            os.makedirs(above, exist_ok=True)
            os.chmod(above, 0o755)  # whatever the umask is: nobody else may rename what is in it
        _refuse_replaceable(state_dir, above)
        try:
            os.mkdir(state_dir, 0o700)
        except FileExistsError:
            if os.path.islink(state_dir):
                raise _error(
                    f"{state_dir} is a symbolic link, and the mount's state is not kept through one: remove "
                    f"it, or name the directory itself with -o state_dir=DIR",
                    errno.ELOOP,
                ) from None
        _sync_names(state_dir)
        directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as problem:
        raise _error(
            f"cannot keep the mount's state in {state_dir}: {problem.strerror}; "
            f"name another place with -o state_dir=DIR",
            problem.errno or errno.EIO,
        ) from None
    found = os.fstat(directory)
    quoted = shlex.quote(state_dir)
    if found.st_uid != os.geteuid():
        os.close(directory)
        raise _error(
            f"the state directory {state_dir} belongs to {_user(found.st_uid)}, who mounted this branch "
            f"before: mount as that user, or, once unmounted, "
            f"`sudo chown -R {_user(os.geteuid()).removeprefix('user ')} {quoted}`",
            errno.EACCES,
        )
    if found.st_mode & 0o077:
        os.close(directory)
        raise _error(
            f"the state directory {state_dir} is open to other users: `chmod 700 {quoted}`", errno.EACCES
        )
    return directory


def _refuse_replaceable(state_dir: str, above: str) -> None:
    """In a directory that everybody writes to, without the sticky bit, anybody could rename ours away."""
    mode = os.stat(above).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise _error(
            f"every user may replace {state_dir}, since {above} is open to all for writing: "
            f"`chmod o-w {shlex.quote(above)}`, or name another place with -o state_dir=DIR",
            errno.EACCES,
        )


def _sync_names(state_dir: str) -> None:
    """Make the way to *state_dir* durable: a journal that is synced is lost with a directory that is not.

    Also where it was there before: who made it may have been killed before this. A directory above
    that we may not read is somebody else's, and as durable as its owner made it.
    """
    above = os.path.dirname(state_dir)
    for _ in range(3):  # what makedirs made for us: caiafs/BRANCH in the git directory, or one more
        try:
            fsync_dir(above)
        except PermissionError:
            return
        if os.path.dirname(above) == above:
            return
        above = os.path.dirname(above)


def _holder(fd: int, branch: str) -> str:
    # The holder locks first and writes then: an empty file gets a moment.
    holder: dict[str, object] | None = None
    for _ in range(20):
        if holder := _read_holder(fd):
            break
        time.sleep(0.01)
    if not holder:
        return f"branch {branch} is mounted already, by a process that does not say which it is"
    mountpoint = str(holder.get("mountpoint"))
    return (
        f"branch {branch} is mounted already: by process {holder.get('pid')} at {mountpoint}, "
        f"since {holder.get('started')}. Unmount it with `caiafs umount {shlex.quote(mountpoint)}`, "
        f"or mount another branch with -o branch=NAME"
    )


def _read_holder(fd: int) -> dict[str, object] | None:
    try:
        holder = json.loads(os.pread(fd, 65536, 0))
    except ValueError:
        return None
    return holder if isinstance(holder, dict) else None


def _error(message: str, code: int) -> MountError:
    problem = MountError(message)
    problem.errno = code
    return problem


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _owner(path: str) -> str:
    return _user(os.stat(path).st_uid)
