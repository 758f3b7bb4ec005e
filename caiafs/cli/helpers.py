"""What mount(8) and umount(8) run: mount.caiafs, mount.fuse.caiafs, umount.caiafs, umount.fuse.caiafs.

They are called with paths that are absolute, as root or as the ordinary user who may mount by
fstab. The two ways differ from `caiafs mount` and `caiafs umount` in what mount(8) promises:
without nosuid and nodev, root's mounts have suid and dev; and umount(8) unmounts even where git
takes no commit, since the journal keeps everything for the next mount.
"""

from __future__ import annotations

import ctypes
import errno
import getopt
import os
import sys
import threading
from collections.abc import Sequence

from caiafs.cli import mounting
from caiafs.config import Config, Remount, split_options, split_remount
from caiafs.control import ControlError, Mount, call_socket, locate, mount_at
from caiafs.control.mounts import hand_over, unmount
from caiafs.control.mounts import remount as remount_kernel
from caiafs.errors import MountError, UsageError

MOUNT_USAGE = "usage: mount.caiafs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"
UMOUNT_USAGE = "usage: umount.caiafs DIR [-flnrv] [-N NAMESPACE] [-t TYPE]"
DRAIN_TIMEOUT = 60.0
"""Seconds without progress after which umount(8) unmounts without the last commit."""


def mount(words: Sequence[str]) -> int:
    """mount.caiafs, as mount(8) has it: mounts, or changes a mount with -o remount."""
    flags, places = _take_apart(words, "sfnvhVN:o:t:", MOUNT_USAGE)
    if len(places) != 2:
        raise UsageError(MOUNT_USAGE)
    given = dict(flags)
    if "-N" in given:
        _enter_namespace(given["-N"])
    # `caiafs#/srv/x.git` is the older way to name the program in fstab's first field.
    source = places[0].removeprefix("caiafs#")
    options = [value for flag, value in flags if flag == "-o"]
    if any(name == "remount" for name, _ in split_options(options)):
        return 0 if "-f" in given else _remount(places[1], split_remount(options))
    if os.geteuid() == 0:
        # mount(8) passes suid and dev on only where something else took them away before.
        options = ["suid,dev", *options]
    config = Config.load(source, places[1], options, os.environ, sloppy="-s" in given)
    if "-v" in given:
        print(f"mount.caiafs: mounting {config.repo} on {config.mountpoint}", file=sys.stderr)
    if "-f" in given:
        return 0  # "fake": everything but the mount itself
    return mounting.start(config, foreground=False)


def umount(words: Sequence[str]) -> int:
    """umount.caiafs, as umount(8) has it: commits and unmounts, and returns when the daemon has ended.

    -l and -f unmount at once; the daemon commits afterwards.
    """
    flags, places = _take_apart(words, "flnrvhVN:t:", UMOUNT_USAGE)
    if len(places) != 1:
        raise UsageError(UMOUNT_USAGE)
    given = dict(flags)
    if "-N" in given:
        _enter_namespace(given["-N"])
    os.chdir("/")
    mounted = mount_at(places[0])
    if mounted is None or not mounted.is_caiafs:
        raise MountError(f"{places[0]} is no mount of caiafs", errno.EINVAL)
    at_once = "-l" in given or "-f" in given
    daemon, state_dir = (None, "") if at_once else _drain(mounted)
    try:
        unmount(mounted.mountpoint, lazy=at_once)
    except OSError as problem:
        if problem.errno == errno.EBUSY and "-r" in given:
            return _remount(mounted.mountpoint, Remount(True, (), ()))
        raise mounting.not_unmounted(mounted, problem) from None
    if daemon is not None:
        try:
            ended = mounting.ends(daemon, state_dir, DRAIN_TIMEOUT)
            said = f"{mounted.mountpoint} is unmounted; its daemon still commits what is left"
        except MountError as problem:
            ended, said = False, str(problem)
        if not ended:
            print(f"umount.caiafs: {said}", file=sys.stderr)
    if "-v" in given:
        print(f"umount.caiafs: {mounted.mountpoint} unmounted", file=sys.stderr)
    return 0


def _drain(mounted: Mount) -> tuple[int | None, str]:
    """Let the daemon commit everything; gives a descriptor of its process, and its state directory.

    Whatever git says, we go on.
    """
    daemon, state_dir = None, ""
    try:
        location = locate(mounted.mountpoint, DRAIN_TIMEOUT)
        daemon, state_dir = mounting.open_process(location.pid), location.state_dir
        # Here, and not in the daemon: where an automounter ends an idle mount, only who was started
        # by it gets to the place.
        flushed = _hand_over(mounted.mountpoint)
        call_socket(location.state_dir, "drain", {"flushed": flushed}, DRAIN_TIMEOUT)
    except ControlError as problem:
        if problem.errno == errno.ENOTCONN:
            return None, ""  # its daemon is dead: only the mount is left to take away
        print(
            f"umount.caiafs: {problem}\numount.caiafs: unmounting all the same: the journal keeps what git "
            f"does not have, and the next mount commits it",
            file=sys.stderr,
        )
    return daemon, state_dir


def _hand_over(mountpoint: str) -> bool:
    """Let the kernel hand over what it holds; False if it did not, and the daemon is to see to it."""
    done: list[bool] = []

    def work() -> None:
        try:
            hand_over(mountpoint)
        except OSError:
            done.append(False)  # not permitted, or a write-back that failed: the daemon's own try says so
        else:
            done.append(True)

    # A daemon that hangs must not hang umount(8): the thread ends with us.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DRAIN_TIMEOUT)
    return bool(done and done[0])


def _remount(mountpoint: str, wanted: Remount) -> int:
    """Other flags for the kernel, other settings for the daemon; both or none where that is possible."""
    mounted = mount_at(mountpoint)
    if mounted is None or not mounted.is_caiafs:
        raise MountError(f"{mountpoint} is no mount of caiafs", errno.EINVAL)
    state_dir = locate(mountpoint).state_dir
    request: dict[str, object] = {"words": [list(word) for word in wanted.settings]}
    if wanted.ro is False:
        request["ro"] = False
    call_socket(state_dir, "remount", request, DRAIN_TIMEOUT)
    words = [*wanted.kernel]
    if wanted.ro is not None:
        words.append("ro" if wanted.ro else "rw")
    try:
        remount_kernel(mounted, words)
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            raise mounting.busy_with(
                mounted, "cannot become read-only: files in it are open for writing"
            ) from None
        raise MountError(f"cannot remount {mountpoint}: {problem.strerror}", problem.errno) from None
    if wanted.ro:
        # The kernel lets no writer in any more; the daemon commits what there is, and refuses, too.
        call_socket(state_dir, "remount", {"ro": True}, DRAIN_TIMEOUT)
    return 0


def _take_apart(words: Sequence[str], letters: str, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.gnu_getopt(list(words), letters)
    except getopt.GetoptError as problem:
        raise UsageError(f"{problem}; {usage}") from None


def _enter_namespace(name: str) -> None:
    """Go where mount(8) -N points: a process id, or a file such as /proc/7/ns/mnt; see setns(2)."""
    path = f"/proc/{name}/ns/mnt" if name.isdigit() else name
    clone_newns = 0x00020000
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise MountError(
            f"cannot open the mount namespace {path}: {problem.strerror}", problem.errno
        ) from None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, clone_newns) != 0:
            code = ctypes.get_errno()
            raise MountError(f"cannot enter the mount namespace {path}: {os.strerror(code)}", code)
    finally:
        os.close(fd)
