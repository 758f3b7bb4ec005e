"""A mount in the foreground of a terminal ends with the terminal; SIGHUP means something else elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from support.mounts import Mounts, run, wait_until


def test_a_terminal_that_is_closed_ends_the_mount_and_loses_nothing(mounts: Mounts) -> None:
    mount = mounts.prepare("commit_quiet=1h", "commit_interval=1h")
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "caiafs", "mount", "-f", "-o", "init,commit_quiet=1h,commit_interval=1h"]
    with subprocess.Popen(
        ["setsid", "--ctty", *words, mount.repository, mount.path],
        stdin=theirs, stdout=theirs, stderr=theirs, env=mount.env, cwd="/",
    ) as daemon:  # fmt: skip
        os.close(theirs)
        try:
            wait_until(mount.serves, 60, "serving")
            wait_until(lambda: b"is mounted on" in os.read(ours, 65536), 60, "the word")
            (mount.path / "file").write_text("kept")
            os.close(ours)  # the kernel sends SIGHUP
            assert daemon.wait(60) == 0
        finally:
            daemon.kill()
    assert run("git", "-C", mount.repository, "show", "main:file").stdout == "kept"


def test_hangup_of_a_daemon_reads_the_settings_again(mounts: Mounts) -> None:
    mount = mounts.prepare()
    file = mount.base / "settings.toml"
    file.write_text('commit_quiet = "1s"\n')
    mount.options = [f"config={file}"]
    mount.start()
    file.write_text('commit_quiet = "7m"\nbranch = "other"\n')
    mount.expect_log("only a new mount changes branch")
    mount.signal(signal.SIGHUP)
    wait_until(
        lambda: mount.stats("config.json")["settings"]["commit_quiet"]["value"] == 420, 30, "the reload"
    )
    assert mount.stats("config.json")["settings"]["branch"]["value"] is None
