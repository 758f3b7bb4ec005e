"""Checks before mounting, the branch lock, and going to the background: without a caiafs mount.

A dead mount is made with mount(2) alone: a /dev/fuse that nobody answers, closed again.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.mounts import environment
from support.users import ALICE, acting_as, need_root

from caiafs import control
from caiafs.config import Config
from caiafs.control import mounts
from caiafs.errors import BranchLocked, MountError
from caiafs.mount import daemonize, preflight


@pytest.fixture
def mountpoint(tmp_path: Path) -> str:
    place = tmp_path / "m m"
    place.mkdir()
    return str(place)


@pytest.fixture
def dead_mount(mountpoint: str) -> Iterator[Callable[..., str]]:
    """Mounts a filesystem of the given type whose daemon is dead, here or in another directory."""
    need_root()
    made: list[str] = []

    def make(fstype: str, directory: Path | None = None) -> str:
        place = str(directory or mountpoint)
        try:
            device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as problem:
            pytest.skip(f"/dev/fuse cannot be opened: {problem.strerror}")
        try:
            options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"/srv/r.git", place.encode(), fstype.encode(), 0, options.encode()):
                pytest.skip(f"mount: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(device)
        made.append(place)
        return place

    yield make
    for place in made:
        while control.mount_at(place):
            mounts.unmount(place, lazy=True)


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A directory that other users can reach: pytest's own are closed to them."""
    need_root()
    with tempfile.TemporaryDirectory(prefix="caiafs-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def code_of(check: Callable[[], object], message: str) -> int:
    with pytest.raises(MountError, match=message) as caught:
        check()
    assert caught.value.exit_code == 32
    return caught.value.errno


# -- the mountpoint ---------------------------------------------------------------------------------


def test_an_empty_directory_will_do(mountpoint: str) -> None:
    preflight.check_mountpoint(mountpoint)


def test_missing_mountpoint_says_mkdir(tmp_path: Path) -> None:
    path = str(tmp_path / "not here")
    assert code_of(lambda: preflight.check_mountpoint(path), f"mkdir -p '{path}'") == errno.ENOENT


def test_a_file_is_no_mountpoint(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    assert code_of(lambda: preflight.check_mountpoint(str(file)), "not a directory") == errno.ENOTDIR


def test_a_directory_in_use_is_refused(mountpoint: str) -> None:
    Path(mountpoint, "keep.txt").touch()
    assert code_of(lambda: preflight.check_mountpoint(mountpoint), r"not empty.*keep\.txt") == errno.ENOTEMPTY


def test_a_stale_caiafs_mount_is_cleared(dead_mount: Callable[..., str]) -> None:
    place = dead_mount("fuse.caiafs")
    with pytest.raises(OSError, match="not connected"):
        os.stat(place)
    preflight.check_mountpoint(place)
    assert control.mount_at(place) is None


def test_stale_mounts_on_top_of_each_other_are_cleared(dead_mount: Callable[..., str]) -> None:
    place = dead_mount("fuse.caiafs")
    if subprocess.run(["mount", "--bind", place, place], check=False, capture_output=True).returncode:
        pytest.skip("a dead mount cannot be mounted over here")
    preflight.check_mountpoint(place)
    assert control.mount_at(place) is None


def test_a_stale_mount_of_something_else_is_left_to_its_owner(dead_mount: Callable[..., str]) -> None:
    place = dead_mount("fuse.sshfs")
    code = code_of(lambda: preflight.check_mountpoint(place), r"dead fuse\.sshfs mount.*fusermount3 -u")
    assert code == errno.ENOTCONN
    assert control.mount_at(place) is not None


def test_mount_of_another_user_is_said_with_the_way_to_clear_it(
    public: Path, dead_mount: Callable[..., str]
) -> None:
    place = dead_mount("fuse.caiafs", public)
    with acting_as(ALICE):
        code = code_of(lambda: preflight.check_mountpoint(place), "another user.*sudo caiafs umount")
    assert code == errno.EACCES


def test_a_live_mount_is_said_to_show_what_it_shows(mountpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(mountpoint) / ".stats").mkdir()
    config = {"state_dir": "/s", "pid": 7, "branch": "main"}
    (Path(mountpoint) / ".stats" / "config.json").write_text(json.dumps(config))
    mount = control.Mount(mountpoint, "fuse.caiafs", "/srv/r.git", "rw", "0:9")
    monkeypatch.setattr(preflight, "mount_at", lambda path: mount)
    code = code_of(
        lambda: preflight.check_mountpoint(mountpoint),
        r"branch main of /srv/r\.git \(process 7\).*caiafs umount '",
    )
    assert code == errno.EBUSY


def test_ordinary_users_need_a_directory_of_their_own(public: Path) -> None:
    place = public / "roots"
    place.mkdir(mode=0o755)
    with acting_as(ALICE):
        assert code_of(lambda: preflight.check_mountpoint(str(place)), "may not write") == errno.EACCES
    place.chmod(0o1777)
    with acting_as(ALICE):
        assert code_of(lambda: preflight.check_mountpoint(str(place)), "sticky") == errno.EACCES
    os.chown(place, ALICE, ALICE)
    with acting_as(ALICE):
        preflight.check_mountpoint(str(place))


# -- repository, machine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "mountpoint", "more", "message"),
    [
        ("/a/r.git", "/a", {}, "repository /a/r.git lies inside the mountpoint"),
        ("/a/r.git", "/a/r.git", {}, "lies inside"),
        ("/a/r", "/a/r/mnt", {}, "mountpoint /a/r/mnt lies inside the repository"),
        ("/a/r", "/m", {"state_dir": "/m/state"}, "the state directory"),
        ("/a/r", "/m", {"git_dir": "/m/x"}, "the git directory"),
    ],
)
def test_mount_and_repository_may_not_cover_each_other(
    repo: str, mountpoint: str, more: dict[str, str], message: str
) -> None:
    config = Config(repo, mountpoint, state_dir=more.get("state_dir"))
    code_of(lambda: preflight.check_nesting(config, more.get("git_dir")), message)


def test_neighbours_do_not_cover_each_other() -> None:
    preflight.check_nesting(Config("/a/r", "/a/r-mount", state_dir="/a/state"), "/a/r/.git")


def test_nesting_is_seen_through_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    config = Config(str(tmp_path / "link" / "r.git"), str(tmp_path / "real"))
    code_of(lambda: preflight.check_nesting(config), "lies inside the mountpoint")


def test_a_repository_of_someone_else_can_only_be_read(public: Path) -> None:
    (public / "objects").mkdir(mode=0o755)
    with acting_as(ALICE):
        code_of(lambda: preflight.check_git_dir(str(public), False), "belongs to root.*-o ro")
        preflight.check_git_dir(str(public), True)
    (public / "objects").chmod(0o700)
    with acting_as(ALICE):
        code_of(lambda: preflight.check_git_dir(str(public), True), "no permission to read")


def test_a_repository_that_may_not_be_looked_into_is_not_called_missing(public: Path) -> None:
    (public / "r.git").mkdir(mode=0o700)
    with acting_as(ALICE):
        for path in (public / "r.git", public / "r.git" / "deeper"):
            code = code_of(functools.partial(preflight.check_repository, str(path)), "no permission")
            assert code == errno.EACCES
        preflight.check_repository(str(public / "missing"))


def test_allow_other_needs_consent_for_ordinary_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other\nmount_max = 5\n")
    assert not mounts.others_allowed(str(conf))
    conf.write_text("mount_max = 5\n  user_allow_other  # yes\n")
    assert mounts.others_allowed(str(conf))
    assert not mounts.others_allowed(str(tmp_path / "gone"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "others_allowed", lambda: False)
    code_of(lambda: preflight.check_allow_other(True), r"user_allow_other.*/etc/fuse\.conf")
    preflight.check_allow_other(False)


def test_missing_device_and_helper_name_their_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "modprobe fuse" in (mounts.fuse_device_problem(str(tmp_path / "fuse")) or "")
    device = tmp_path / "device"
    device.touch()
    assert mounts.fuse_device_problem(str(device)) is None
    need_root()
    assert "--device /dev/fuse" in (mounts.fuse_device_problem(str(tmp_path)) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install fuse3" in (mounts.fusermount_problem() or "")
    fake = tmp_path / "fusermount3"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo chmod 666" in (mounts.fuse_device_problem(str(tmp_path)) or "")
    assert "chmod u+s" in (mounts.fusermount_problem() or "")


def test_unmount_of_a_place_that_is_not_mounted_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        mounts.unmount(str(tmp_path))
    assert caught.value.errno == errno.EPERM


# -- the branch lock --------------------------------------------------------------------------------


def test_second_holder_is_told_who_has_the_branch(tmp_path: Path) -> None:
    state = str(tmp_path / "git" / "caiafs" / "main")
    with preflight.acquire_lock(state, b"main", "/mnt/a b"):
        assert stat.S_IMODE(os.stat(state).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(state + "/lock").st_mode) == 0o600
        with pytest.raises(BranchLocked, match=rf"branch main .*process {os.getpid()} at /mnt/a b") as caught:
            preflight.acquire_lock(state, b"main", "/mnt/other")
        assert "caiafs umount '/mnt/a b'" in str(caught.value)
        holder = preflight.read_lock(state)
        assert holder is not None
        assert holder["pid"] == os.getpid()
    assert preflight.read_lock(state) is None
    preflight.acquire_lock(state, b"main", "/mnt/other").release()


def test_lock_of_a_killed_process_is_free_whatever_its_file_says(tmp_path: Path) -> None:
    state = tmp_path / "s"
    code = "preflight.acquire_lock(sys.argv[1], 'b', '/old'); os.kill(os.getpid(), 9)"
    code = f"import os, sys; from caiafs.mount import preflight; {code}"
    done = subprocess.run([sys.executable, "-c", code, str(state)], check=False, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert "/old" in (state / "lock").read_text()
    with preflight.acquire_lock(str(state), "b", "/new"):
        assert json.loads((state / "lock").read_text())["mountpoint"] == "/new"


def test_lock_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / "s" / "lock").symlink_to(precious)
    code_of(lambda: preflight.acquire_lock(str(tmp_path / "s"), "b", "/m"), "cannot open")
    assert precious.read_text() == "x"
    (tmp_path / "link").symlink_to("s")
    code_of(lambda: preflight.acquire_lock(str(tmp_path / "link"), "b", "/m"), "state_dir=DIR")


def test_state_directory_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    code_of(lambda: preflight.acquire_lock(str(tmp_path / "open"), "b", "/m"), "chmod 700")
    need_root()
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", ALICE, ALICE)
    code_of(lambda: preflight.acquire_lock(str(tmp_path / "theirs"), "b", "/m"), "chown -R root")


def test_a_read_only_mount_of_what_belongs_to_others_is_told_how_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    theirs = tmp_path / "caiafs" / "b"
    theirs.mkdir(parents=True, mode=0o700)
    os.chown(theirs, ALICE, ALICE)
    config = Config("/r", "/m", ro=True)

    def lock(config: Config) -> None:
        preflight.lock_branch(config, str(tmp_path), b"b").release()

    code_of(lambda: lock(config), "belongs to .*; to look at what git has, .* -o ro,state_dir=DIR")
    lock(config.with_(state_dir=str(tmp_path / "mine")))
    with pytest.raises(MountError) as caught:
        lock(config.with_(ro=False))
    assert "state_dir" not in str(caught.value), "what the journal has would be passed over"
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    code_of(lambda: lock(config), "chown -R 54321 ")


def test_branch_is_locked_even_where_state_directories_differ(tmp_path: Path) -> None:
    git_dir = str(tmp_path / "r.git")
    one = Config(git_dir, "/m1", state_dir=str(tmp_path / "one"))
    two = Config(git_dir, "/m2", state_dir=str(tmp_path / "two"))
    usual = Config(git_dir, "/m3")
    with preflight.lock_branch(one, git_dir, b"a/b"):
        for other in (two, usual):
            with pytest.raises(BranchLocked, match="at /m1"):
                preflight.lock_branch(other, git_dir, b"a/b")
        preflight.lock_branch(two, git_dir, b"other").release()
    preflight.lock_branch(usual, git_dir, b"a/b").release()
    assert preflight.state_directory(usual, git_dir, b"a/b") == f"{git_dir}/caiafs/a%2Fb"


# -- the background ---------------------------------------------------------------------------------


def launch(tmp_path: Path, body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run launch() in a fresh process; *body* is the code of serve(ready)."""
    program = f"""
import errno, logging, os, signal, sys, time
from caiafs.errors import BranchLocked, MountError
from caiafs.mount import daemonize

def serve(ready):
{textwrap.indent(textwrap.dedent(body), "    ")}

code = daemonize.launch(serve, {str(tmp_path / "logs" / "m.log")!r})
print("parent", os.getpid())
sys.exit(code)
"""
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        env={**environment(), "OUT": str(tmp_path / "out")},
    )


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 10
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def test_background_returns_when_ready_and_the_child_is_cut_loose(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        """
        before = os.getpgrp() != os.getpid() and os.getsid(0) != os.getpid()
        ready()
        print("to the log")
        print("errors too", file=sys.stderr, flush=True)
        facts = [before, os.getsid(0) == os.getpid(), os.getcwd() == "/", os.readlink("/proc/self/fd/0")]
        with open(os.environ["OUT"], "w") as out:
            print(*facts, file=out)
        return 0
        """,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("parent")
    assert wait_for(tmp_path / "out") == "True True True /dev/null\n"
    log = tmp_path / "logs" / "m.log"
    assert "errors too" in wait_for(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_error_before_ready_is_shown_with_its_exit_code(tmp_path: Path) -> None:
    done = launch(tmp_path, 'raise MountError("no such\\nthing: do this")')
    assert done.returncode == 32
    assert done.stderr == "caiafs: no such\nthing: do this\n"


def test_unexpected_error_before_ready_is_an_internal_one(tmp_path: Path) -> None:
    done = launch(tmp_path, "raise ZeroDivisionError('x')")
    assert done.returncode == 1
    assert "caiafs: internal error: ZeroDivisionError: x" in done.stderr
    assert "Traceback" in done.stderr


def test_return_without_ready_is_a_failure(tmp_path: Path) -> None:
    done = launch(tmp_path, "return 0")
    assert done.returncode == 32
    assert "ended before" in done.stderr


def test_death_before_ready_shows_the_signal_and_the_log(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        f"""
        with open({str(tmp_path / "logs" / "m.log")!r}, "a") as log:
            print("last words", file=log)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode == 32
    assert "was killed by SIGKILL before the mount was up" in done.stderr
    assert "last words" in done.stderr


def test_death_is_noticed_though_a_grandchild_keeps_the_pipe(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        """
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(3)
            os._exit(0)
        os._exit(7)
        """,
    )
    assert done.returncode == 32
    assert "exit status 7" in done.stderr


def test_a_log_that_cannot_be_written_does_not_stop_the_mount(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    done = launch(tmp_path, "ready()\nopen(os.environ['OUT'], 'w').write('up\\n')\nreturn 0")
    assert done.returncode == 0
    assert wait_for(tmp_path / "out") == "up\n"


def test_long_log_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "m.log").write_bytes(b"x" * (daemonize.LOG_LIMIT + 1))
    assert launch(tmp_path, "ready()\nreturn 0").returncode == 0
    assert (tmp_path / "logs" / "m.log.1").stat().st_size == daemonize.LOG_LIMIT + 1


def test_log_is_named_after_the_mountpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert daemonize.default_log_path("/srv/a-b/c") == "/var/log/caiafs/srv-a--b-c.log"
    assert daemonize.default_log_path("/") == "/var/log/caiafs/root.log"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert daemonize.default_log_path("/m") == "/s/caiafs/m.log"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert daemonize.default_log_path("/m") == "/home/u/.local/state/caiafs/m.log"
