"""What mount(8) and umount(8) run, and what they promise."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from collections.abc import Sequence

import pytest
from support.fakemount import FakeMount

from caiafs.cli import helpers, main, mount_helper, mounting, umount_helper
from caiafs.config import Config
from caiafs.errors import CaiafsError


@pytest.fixture(autouse=True)
def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """umount leaves the working directory; the next test wants it back."""
    monkeypatch.chdir(os.getcwd())


# -- the helper of mount(8) -------------------------------------------------------------------------


def test_helper_understands_what_mount8_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def start(config: Config, *, foreground: bool) -> int:
        assert not foreground
        seen.append(config)
        return 0

    monkeypatch.setattr(mounting, "start", start)
    fstab = "rw,nodev,branch=b,_netdev,x-systemd.automount"
    assert mount_helper(["caiafs#/srv/r.git", "/m", "-o", fstab, "-t", "fuse.caiafs"]) == 0
    assert mount_helper(["/srv/r.git", "/m", "-sv", "-n", "-o", "frobnicate"]) == 0
    assert [config.repo for config in seen] == ["/srv/r.git", "/srv/r.git"]
    # As mount(8) has it, what is not taken away is there; an ordinary user's mounts have neither.
    assert seen[0].kernel_options == (("suid", "nodev") if os.geteuid() == 0 else ("nodev",))
    assert mount_helper(["/srv/r.git", "/m", "-f"]) == 0
    assert len(seen) == 2


@pytest.mark.parametrize(
    "words",
    [[], ["/r"], ["/r", "/m", "-o", "memroy=1"], ["/r", "/m", "-X"], ["/r", "/m", "-N", "/does/not/exist"]],
)
def test_helper_fails_with_32(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper(words) == 32
    assert capsys.readouterr().err.startswith("mount.caiafs: ")


def test_helpers_are_reached_through_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `caiafs install-units` puts into /sbin calls the command that it was called as."""
    seen: list[Sequence[str]] = []
    monkeypatch.setattr(helpers, "mount", lambda words: seen.append(words) or 0)
    monkeypatch.setattr(helpers, "umount", lambda words: seen.append(words) or 1)
    assert main(["mount.caiafs", "/r", "/m", "-o", "rw"]) == 0
    assert main(["umount.caiafs", "/m"]) == 32
    assert seen == [["/r", "/m", "-o", "rw"], ["/m"]]


@pytest.fixture
def remounts(monkeypatch: pytest.MonkeyPatch, fake: FakeMount) -> list[tuple[str, ...]]:
    """Words that the kernel was asked for; FakeMount has what the daemon was."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(helpers, "remount_kernel", lambda mount, words: seen.append(tuple(words)))
    return seen


def test_remount_read_only_asks_the_kernel_then_the_daemon(
    fake: FakeMount, remounts: list[tuple[str, ...]]
) -> None:
    handed = "ro,nosuid,nodev,relatime,remount,user_id=0,group_id=0,default_permissions,branch=main"
    assert mount_helper(["/r", str(fake.path), "-o", handed]) == 0
    assert remounts == [("nosuid", "nodev", "relatime", "ro")]
    assert fake.asked == [("remount", {"words": [["branch", "main"]]}), ("remount", {"ro": True})]


def test_remount_read_write_asks_the_daemon_first(
    fake: FakeMount, remounts: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper(["/r", str(fake.path), "-o", "remount,rw,memory=1g"]) == 0
    assert fake.asked == [("remount", {"words": [["memory", "1g"]], "ro": False})]
    assert remounts == [("rw",)]
    fake.problem = CaiafsError("it keeps no journal")
    assert mount_helper(["/r", str(fake.path), "-o", "remount,rw"]) == 32
    assert "it keeps no journal" in capsys.readouterr().err
    assert len(remounts) == 1


def test_remount_with_an_unknown_word_changes_nothing(
    fake: FakeMount, remounts: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper(["/r", str(fake.path), "-o", "remount,ro,memroy=1g"]) == 32
    assert "did you mean 'memory'?" in capsys.readouterr().err
    assert (fake.asked, remounts) == ([], [])


def test_remount_of_a_mount_with_open_files_says_so(
    fake: FakeMount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(mount: object, words: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(helpers, "remount_kernel", busy)
    assert mount_helper(["/r", str(fake.path), "-o", "remount,ro"]) == 32
    assert "open for writing" in capsys.readouterr().err
    assert ("remount", {"ro": True}) not in fake.asked


# -- the helper of umount(8) ------------------------------------------------------------------------


def test_umount8_commits_unmounts_and_waits(
    fake: FakeMount, unmounted: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = subprocess.Popen(["sleep", "0.3"])
    fake.config["pid"] = daemon.pid
    fake.write("config", fake.config)
    assert umount_helper([str(fake.path), "-n", "-v", "-t", "fuse.caiafs"]) == 0
    assert fake.asked == [("drain", {"flushed": True})]
    assert unmounted == [(str(fake.path), False)]
    assert daemon.wait() == 0
    assert "unmounted" in capsys.readouterr().err


def test_umount8_unmounts_also_when_git_takes_nothing(
    fake: FakeMount, unmounted: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(helpers, "DRAIN_TIMEOUT", 0.2)
    fake.problem = CaiafsError("the disk is full")
    assert umount_helper([str(fake.path)]) == 0
    assert unmounted == [(str(fake.path), False)]
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "the next mount commits it" in said


def test_the_end_of_a_daemon_is_seen_by_a_descriptor_of_any_number() -> None:
    """select(2) knows 1024 of them; who starts us may have left as many open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        daemon = subprocess.Popen(["sleep", "0.1"])
        low = os.pidfd_open(daemon.pid)
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1500)
        os.close(low)
        assert mounting.ends(high, "/nowhere", 60)
        assert daemon.wait() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_umount8_lazily_asks_nobody(fake: FakeMount, unmounted: list[tuple[str, bool]]) -> None:
    assert umount_helper([str(fake.path), "-l"]) == 0
    assert (fake.asked, unmounted) == ([], [(str(fake.path), True)])


@pytest.mark.parametrize("words", [[], ["/a", "/b"], ["/", "-v"], ["/m", "-X"]])
def test_umount8_fails_with_32(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert umount_helper(words) == 32
    assert capsys.readouterr().err.startswith("umount.caiafs: ")
