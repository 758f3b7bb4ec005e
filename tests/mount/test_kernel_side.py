"""The kernel's side of a mount's end, and signals in the middle of it: nothing that was closed is lost.

Each test looks at the data again after a remount; the fixture checks repository and log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.mounts import Mount, Mounts, is_mounted, run, wait_until
from support.processes import Process
from support.users import in_child, join, need_root, own_namespace

PIDFD_GETFD = 438
ENDED = r"unmounted|let go|could not be unmounted|hand over|still use|ended"


def fill(mount: Mount, count: int = 50) -> dict[str, bytes]:
    held = {f"f{number}": b"%d\n" % number * 200 for number in range(count)}
    for name, data in held.items():
        (mount.path / name).write_bytes(data)
    return held


def assert_held(mount: Mount, held: dict[str, bytes]) -> None:
    assert sorted(os.listdir(mount.path)) == sorted(held)
    for name, data in held.items():
        assert (mount.path / name).read_bytes() == data, name


def pending(mount: Mount) -> int:
    return int(mount.stats()["storage_stats"]["commits"]["uncommitted_changes"])


# ---- signals


@contextlib.contextmanager
def slow_git(mounts: Mounts, *options: str) -> Iterator[tuple[Mount, dict[str, bytes], Callable[[], None]]]:
    """A mount whose repository does not answer, until the function is called: it lies in another mount,
    whose daemon is stopped. "large" is in git, and nowhere nearer."""
    outer = mounts("commit_quiet=1h", "commit_interval=1h")
    mount = mounts.prepare(*options, repository=outer.path / "r.git")
    mount.options.append(f"state_dir={mount.base / 'state'}")
    mount.start()
    held = fill(mount, 5)
    held["large"] = random.Random(3).randbytes(2_000_000)
    (mount.path / "large").write_bytes(held["large"])
    mount.commit()
    mount.umount()
    outer.remount()
    mount.start()
    for name in sorted(held.keys() - {"large"}):
        assert (mount.path / name).read_bytes() == held[name]
    for pack in (outer.path / "r.git" / "objects" / "pack").glob("*.pack"):
        with pack.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    outer.signal(signal.SIGSTOP)
    try:
        yield mount, held, lambda: outer.signal(signal.SIGCONT)
    finally:
        outer.signal(signal.SIGCONT)


def reader(path: Path, wanted: bytes) -> int:
    """A child that reads *path* and is interrupted meanwhile; it fails if it reads anything else."""

    def work() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        assert path.read_bytes() == wanted

    return in_child(work)


def test_signal_during_a_read_that_waits_for_git(mounts: Mounts) -> None:
    """The handler runs, the read comes to its end, and nobody else waits meanwhile."""
    with slow_git(mounts, "operation_timeout=60s", "commit_quiet=1h", "commit_interval=1h") as (
        mount,
        held,
        answer,
    ):
        pid = reader(mount.path / "large", held["large"])
        time.sleep(0.3)
        for _ in range(5):
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.05)
        assert (mount.path / "f1").read_bytes() == held["f1"]
        held["new"] = b"written meanwhile"
        (mount.path / "new").write_bytes(held["new"])
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the read did not wait"
        answer()
        join(pid)
        mount.kill()
        mount.start()
        assert_held(mount, held)


def test_killed_program_whose_read_waits_for_git(mounts: Mounts) -> None:
    """It is gone when the operation's time is over, and the file reads as ever once git answers."""
    with slow_git(mounts, "operation_timeout=1s", "commit_quiet=1h", "commit_interval=1h") as (
        mount,
        held,
        answer,
    ):
        mount.expect_log("did not answer within")
        pid = reader(mount.path / "large", held["large"])
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        os.waitpid(pid, 0)
        assert time.monotonic() - begin < 5
        assert error_of((mount.path / "large").read_bytes) == errno.ETIMEDOUT
        answer()
        wait_until(lambda: error_of((mount.path / "large").read_bytes) == 0, 20, "the read")
        assert_held(mount, held)


def test_sigterm_while_a_commit_runs(mounts: Mounts) -> None:
    """It drains, then it goes: everything is in git, and the journal has nothing beyond it."""
    mount = mounts("commit_quiet=0.05s", "commit_interval=0.1s")
    held = fill(mount, 400)
    assert pending(mount) > 0, "nothing was pending: the test shows nothing"
    mount.signal(signal.SIGTERM)
    assert mount.wait_ended(60) == 0
    assert not is_mounted(mount.path)
    names = mount.git("ls-tree", "-r", "--name-only", "main").split()
    assert sorted(names) == sorted(held)
    mount.start()
    assert "replayed" not in mount.log()
    assert_held(mount, held)


def test_second_sigterm_loses_nothing_that_was_journaled(mounts: Mounts) -> None:
    """Git does not take the commit, and somebody is impatient: the next mount has it all."""
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    mount.expect_log("(?i)lock|next mount|not committed")
    (mount.path / "first").write_bytes(b"")
    mount.commit()
    (mount.path / "first").unlink()
    held = fill(mount)
    lock = mount.repository / "refs" / "heads" / "main.lock"
    lock.write_text("")
    mount.signal(signal.SIGTERM)
    time.sleep(0.3)
    mount.signal(signal.SIGTERM)
    assert mount.wait_ended(60) == 1, "what is not in git must show in the exit status"
    assert not is_mounted(mount.path)
    assert "f1" not in mount.git("ls-tree", "--name-only", "main").split()
    lock.unlink()
    mount.start()
    assert_held(mount, held)
    wait_until(lambda: "f1" in mount.git("ls-tree", "--name-only", "main").split(), 20, "the commit")


# ---- unmounting


def test_fusermount_of_a_busy_mount_is_refused_and_changes_nothing(mount: Mount) -> None:
    held = fill(mount)
    with (mount.path / "f1").open("r+b") as file:
        done = run("fusermount3", "-u", mount.path, status=None)
        assert done.returncode != 0
        assert "busy" in done.stderr
        file.write(b"XX")
    held["f1"] = b"XX" + held["f1"][2:]
    assert_held(mount, held)
    mount.kill()
    mount.start()
    assert_held(mount, held)


def test_lazy_unmount_with_open_files(mount: Mount) -> None:
    """The name is gone at once; who has files open goes on, and what is written then is kept too."""
    mount.expect_log(ENDED)
    held = fill(mount)
    with (mount.path / "f1").open("r+b", buffering=0) as file:
        run("fusermount3", "-uz", mount.path)
        assert not is_mounted(mount.path)
        assert file.read(2) == b"1\n"
        file.seek(0)
        file.write(b"after the unmount")
        assert mount.daemon is not None
        time.sleep(0.3)
        assert mount.daemon.poll() is None, "the daemon left before its last user"
    held["f1"] = b"after the unmount" + held["f1"][17:]
    assert mount.wait_ended(30) == 0
    assert mount.git("show", "main:f1").encode() == held["f1"]
    mount.start()
    assert "replayed" not in mount.log()
    assert_held(mount, held)


def test_umount_with_pages_that_the_kernel_still_holds(mount: Mount) -> None:
    """umount(8), not the command: no drain before, but the kernel hands over and the daemon commits."""
    need_root()
    mount.expect_log(ENDED)
    held = fill(mount)
    fd = os.open(mount.path / "late", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"late" * 5000)
    os.close(fd)
    held["late"] = b"late" * 5000
    run("umount", mount.path)
    assert mount.wait_ended(30) == 0
    assert len(mount.git("ls-tree", "--name-only", "main").split()) == len(held)
    mount.start()
    assert_held(mount, held)


@contextlib.contextmanager
def connections() -> Iterator[Path]:
    """The kernel's control files of FUSE, mounted for a moment where the machine has not."""
    usual = Path("/sys/fs/fuse/connections")
    if any(usual.iterdir()):
        yield usual
        return
    place = Path(tempfile.mkdtemp())
    run("mount", "-t", "fusectl", "none", place)
    try:
        yield place
    finally:
        run("umount", place)
        place.rmdir()


def error_of(call: Callable[[], object]) -> int | None:
    """The errno with which a call fails; 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


def test_abort_through_the_kernels_control_files(mount: Mount) -> None:
    """/sys/fs/fuse/connections/N/abort: every call fails from then on; what was closed is kept."""
    need_root()
    mount.expect_log(ENDED)
    held = fill(mount)
    assert pending(mount) > 0, "nothing was pending: the test shows nothing"
    number = os.minor(mount.path.stat().st_dev)
    with connections() as control:
        (control / str(number) / "abort").write_text("1")
    assert error_of(lambda: os.stat(mount.path / "f2")) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert mount.wait_ended(30) in (0, 1)
    run("fusermount3", "-uz", mount.path, status=None)
    mount.start()
    assert_held(mount, held)
    mount.commit()
    assert len(mount.git("ls-tree", "--name-only", "main").split()) == len(held)


# ---- the mountpoint


def test_mountpoint_whose_parent_is_renamed(mounts: Mounts) -> None:
    """The mount goes along. Commits still get what the kernel holds, and SIGTERM drains as ever."""
    mount = mounts.prepare("commit_quiet=1h", "commit_interval=1h")
    above, moved = mount.base / "above", mount.base / "moved"
    mount.path = above / "m"
    mount.path.mkdir(parents=True)
    mount.start()
    held = fill(mount)
    with (mount.path / "open").open("wb") as file:
        file.write(b"not closed yet")
        file.flush()
        above.rename(moved)
        mount.path = moved / "m"
        mount.caiafs("commit", mount.path)
        shown = mount.git("show", "main:open")
        assert shown == "not closed yet", "the kernel was not asked for what it holds"
        file.write(b", and now it is")
    held["open"] = b"not closed yet, and now it is"
    assert_held(mount, held)
    mount.signal(signal.SIGTERM)
    assert mount.wait_ended(30) == 0
    assert not is_mounted(mount.path)
    assert mount.git("show", "main:open") == "not closed yet, and now it is"
    mount.start()
    assert_held(mount, held)


def test_mountpoint_removed_from_another_namespace(mount: Mount) -> None:
    """Where nothing is mounted, the directory can be removed, and the kernel lets the mount go everywhere."""
    need_root()
    mount.expect_log(ENDED)
    held = fill(mount)
    assert pending(mount) > 0, "nothing was pending: the test shows nothing"

    def remove() -> None:
        own_namespace()
        run("umount", mount.path)
        os.rmdir(mount.path)

    join(in_child(remove))
    assert mount.wait_ended(30) == 0
    assert len(mount.git("ls-tree", "--name-only", "main").split()) == len(held)
    mount.path.mkdir()
    mount.start()
    assert_held(mount, held)


def test_programs_that_use_the_mount_when_the_daemon_is_killed(mount: Mount) -> None:
    """Their calls fail and do not hang; the next mount at the same place serves."""
    held = fill(mount)
    mount.commit()
    fd = os.open(mount.path / "f1", os.O_RDWR)
    begin = time.monotonic()
    mount.kill()
    gone = (errno.ENOTCONN, errno.ECONNABORTED)
    assert error_of(lambda: os.ftruncate(fd, 3)) in gone
    assert error_of(lambda: os.fsync(fd)) in gone
    os.close(fd)
    assert time.monotonic() - begin < 10
    mount.start()
    assert_held(mount, held)


def fuse_descriptor(pid: int) -> int:
    """The FUSE descriptor of the process *pid*, which is thereby open here, too."""
    (number,) = (
        int(name)
        for name in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/fuse"
    )
    process = os.pidfd_open(pid)
    try:
        fd = int(ctypes.CDLL(None).syscall(PIDFD_GETFD, process, number, 0))
    finally:
        os.close(process)
    assert fd >= 0
    return fd


def is_cut_off(path: Path) -> bool:
    try:
        os.listdir(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN  # ECONNABORTED to who waits at that moment
    return False


def test_killed_daemon_that_does_not_let_go_of_its_descriptor(mount: Mount) -> None:
    """As one with a thread that hangs in the kernel: the worker ends the connection in its stead."""
    need_root()
    held = fill(mount)
    mount.commit()
    fd = fuse_descriptor(mount.pid)
    try:
        mount.signal(signal.SIGKILL)
        wait_until(lambda: is_cut_off(mount.path), what="the end of the connection")
        assert is_mounted(mount.path)
    finally:
        os.close(fd)
        mount.kill()
    mount.start()
    assert_held(mount, held)


def test_daemon_killed_while_the_kernel_hands_over(mount: Mount) -> None:
    """Nothing of the daemon waits for the daemon: it is gone at once, and so is whoever wrote."""

    def write() -> None:
        with contextlib.suppress(OSError), (mount.path / "large").open("wb", buffering=0) as file:
            for _ in range(400):  # the kernel takes what it never gets rid of, too
                file.write(bytes(1 << 20))

    def is_asked() -> bool:
        children = Process.of(mount.pid).children()  # type: ignore[union-attr]
        return any(Path(f"/proc/{child.pid}/comm").read_text() == "sync\n" for child in children)

    held = fill(mount)
    writer = in_child(write)
    asker = in_child(lambda: mount.caiafs("sync", mount.path, status=None))
    wait_until(is_asked, what="the kernel being asked for what it holds")
    mount.kill()
    for child in (writer, asker):
        join(child)
    mount.start()
    (mount.path / "large").unlink()
    assert_held(mount, held)
