"""`caiafs mount`, `caiafs umount`, and the helper that mount(8) runs."""

from __future__ import annotations

import argparse
import ctypes
import errno
import getopt
import logging
import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from caiafs.cli.render import ProgressLine
from caiafs.config import Config
from caiafs.control import ControlError, Mount, call_socket, locate, mount_at, mount_of, mount_table
from caiafs.control.mounts import is_within, unmount
from caiafs.errors import MountError, UsageError

log = logging.getLogger(__name__)


def mount(arguments: argparse.Namespace) -> int:
    """`caiafs mount`: returns once the mount serves, or with -f once it is unmounted."""
    places: list[str] = arguments.places
    if len(places) > 2:
        raise UsageError(f"mount takes REPO and MOUNTPOINT, not {len(places)} paths: {' '.join(places)}")
    mountpoint = places[-1] if places else None
    repo = places[0] if len(places) == 2 else None
    config = Config.load(repo, mountpoint, arguments.options, os.environ, arguments.config)
    return start(config, foreground=arguments.foreground)


def start(config: Config, *, foreground: bool) -> int:
    """Serve *config* here or in a child in the background; MountError where a library is missing."""
    try:
        from caiafs import mount as mounting
        from caiafs.mount import daemonize
    except ImportError as problem:
        raise MountError(
            f"cannot load what mounting needs ({problem}); `caiafs doctor` says how to mend it"
        ) from None

    log_path = daemonize.default_log_path(config.mountpoint)

    def serve(ready: Callable[[], None]) -> int:
        ready = _start_logging(config.log_level, None if foreground else daemonize.open_log(log_path), ready)
        for note in config.notes:
            log.warning("%s", note)
        return mounting.run(config, ready)

    if foreground:
        return serve(lambda: None)
    return daemonize.launch(serve, log_path)


def helper(words: Sequence[str]) -> int:
    """mount.caiafs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE], as mount(8) calls it."""
    try:
        flags, places = getopt.gnu_getopt(list(words), "sfnvhVN:o:t:")
    except getopt.GetoptError as problem:
        raise UsageError(
            f"{problem}; usage: mount.caiafs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS]"
        ) from None
    if len(places) != 2:
        raise UsageError("usage: mount.caiafs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]")
    given = dict(flags)
    if "-N" in given:
        _enter_namespace(given["-N"])
    # `caiafs#/srv/x.git` is the older way to name the program in fstab's first field.
    source = places[0].removeprefix("caiafs#")
    options = [value for flag, value in flags if flag == "-o"]
    config = Config.load(source, places[1], options, os.environ, sloppy="-s" in given)
    if "-v" in given:
        print(f"mount.caiafs: mounting {config.repo} on {config.mountpoint}", file=sys.stderr)
    if "-f" in given:
        return 0  # "fake": everything but the mount itself
    return start(config, foreground=False)


def umount(arguments: argparse.Namespace) -> int:
    """`caiafs umount`: drain, unmount, wait for the daemon's end."""
    timeout: float = arguments.timeout
    mounted = _mounted_at(arguments.mountpoint)
    os.chdir("/")  # or this very process keeps the mount busy
    quoted = shlex.quote(mounted.mountpoint)
    try:
        location = locate(mounted.mountpoint, timeout)
        daemon = _open_process(location.pid)
        with ProgressLine() as progress:
            call_socket(location.state_dir, "drain", None, timeout, progress)
    except ControlError as problem:
        if problem.errno == errno.ENOTCONN:
            return _clear(mounted)
        if problem.errno in (errno.EACCES, errno.EPERM):
            raise _failed(str(problem), problem.errno) from None
        raise _failed(
            f"{problem}\n{mounted.mountpoint} stays mounted, and its journal keeps everything. To unmount "
            f"without the commit: `{'umount' if os.geteuid() == 0 else 'fusermount3 -u'} {quoted}`; "
            f"the next mount goes on where this one ends",
            problem.errno,
        ) from None
    try:
        unmount(mounted.mountpoint)
    except OSError as problem:
        raise _not_unmounted(mounted, problem) from None
    if daemon is not None and not _wait_end(daemon, timeout):
        raise _failed(
            f"{mounted.mountpoint} is unmounted, but its daemon (process {location.pid}) is still at work "
            f"after {timeout:g} s: it ends by itself, and until then the branch cannot be mounted again",
            errno.ETIMEDOUT,
        )
    return 0


def holders(mountpoint: str) -> list[tuple[int, str, str]]:
    """(pid, program, what it uses) of every process that keeps *mountpoint* busy, as far as we may see."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (used := _used_by(entry, mountpoint)):
            try:
                with open(f"/proc/{entry}/comm", "rb") as stream:
                    program = os.fsdecode(stream.read().strip())
            except OSError:
                continue
            found.append((int(entry), program, used))
    return sorted(found)


def _mounted_at(path: str) -> Mount:
    absolute = os.path.abspath(path)
    mounted = mount_at(absolute) or mount_at(os.path.realpath(absolute))
    if mounted is not None and mounted.is_caiafs:
        return mounted
    if mounted is not None:
        quoted = shlex.quote(mounted.mountpoint)
        raise _failed(
            f"{path} is a mount of {mounted.fstype}, not of caiafs: use `umount {quoted}`", errno.EINVAL
        )
    around = mount_of(path)
    if around is not None and around.is_caiafs:
        raise _failed(f"{path} is no mountpoint; it lies in the mount at {around.mountpoint}", errno.EINVAL)
    if not os.path.lexists(absolute):
        raise _failed(f"{path} does not exist", errno.ENOENT)
    places = sorted({each.mountpoint for each in mount_table() if each.is_caiafs})
    raise _failed(
        f"{path} is not mounted; "
        + (f"mounted are: {', '.join(places)}" if places else "nothing of caiafs is"),
        errno.EINVAL,
    )


def _clear(mounted: Mount) -> int:
    try:
        unmount(mounted.mountpoint, lazy=True)
    except OSError as problem:
        raise _not_unmounted(mounted, problem) from None
    print(
        f"caiafs: the daemon of {mounted.mountpoint} was dead; its mount is cleared. Nothing acknowledged is "
        f"lost: the next mount of {mounted.source} replays the journal.",
        file=sys.stderr,
    )
    return 0


def _not_unmounted(mounted: Mount, problem: OSError) -> MountError:
    quoted = shlex.quote(mounted.mountpoint)
    if problem.errno != errno.EBUSY:
        return _failed(f"cannot unmount {mounted.mountpoint}: {problem.strerror}", problem.errno)
    inner = [
        each.mountpoint
        for each in mount_table()
        if is_within(each.mountpoint, mounted.mountpoint) and each.mountpoint != mounted.mountpoint
    ]
    if inner:
        return _failed(
            f"{mounted.mountpoint} is busy: unmount first what is mounted in it: {', '.join(inner)}",
            errno.EBUSY,
        )
    using = [
        f"  process {pid} ({program}): {what}" for pid, program, what in holders(mounted.mountpoint)[:10]
    ]
    said = "\n".join(using) or "  (by processes of other users; as root, this command names them)"
    return _failed(
        f"{mounted.mountpoint} is busy; all is committed, but it stays mounted. It is used by\n{said}\n"
        f"End those and try again, or detach it with `fusermount3 -uz {quoted}`: "
        f"it then ends with its last user",
        errno.EBUSY,
    )


def _used_by(pid: str, mountpoint: str) -> str:
    # Only names are compared: readlink in /proc never asks the mount itself.
    def target(link: str) -> str:
        try:
            return os.readlink(f"/proc/{pid}/{link}")
        except OSError:
            return ""

    for link, words in (("cwd", "works in"), ("root", "has its root in"), ("exe", "runs")):
        if is_within(place := target(link), mountpoint):
            return f"{words} {place}"
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return ""
    for descriptor in descriptors:
        if is_within(place := target(f"fd/{descriptor}"), mountpoint):
            return f"has {place} open"
    try:
        with open(f"/proc/{pid}/maps", "rb") as stream:
            for line in stream:
                fields = line.rstrip(b"\n").split(maxsplit=5)
                if len(fields) == 6 and is_within(place := os.fsdecode(fields[5]), mountpoint):
                    return f"has {place} mapped"
    except OSError:
        pass
    return ""


def _open_process(pid: int) -> int | None:
    """A descriptor that tells of the end of *pid*, whatever the number is used for later."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _wait_end(process: int, timeout: float) -> bool:
    try:
        return bool(select.select([process], [], [], timeout)[0])
    finally:
        os.close(process)


def _enter_namespace(name: str) -> None:
    """Go where mount(8) -N points: a process id, or a file such as /proc/7/ns/mnt; see setns(2)."""
    path = f"/proc/{name}/ns/mnt" if name.isdigit() else name
    clone_newns = 0x00020000
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise _failed(f"cannot open the mount namespace {path}: {problem.strerror}", problem.errno) from None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, clone_newns) != 0:
            code = ctypes.get_errno()
            raise _failed(f"cannot enter the mount namespace {path}: {os.strerror(code)}", code)
    finally:
        os.close(fd)


def _start_logging(level: str, log_file: TextIO | None, ready: Callable[[], None]) -> Callable[[], None]:
    """Log to standard error, or to *log_file*: then the terminal sees warnings only, and those until ready.

    Returns what is to be called in place of *ready*.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    terminal = logging.StreamHandler(sys.stderr)
    handlers = [terminal]
    if log_file is not None:
        terminal.setLevel(logging.WARNING)
        handlers.append(logging.StreamHandler(log_file))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)

    def leave_terminal() -> None:
        if log_file is not None:
            root.removeHandler(terminal)
        ready()

    return leave_terminal


def _failed(message: str, code: int | None) -> MountError:
    problem = MountError(message)
    problem.errno = code or errno.EIO
    return problem
