"""What a person sees at a terminal: bars while something takes long, and `caiafs status --watch`."""

from __future__ import annotations

import os
import signal
import sys

from support.mounts import Mount, Mounts, run
from support.terminal import Terminal

CAIAFS = (sys.executable, "-m", "caiafs")


def worker(mount: Mount) -> int:
    return next(one.pid for one in mount.family() if "committer.worker" in one.describe())


def test_a_long_unmount_shows_a_bar_and_wipes_it(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    (mount.path / "a").write_text("1")
    stopped = worker(mount)
    os.kill(stopped, signal.SIGSTOP)
    with Terminal(*CAIAFS, "umount", str(mount.path), env=mount.env) as terminal:
        terminal.wait("writing to git")
        os.kill(stopped, signal.SIGCONT)
        assert terminal.end() == 0
        assert terminal.text.endswith("\r\x1b[K")
    assert mount.wait_ended() == 0


def test_a_status_that_is_watched_follows_the_mount_and_leaves_the_last_picture(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    with Terminal(*CAIAFS, "status", "--watch", str(mount.path), env=mount.env) as terminal:
        terminal.wait("git has everything")
        (mount.path / "new").write_text("x")
        terminal.wait("the oldest")
        mount.commit("-m", "Something new")
        terminal.wait("Something new")
        terminal.interrupt()
        assert terminal.end() == 0
        assert "\x1b[?1049l" in terminal.text  # back from the other screen, and then the picture stays
        left = terminal.text.rpartition("\x1b[?1049l")[2]
        assert "Something new" in left
        assert "healthy" in left
        assert "Traceback" not in terminal.text


def test_what_watches_nothing_or_too_much_is_told_so(mounts: Mounts) -> None:
    mount = mounts()
    done = mount.caiafs("status", "--watch", "--json", mount.path, status=2)
    assert "--json for programs" in done.stderr
    assert "not in a caiafs mount" in mount.caiafs("status", "--watch", mount.base, status=1).stderr


def test_a_check_on_a_terminal_ends_with_its_lines_alone(mounts: Mounts) -> None:
    mount = mounts()
    for number in range(50):
        (mount.path / f"f{number}").write_text(str(number))
    mount.umount()
    plain = run(*CAIAFS, "check", mount.repository, env=mount.env).stdout
    with Terminal(*CAIAFS, "check", str(mount.repository), env=mount.env) as terminal:
        assert terminal.end() == 0
        assert terminal.text.split("\x1b[K")[-1].replace("\r\n", "\n") == plain
