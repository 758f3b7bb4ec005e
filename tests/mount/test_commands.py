"""The command line from outside: what it prints, how it exits, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

from support.mounts import Mount, Mounts, caiafs, environment, is_mounted, run, wait_until
from support.processes import Process, wait_gone
from support.users import in_child, join, need_root, own_namespace, words_as_nobody

from caiafs import control


def refused(status: int, *words: str | os.PathLike[str], says: str = "", **options: object) -> str:
    """The command fails with this exit status, one line of explanation, and no traceback."""
    done = caiafs(*words, status=status, timeout=30, **options)
    assert "Traceback" not in done.stderr, done.stderr
    assert re.search(says, done.stderr), f"{says!r} is not in: {done.stderr}"
    return done.stderr


# mount


def test_mount_in_the_background(mounts: Mounts) -> None:
    """The command returns once the mount serves; the daemon lives on, without a terminal or a directory."""
    mount = mounts.prepare()
    caiafs("mount", "-o", "init", mount.repository, mount.path)
    assert is_mounted(mount.path)
    (mount.path / "a").write_text("one\n")
    pid = json.loads(caiafs("status", "--json", mount.path).stdout)["config"]["pid"]
    daemon = Process.of(pid)
    assert daemon is not None
    family = [daemon, *daemon.children()]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)
    caiafs("umount", mount.path)
    left = wait_gone(family)
    for process in left:
        process.end()
    assert not left
    assert not is_mounted(mount.path)
    assert mount.git("show", "main:a") == "one\n"


def test_commands_whose_caller_closed_the_standard_streams(mounts: Mounts) -> None:
    """As some supervisors start programs; what is opened next must not become descriptor 0."""
    mount = mounts.prepare()

    def closed(*words: str | os.PathLike[str]) -> None:
        code = 'exec "$@" <&- >&- 2>&-'
        run("sh", "-c", code, "sh", sys.executable, "-m", "caiafs", *words, env=environment())

    closed("mount", "-o", "init,commit_quiet=1h,commit_interval=1h", mount.repository, mount.path)
    (mount.path / "a").write_text("one\n")
    pid = json.loads(caiafs("status", "--json", mount.path).stdout)["config"]["pid"]
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    closed("commit", "-m", "Unheard", mount.path)
    assert mount.git("log", "-1", "--format=%s", "main") == "Unheard\n"
    closed("umount", mount.path)
    assert not is_mounted(mount.path)


def test_mounting_again_in_the_background_after_kill_9(mounts: Mounts) -> None:
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    mount.kill()
    mount.start()
    assert (mount.path / "a").read_text() == "one\n"


def test_repository_is_missing(mounts: Mounts) -> None:
    mount = mounts.prepare()
    refused(32, "mount", mount.repository, mount.path, says="init")
    assert not mount.repository.exists()


def test_repository_is_something_else(mounts: Mounts) -> None:
    mount = mounts.prepare()
    (mount.base / "file").write_text("x")
    refused(32, "mount", mount.base / "file", mount.path, says="file")
    (mount.base / "full").mkdir()
    (mount.base / "full" / "x").write_text("x")
    refused(32, "mount", mount.base / "full", mount.path, says="full")
    assert os.listdir(mount.base / "full") == ["x"]


def test_mountpoint_is_missing_or_no_directory(mounts: Mounts) -> None:
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", mount.repository)
    refused(32, "mount", mount.repository, mount.base / "none", says="mkdir")
    (mount.base / "file").write_text("x")
    refused(32, "mount", mount.repository, mount.base / "file", says="not a directory")


def test_mountpoint_is_not_empty(mounts: Mounts) -> None:
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", mount.repository)
    (mount.path / "there").write_text("x")
    refused(32, "mount", mount.repository, mount.path, says="not empty")
    assert (mount.path / "there").read_text() == "x"


def test_mountpoint_is_mounted_already(mount: Mount) -> None:
    refused(32, "mount", "-o", "init", mount.base / "other.git", mount.path, says="(?i)mounted already")
    assert (mount.path / ".stats").exists()


def test_branch_is_mounted_already(mount: Mount) -> None:
    """Says by which process and where."""
    (mount.base / "second").mkdir()
    text = refused(32, "mount", mount.repository, mount.base / "second", says=str(mount.pid))
    assert str(mount.path) in text


def test_branch_is_checked_out(mounts: Mounts) -> None:
    """An ordinary repository: its checked-out branch is refused, another one is mounted beside it."""
    mount = mounts.prepare("branch=side")
    work = mount.base / "work"
    run("sh", "-ec", 'git init -q "$1"; cd "$1"; echo one > a; git add a; git commit -qm one', "sh", work)
    mount.repository = work
    text = refused(32, "mount", work, mount.path, says="checked out")
    assert "branch=" in text
    mount.start()
    assert (mount.path / "a").read_text() == "one\n"
    (mount.path / "b").write_text("two\n")
    mount.commit()
    assert run("git", "-C", work, "show", "side:b").stdout == "two\n"
    assert run("git", "-C", work, "status", "--porcelain").stdout == ""


def test_stale_mount_is_cleared(mounts: Mounts) -> None:
    """A daemon died: its mountpoint answers ENOTCONN; mounting again clears it, and umount does too."""
    mount = mounts()
    mount.expect_log("(?i)stale")
    (mount.path / "a").write_text("one\n")
    for way in ("mount", "umount"):
        family = mount.family()
        mount.signal(signal.SIGKILL)
        mount.wait_ended()
        assert not wait_gone(family)
        assert is_mounted(mount.path)
        if way == "umount":
            caiafs("umount", mount.path)
            assert not is_mounted(mount.path)
        mount.start()
        wait_until(mount.serves, 10, "serving")
        assert (mount.path / "a").read_text() == "one\n"


def test_wrong_words() -> None:
    refused(2, "mount", "-o", "colour=blue", "r", "m", says="colour")
    refused(2, "mount", "-o", "memory=lots", "r", "m", says="memory")
    refused(2, "mount", "-o", "primary=disk", "r", "m", says="primary")
    refused(2, "mount", says="(?i)usage|REPO")
    refused(2, "frobnicate", says="frobnicate")
    refused(2, says="(?i)usage")


def test_help_of_every_command() -> None:
    text = caiafs("--help").stdout
    for command in ("mount", "umount", "commit", "sync", "status", "check", "doctor"):
        assert command in text
        assert "usage" in caiafs(command, "--help").stdout.lower()
    assert re.search(r"\d+\.\d+", caiafs("--version").stdout)


def test_no_permission_on_the_repository(mounts: Mounts) -> None:
    need_root()
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", mount.repository)
    mount.repository.chmod(0o700)
    os.chown(mount.path, 65534, 65534)
    words = [*words_as_nobody(), sys.executable, "-m", "caiafs", "mount"]
    done = run(*words, mount.repository, mount.path, status=None, cwd="/")
    assert done.returncode == 32, done.stderr
    assert re.search("(?i)permission", done.stderr)
    assert "Traceback" not in done.stderr


def test_fuse_is_missing(mounts: Mounts) -> None:
    """On a machine without /dev/fuse, as the child's own mount namespace is one."""
    need_root()
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", mount.repository)

    def inside() -> None:
        own_namespace()
        run("mount", "-t", "tmpfs", "none", "/dev")
        for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
            os.mknod(f"/dev/{name}", 0o20666, os.makedev(1, minor))
        refused(32, "mount", mount.repository, mount.path, says="/dev/fuse")
        assert caiafs("doctor", status=1).stdout.count("/dev/fuse")

    join(in_child(inside))


def test_repository_whose_path_is_not_ascii(mounts: Mounts) -> None:
    """The name of the source is the one thing of a mount that pyfuse3 takes in ASCII only."""
    path = mounts.base / "zoë \udcff,\\101.git"
    mount = mounts(repository=path)
    found = control.mount_at(str(mount.path))
    assert found is not None
    assert found.source == str(path)
    (mount.path / "a").write_text("one\n")
    mount.commit()
    assert os.fsencode(mount.status()["config"]["settings"]["source"]["value"]) == os.fsencode(path)


# Commands on a mount


def test_commit_prints_the_id(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h,commit_interval=1h")
    (mount.path / "a").write_text("one\n")
    done = caiafs("commit", "-m", "A subject", "-m", "A paragraph.", mount.path)
    assert re.fullmatch(r"[0-9a-f]{40}\n", done.stdout)
    assert mount.git("log", "-1", "--format=%H %B").split("\n\n")[0] == f"{done.stdout.strip()} A subject"
    assert "A paragraph." in mount.git("log", "-1", "--format=%B")
    assert caiafs("commit", mount.path).stdout == done.stdout, "the commit that holds everything, new or not"
    longest = "ü" * 65_000  # a word of a command line has at most 128 KiB
    (mount.path / "b").write_text("two\n")
    mount.commit("-m", longest)
    assert mount.git("log", "-1", "--format=%s").strip() == longest


def test_sync_and_status(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h,commit_interval=1h")  # nothing is committed but by asking
    (mount.path / "a").write_text("one\n")
    caiafs("sync", mount.path)
    status = json.loads(caiafs("status", "--json", mount.path).stdout)
    assert status["health"]["healthy"] is True
    assert status["stats"]["storage_stats"]["commits"]["uncommitted_changes"] > 0
    mount.commit()
    status = json.loads(caiafs("status", "--json", mount.path).stdout)
    assert status["stats"]["storage_stats"]["commits"]["uncommitted_changes"] == 0
    text = caiafs("status", mount.path).stdout
    assert "healthy" in text
    # Without a mountpoint it speaks of all mounts of the machine: others may be there, dead ones too.
    assert str(mount.path) in caiafs("status", status=None).stdout


def test_commands_where_no_mount_is(mounts: Mounts) -> None:
    mount = mounts.prepare()
    for command in ("commit", "sync", "status", "umount"):
        code = 32 if command == "umount" else 1
        text = refused(code, command, mount.path)
        assert str(mount.path) in text
        refused(code, command, mount.base / "none")


def test_check_of_a_sound_and_of_a_damaged_repository(mounts: Mounts) -> None:
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    mount.umount()
    assert caiafs("check", mount.repository).returncode == 0
    copy = mount.base / "damaged.git"
    run("cp", "-a", mount.repository, copy)
    for pack in (copy / "objects" / "pack").glob("*.pack"):
        pack.chmod(0o644)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 0xFF
        data[20] ^= 0xFF
        pack.write_bytes(data)
    for path in (copy / "objects").glob("??/*"):
        path.chmod(0o644)
        path.write_bytes(b"nonsense")
    refused(1, "check", copy)
    refused(1, "check", mount.base / "none")


def test_check_while_mounted(mount: Mount) -> None:
    (mount.path / "a").write_text("one\n")
    done = caiafs("check", mount.repository, status=None)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


def test_doctor() -> None:
    done = caiafs("doctor", status=None)
    assert done.returncode in (0, 1)
    assert "fuse" in done.stdout.lower()
    assert "Traceback" not in done.stderr


# The end


def test_umount_drains(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    for number in range(200):
        (mount.path / f"f{number}").write_text(f"{number}\n")
    mount.umount()
    assert len(mount.git("ls-tree", "--name-only", "main").split()) == 200


def test_umount_of_a_busy_mount(mounts: Mounts) -> None:
    """Refused, naming who uses it; the mount goes on."""
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    with (mount.path / "a").open():
        text = refused(32, "umount", mount.path, says="(?i)busy|use")
        assert str(os.getpid()) in text
    (mount.path / "b").write_text("two\n")
    assert mount.serves()


def test_umount_ends_a_daemon_whose_mount_another_namespace_still_has(mounts: Mounts) -> None:
    """A container or a service that began meanwhile has a copy of the mount, which alone would keep it."""
    need_root()
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    opened, close, closed = os.pipe(), os.pipe(), os.pipe()

    def elsewhere() -> None:
        own_namespace()
        with (mount.path / "a").open():
            os.write(opened[1], b"x")
            os.read(close[0], 1)
        os.read(closed[0], 1)  # the copy of the mount stays

    child = in_child(elsewhere)
    os.read(opened[0], 1)
    text = refused(32, "umount", mount.path, says="1 open files .* keep it")
    assert "namespace" in text
    assert not is_mounted(mount.path)
    os.write(close[1], b"x")
    assert mount.wait_ended() == 0
    os.write(closed[1], b"x")
    join(child)
    for fd in (*opened, *close, *closed):
        os.close(fd)
    mount.start()
    assert (mount.path / "a").read_text() == "one\n"


def test_umount8_ends_a_daemon_whose_mount_another_namespace_still_has(mounts: Mounts) -> None:
    need_root()
    mount = mounts("commit_quiet=1h,commit_interval=1h")
    (mount.path / "a").write_text("one\n")
    copied, close = os.pipe(), os.pipe()

    def elsewhere() -> None:
        own_namespace()
        os.write(copied[1], b"x")
        os.read(close[0], 1)

    child = in_child(elsewhere)
    os.read(copied[0], 1)
    helper = "import sys; from caiafs.cli import umount_helper; sys.exit(umount_helper())"
    run(sys.executable, "-c", helper, mount.path, env=mount.env)
    assert not is_mounted(mount.path)
    assert mount.wait_ended() == 0
    assert mount.git("show", "main:a") == "one\n"
    os.write(close[1], b"x")
    join(child)
    for fd in (*copied, *close):
        os.close(fd)


def test_umount_leaves_a_mount_alone_that_has_another_place_too(mounts: Mounts) -> None:
    """A bind mount is the same mount: while it is there, the daemon has work."""
    need_root()
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    other = mount.base / "other"
    other.mkdir()
    run("mount", "--bind", mount.path, other)
    refused(32, "umount", mount.path, says=f"{other} is still mounted")
    assert not is_mounted(mount.path)
    assert (other / "a").read_text() == "one\n"
    caiafs("umount", other)
    assert mount.wait_ended() == 0


def test_stops_within_a_second_of_an_unmount(mounts: Mounts) -> None:
    """From fusermount3 -u to the end of the daemon, with nothing to commit."""
    mount = mounts()
    (mount.path / "a").write_text("one\n")
    mount.commit()
    family = mount.family()
    begin = time.monotonic()
    run("fusermount3", "-u", mount.path)
    left = wait_gone(family, 5)
    took = time.monotonic() - begin
    assert not left
    mount.wait_ended()
    assert took < 1, f"{took:.2f} s"


def test_unmount_by_other_means_loses_nothing(mounts: Mounts) -> None:
    """fusermount3 -u instead of caiafs umount: the daemon commits what it has before it ends."""
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    (mount.path / "a").write_text("one\n")
    run("fusermount3", "-u", mount.path)
    assert mount.wait_ended() == 0
    assert mount.git("show", "main:a") == "one\n"


def test_sigterm_commits_and_unmounts(mounts: Mounts) -> None:
    """What systemd does to stop a service."""
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    (mount.path / "a").write_text("one\n")
    family = mount.family()
    mount.signal(signal.SIGTERM)
    assert mount.wait_ended() == 0
    assert not wait_gone(family)
    assert not is_mounted(mount.path)
    assert mount.git("show", "main:a") == "one\n"


def test_foreground_daemon_tells_systemd(mounts: Mounts) -> None:
    mount = mounts.prepare()
    path = mount.base / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(os.fspath(path))
        listener.settimeout(20)
        mount.env = environment(NOTIFY_SOCKET=os.fspath(path))
        mount.start()
        said = b""
        while b"READY=1" not in said:
            said += listener.recv(4096) + b"\n"
        mount.umount()
        while b"STOPPING=1" not in said:
            said += listener.recv(4096) + b"\n"


def test_mount_helper_of_fstab(mounts: Mounts) -> None:
    """mount.caiafs SOURCE DIR -o OPTIONS, with the words that mount(8) adds."""
    mount = mounts.prepare()
    helper = "import sys; from caiafs.cli import mount_helper; sys.exit(mount_helper())"
    options = "rw,init,noatime,x-systemd.automount"
    run(sys.executable, "-c", helper, mount.repository, mount.path, "-o", options)
    assert is_mounted(mount.path)
    (mount.path / "a").write_text("one\n")
    caiafs("umount", mount.path)
    assert mount.git("show", "main:a") == "one\n"


def test_files_of_stats(mount: Mount, disk: Path) -> None:
    (mount.path / "a").write_text("one\n")
    (mount.path / "a").read_text()
    stats = mount.path / ".stats"
    assert sorted(os.listdir(stats)) == [
        "caiafs.prom",
        "config.json",
        "health.json",
        "metrics.json",
        "stats.json",
    ]
    for path in stats.iterdir():
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.read_bytes()
        run("cp", path, disk / path.name)
        assert (disk / path.name).stat().st_size > 0
    assert mount.stats("health.json")["healthy"] is True
    assert mount.stats("metrics.json")["metrics_summary"]["total_operations"] > 0
    assert mount.stats("config.json")["branch"] == "main"
    assert "caiafs_storage_operations_total" in (stats / "caiafs.prom").read_text()
    before = mount.stats("metrics.json")["metrics_summary"]["total_operations"]
    (stats / "metrics.json").unlink()
    assert mount.stats("metrics.json")["metrics_summary"]["total_operations"] < before
    for call in (
        lambda: (stats / "health.json").unlink(),
        lambda: (stats / "health.json").write_text("x"),
        lambda: (stats / "new").write_text("x"),
        lambda: os.rename(mount.path / "a", stats / "a"),
        lambda: os.link(mount.path / "a", stats / "a"),
        lambda: stats.rmdir(),
        lambda: os.utime(stats / "health.json"),
    ):
        try:
            call()
        except OSError:
            continue
        raise AssertionError("changed a virtual directory")
    mount.commit()
    assert mount.git("ls-tree", "-r", "--name-only", "main").split() == ["a"]
