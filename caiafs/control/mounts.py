"""Mounts as the machine sees them: what is mounted, what may be mounted, and how to unmount.

Shared by the checks before a mount, by `caiafs umount` and by `caiafs doctor`. The table is
/proc/self/mountinfo, see proc(5): reading it never touches a mounted filesystem, so it is safe
while one hangs or is dead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

FSTYPE = "fuse.caiafs"
TABLE = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table. Paths may hold surrogate escapes for undecodable bytes."""

    mountpoint: str
    fstype: str
    source: str
    options: str
    device: str
    """major:minor; the minor number names the directory under /sys/fs/fuse/connections."""
    super_options: str = ""
    """What the filesystem itself was given; of FUSE among them user_id and group_id."""

    @property
    def is_caiafs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def owner(self) -> tuple[int, int]:
        """uid and gid of the user who mounted it; root where the table does not say."""
        found = dict(re.findall(r"(user_id|group_id)=(\d+)", self.super_options))
        return int(found.get("user_id", 0)), int(found.get("group_id", 0))


def mount_table(path: str | None = None) -> list[Mount]:
    """Every mount this process sees, oldest first: of several at one place, the last is on top."""
    return [_parse(line) for line in _lines(path)]


def _lines(path: str | None = None) -> list[bytes]:
    with open(path or TABLE, "rb") as stream:
        return [line for line in stream.read().splitlines() if b" - " in line]


def mount_at(mountpoint: str) -> Mount | None:
    """The mount whose root is exactly *mountpoint* (absolute), or None."""
    for line in reversed(_lines()):
        if _unescape(line.split(b" ", 5)[4]) == mountpoint:
            return _parse(line)
    return None


def mount_of(path: str) -> Mount | None:
    """The mount that *path* lies in. Symbolic links are followed, save through the mountpoint itself."""
    path = os.path.abspath(path)
    if exact := mount_at(path):
        return exact
    path = os.path.realpath(path)
    holding = [mount for mount in mount_table() if is_within(path, mount.mountpoint)]
    return max(reversed(holding), key=lambda mount: len(mount.mountpoint), default=None)


def is_within(path: str, directory: str) -> bool:
    """Whether *path* is *directory* or below it; by name only."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _parse(line: bytes) -> Mount:
    # 36 35 98:0 /root /mountpoint options optional… - fstype source superoptions
    left, right = line.split(b" - ", 1)
    before, after = left.split(b" "), right.split(b" ")
    return Mount(
        mountpoint=_unescape(before[4]),
        fstype=_unescape(after[0]),
        source=_unescape(after[1]),
        options=_unescape(before[5]),
        device=os.fsdecode(before[2]),
        super_options=_unescape(after[2]),
    )


def _unescape(field: bytes) -> str:
    # The kernel writes space, tab, newline, backslash and # as \ooo.
    if b"\\" not in field:
        return os.fsdecode(field)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))


# -- what this machine allows -----------------------------------------------------------------------


def fuse_device_problem(device: str = "/dev/fuse") -> str | None:
    """Why *device* cannot be used, with the way out; None when it can.

    Ordinary users need it too: libfuse opens it itself before it turns to fusermount3.
    """
    if not os.path.exists(device):
        return (
            f"{device} does not exist: load the kernel module with `sudo modprobe fuse`; "
            f"in a container, start it with --device /dev/fuse"
        )
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        if os.geteuid() != 0:
            return f"{device} is closed to ordinary users ({problem.strerror}): `sudo chmod 666 {device}`"
        return (
            f"{device} cannot be opened ({problem.strerror}): "
            f"in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
        )
    if os.geteuid() == 0 and not _may_mount():
        return (
            "this process may not mount, though it is root (CAP_SYS_ADMIN is missing): in a container, add it"
        )
    return None


def fusermount_problem() -> str | None:
    """Why an ordinary user cannot mount through fusermount3, with the way out; None when it works."""
    program = shutil.which("fusermount3")
    if program is None:
        return "fusermount3 is missing: `sudo apt-get install fuse3` (or your system's package of that name)"
    if os.geteuid() == 0 or os.stat(program).st_mode & stat.S_ISUID:
        return None
    try:
        os.getxattr(program, "security.capability")
    except OSError:
        return f"{program} is not set-uid root, so that only root can mount: `sudo chmod u+s {program}`"
    return None


def others_allowed(path: str = "/etc/fuse.conf") -> bool:
    """Whether ordinary users may mount with allow_other."""
    try:
        with open(path, "rb") as stream:
            return any(line.split(b"#")[0].strip() == b"user_allow_other" for line in stream)
    except OSError:
        return False


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take away the topmost mount at *mountpoint*; OSError with EBUSY or EPERM when that is refused.

    *lazy* also works on a busy or dead mount: it vanishes at once, and ends when nobody uses it.
    """
    program = shutil.which("umount") if os.geteuid() == 0 else None
    if program is not None:
        # -i: not by way of our own helper, which calls this.
        command = [program, "-i", *(["-l"] if lazy else []), "--", mountpoint]
    else:
        # An ordinary user: fusermount3 checks that the mount is theirs.
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "fusermount3 is missing") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        # "target is busy", "Device or resource busy"; the path may hold the word too.
        code = errno.EBUSY if "busy" in said.replace(mountpoint, "") else errno.EPERM
        raise OSError(code, said.splitlines()[-1] if said else f"{command[0]} failed")


def hand_over(path: str) -> None:
    """Return once the kernel has handed over what its write-back cache holds for the mount at *path*.

    It waits for requests that the daemon serves. Raises OSError.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd, path)
    finally:
        os.close(fd)


def sync_filesystem(fd: int, path: str) -> None:
    """syncfs(2) of what *fd* is on, which may be O_PATH; *path* is for the error. Raises OSError.

    By a process of its own. A thread of the daemon would wait here for the daemon's own answers, where no
    signal reaches it: after a kill -9 in that moment it would keep the FUSE descriptor open, so that the
    kernel never learns of the daemon's death, and whoever uses the mount would wait for ever.
    """
    program = shutil.which("sync")
    if program is None:
        raise OSError(errno.ENOENT, "sync(1) is missing")
    done = subprocess.run(
        [program, "-f", f"/proc/self/fd/{fd}"],
        stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(fd,), check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
        raise OSError(errno.EIO, said or f"{program} failed", path)


def is_automounted(mountpoint: str) -> bool:
    """Whether an automounter waits below the mount at *mountpoint*."""
    return any(each.fstype == "autofs" and each.mountpoint == mountpoint for each in mount_table())


_FLAGS = {  # linux/mount.h
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024,
    "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24,
}  # fmt: skip
_REMOUNT = 32
_UNSET = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "atime": "noatime",
    "diratime": "nodiratime",
}  # fmt: skip


def remount(mount: Mount, words: Iterable[str]) -> None:
    """Change the kernel's flags of *mount* by *words* (ro, rw, nosuid, suid …); mount(2), as root.

    Raises OSError: EBUSY for ro while a file is open for writing, EPERM.
    """
    now = {*mount.options.split(","), *({"sync", "dirsync"} & {*mount.super_options.split(",")})}
    if "ro" in mount.super_options.split(","):
        now.add("ro")
    for word in words:
        now.discard(_UNSET.get(word, ""))
        if word in ("noatime", "relatime", "strictatime"):
            now -= {"noatime", "relatime", "strictatime"}
        now.add(word)
    flags = sum(bit for word, bit in _FLAGS.items() if word in now)
    target = os.fsencode(mount.mountpoint)
    if ctypes.CDLL(None, use_errno=True).mount(b"none", target, None, ctypes.c_ulong(_REMOUNT | flags), None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), mount.mountpoint)


UMOUNT_HELPER = f"/sbin/umount.{FSTYPE}"


def note_helper(mountpoint: str) -> None:
    """Let umount(8) know that the mount at *mountpoint* has a helper of its own, where it has one.

    It would else take the type from statfs(2), which for any FUSE mount is "fuse", and call none.
    mount(8) writes the note into /run/mount/utab, and mounts nothing (-f). For root; best effort:
    without the note nothing is lost, only that umount(8) returns before the last commit is made.
    """
    program, mount = shutil.which("mount"), mount_at(mountpoint)
    if os.geteuid() != 0 or program is None or mount is None or not os.path.exists(UMOUNT_HELPER):
        return
    words = [program, "-i", "-f", "-t", FSTYPE, "-o", f"uhelper={FSTYPE}", "--", mount.source, mountpoint]
    subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _may_mount() -> bool:
    cap_sys_admin = 21
    with open("/proc/self/status", "rb") as stream:
        effective = re.search(rb"^CapEff:\s*([0-9a-f]+)", stream.read(), re.MULTILINE)
    return effective is None or bool(int(effective[1], 16) >> cap_sys_admin & 1)
