"""`caiafs mount` and `caiafs umount`. helpers.py has what mount(8) runs."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import logging
import os
import select
import shlex
import sys
from collections.abc import Callable

from caiafs.cli.render import ProgressLine, watched
from caiafs.config import Config
from caiafs.control import (
    ControlError,
    Mount,
    call_socket,
    locate,
    mount_at,
    mount_of,
    mount_table,
    read_stats,
)
from caiafs.control.mounts import is_within, unmount
from caiafs.errors import MountError, UsageError

log = logging.getLogger(__name__)

PINNED_AFTER = 2.0
"""Seconds after which an unmounted daemon that is still there is asked whether something keeps it."""


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
        from caiafs.mount import daemonize, logs, notify
    except ImportError as problem:
        raise MountError(
            f"cannot load what mounting needs ({problem}); `caiafs doctor` says how to mend it"
        ) from None

    # Taken out of the environment: what the daemon starts is no service of its own.
    manager = notify.take_environment(os.environ)
    journal = logs.to_journal(os.environ)
    log_path = None if journal else daemonize.default_log_path(config.mountpoint)

    def serve(ready: Callable[[], None]) -> int:
        log_file = None if foreground or log_path is None else daemonize.open_log(log_path)
        context = {"mount": config.mountpoint, "repo": config.repo}
        leave_terminal = logs.start(config.log_level, context, log_file, journal=journal)

        def serving() -> None:
            leave_terminal()
            ready()

        # Where a loop hangs, and the watchdog ends it, the log says where.
        faulthandler.enable(log_file.fileno() if log_file is not None else 2)
        for note in config.notes:
            log.warning("%s", note)
        return mounting.run(config, serving, notify.Notifier(manager if foreground else {}), watched)

    if foreground:
        return serve(lambda: None)
    return daemonize.launch(serve, log_path)


def umount(arguments: argparse.Namespace) -> int:
    """`caiafs umount`: drain, unmount, wait for the daemon's end."""
    timeout: float = arguments.timeout
    mountpoint = _mountpoint(arguments)
    if arguments.stale:
        return _clear_if_dead(mountpoint)
    mounted = _mounted_at(mountpoint)
    os.chdir("/")  # or this very process keeps the mount busy
    quoted = shlex.quote(mounted.mountpoint)
    try:
        location = locate(mounted.mountpoint, timeout)
        daemon = open_process(location.pid)
        with ProgressLine() as progress:
            call_socket(location.state_dir, "drain", None, timeout, progress)
    except ControlError as problem:
        if problem.errno == errno.ENOTCONN:
            return _clear(mounted)
        if problem.errno in (errno.EACCES, errno.EPERM):
            raise MountError(str(problem), problem.errno) from None
        raise MountError(
            f"{problem}\n{mounted.mountpoint} stays mounted, and its journal keeps everything. To unmount "
            f"without the commit: `{'umount' if os.geteuid() == 0 else 'fusermount3 -u'} {quoted}`; "
            f"the next mount goes on where this one ends",
            problem.errno,
        ) from None
    try:
        unmount(mounted.mountpoint)
    except OSError as problem:
        raise not_unmounted(mounted, problem) from None
    if daemon is not None and not ends(daemon, location.state_dir, timeout):
        raise MountError(
            f"{mounted.mountpoint} is unmounted, but its daemon (process {location.pid}) is still at work "
            f"after {timeout:g} s: it ends by itself, and until then the branch cannot be mounted again",
            errno.ETIMEDOUT,
        )
    return 0


def _mountpoint(arguments: argparse.Namespace) -> str:
    """The MOUNTPOINT that was given, or the one that the file of --config names."""
    if (arguments.mountpoint is None) == (arguments.config is None):
        raise UsageError("umount takes MOUNTPOINT, or --config FILE, which names it")
    if arguments.mountpoint is not None:
        return str(arguments.mountpoint)
    return Config.load(None, None, (), os.environ, arguments.config).mountpoint


def _clear_if_dead(mountpoint: str) -> int:
    """`caiafs umount --stale`: for whoever cleans up after a daemon, which may have left nothing."""
    mounted = mount_at(os.path.realpath(mountpoint))
    if mounted is None or not mounted.is_caiafs:
        return 0
    try:
        read_stats(mounted.mountpoint, "config.json", timeout=5.0)
    except ControlError as problem:
        if problem.errno == errno.ENOTCONN:
            return _clear(mounted)
    return 0


def _ask_to_leave(state_dir: str, timeout: float) -> None:
    """Other mount namespaces (of containers and services) may hold copies of the mount, and the kernel
    keeps the daemon for them: it is to end all the same, unless files are open there."""
    try:
        call_socket(state_dir, "leave", None, timeout)
    except ControlError as problem:
        if problem.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET):
            return  # it is on its way out already
        raise MountError(str(problem), problem.errno) from None


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
        raise MountError(
            f"{path} is a mount of {mounted.fstype}, not of caiafs: use `umount {quoted}`", errno.EINVAL
        )
    around = mount_of(path)
    if around is not None and around.is_caiafs:
        raise MountError(
            f"{path} is no mountpoint; it lies in the mount at {around.mountpoint}", errno.EINVAL
        )
    if not os.path.lexists(absolute):
        raise MountError(f"{path} does not exist", errno.ENOENT)
    places = sorted({each.mountpoint for each in mount_table() if each.is_caiafs})
    raise MountError(
        f"{path} is not mounted; "
        + (f"mounted are: {', '.join(places)}" if places else "nothing of caiafs is"),
        errno.EINVAL,
    )


def _clear(mounted: Mount) -> int:
    try:
        unmount(mounted.mountpoint, lazy=True)
    except OSError as problem:
        raise not_unmounted(mounted, problem) from None
    print(
        f"caiafs: the daemon of {mounted.mountpoint} was dead; its mount is cleared. Nothing acknowledged is "
        f"lost: the next mount of {mounted.source} replays the journal.",
        file=sys.stderr,
    )
    return 0


def not_unmounted(mounted: Mount, problem: OSError) -> MountError:
    quoted = shlex.quote(mounted.mountpoint)
    if problem.errno != errno.EBUSY:
        return MountError(f"cannot unmount {mounted.mountpoint}: {problem.strerror}", problem.errno)
    inner = [
        each.mountpoint
        for each in mount_table()
        if is_within(each.mountpoint, mounted.mountpoint) and each.mountpoint != mounted.mountpoint
    ]
    if inner:
        return MountError(
            f"{mounted.mountpoint} is busy: unmount first what is mounted in it: {', '.join(inner)}",
            errno.EBUSY,
        )
    return busy_with(
        mounted,
        "all is committed, but it stays mounted",
        f", or detach it with `fusermount3 -uz {quoted}`: it then ends with its last user",
    )


def busy_with(mounted: Mount, what: str, way_out: str = "") -> MountError:
    """The error of a mount that programs use: which ones."""
    using = [
        f"  process {pid} ({program}): {used}" for pid, program, used in holders(mounted.mountpoint)[:10]
    ]
    said = "\n".join(using) or "  (by processes of other users; as root, this command names them)"
    return MountError(
        f"{mounted.mountpoint} is busy; {what}. It is used by\n{said}\nEnd those and try again{way_out}",
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


def open_process(pid: int) -> int | None:
    """A descriptor that tells of the end of *pid*, whatever the number is used for later."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def ends(process: int, state_dir: str, timeout: float) -> bool:
    """Wait for the end of the daemon *process*, which is unmounted, and close its descriptor.

    False if it is still there after *timeout* seconds without a reason; MountError says one.
    """
    try:
        ended = select.poll()  # select(2) takes no descriptor above 1023
        ended.register(process, select.POLLIN)
        if ended.poll(min(timeout, PINNED_AFTER) * 1000):
            return True
        _ask_to_leave(state_dir, timeout)
        return bool(ended.poll(timeout * 1000))
    finally:
        os.close(process)
