"""A caiafs mount that a test owns: started as a person would start it, and accounted for at the end.

The daemon is a child process in the foreground, its log a file beside the repository. `verify()` is
what every test ends with: a drained unmount, `caiafs check`, `git fsck --strict`, and no mount, no
process and no unexpected warning left behind. Processes are ended by pid, and only those started here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.processes import GUARD, Process, wait_gone

SOURCE = Path(__file__).resolve().parents[2]
START_TIMEOUT = 30.0
STOP_TIMEOUT = 60.0
_TROUBLE = re.compile(
    r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback|Exception ignored|RuntimeWarning|ResourceWarning"
)


def need_fuse() -> None:
    """Skips where a mount is impossible, saying why."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/fuse cannot be opened: {error.strerror}")


def environment(**extra: str) -> dict[str, str]:
    """The environment of every program a test runs: no settings of the person who runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "VIRTUAL_ENV") if name in os.environ}
    return {
        **kept,
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "A Person",
        "GIT_AUTHOR_EMAIL": "person@example.org",
        "GIT_COMMITTER_NAME": "A Person",
        "GIT_COMMITTER_EMAIL": "person@example.org",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "init.defaultBranch",
        "GIT_CONFIG_VALUE_1": "main",
        **extra,
    }


def run(
    *words: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    status: int | None = 0,
    timeout: float = 100,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program; fails the test, with its output, unless it exits with *status* (None: whatever)."""
    done = subprocess.run(
        [os.fspath(word) for word in words],
        cwd=cwd,
        env=environment() if env is None else dict(env),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
    )
    if status is not None and done.returncode != status:
        shown = " ".join(str(word) for word in words)
        pytest.fail(
            f"{shown}\nexited {done.returncode}, not {status}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done


def caiafs(*words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a person calls it."""
    return run(sys.executable, "-m", "caiafs", *words, **options)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there; never touches the mount itself."""
    wanted = os.fsencode(path)
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        where = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])
        if where == wanted:
            return True
    return False


def clear_stale_mount(path: Path) -> None:
    """Takes away a mount whose daemon is gone."""
    if is_mounted(path):
        run("fusermount3", "-uz", path)
    assert not is_mounted(path)


def wait_until(condition: Callable[[], object], timeout: float = 10, what: str = "it") -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {timeout} s")
        time.sleep(0.02)


class Mount:
    """One repository, one mountpoint, and the daemon between them."""

    def __init__(
        self,
        base: Path,
        *options: str,
        repository: Path | None = None,
        name: str = "m",
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        base.mkdir(exist_ok=True)
        self.base = base
        self.options = list(options)
        self.repository = repository or base / "r.git"
        self.path = base / name
        self.path.mkdir(exist_ok=True)
        self.log_file = base / f"{name}.log"
        self.env = environment(**(env or {}))
        self.prefix = list(prefix)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.branch = next((word.split("=", 1)[1] for word in options if word.startswith("branch=")), "main")
        self._expected: list[re.Pattern[str]] = []

    # Life of the daemon.

    def start(self) -> Mount:
        assert self.daemon is None
        options = list(self.options)
        if not self.repository.exists():
            options.append("init")
        words = [*self.prefix, sys.executable, "-m", "caiafs", "mount", "-f"]
        if options:
            words += ["-o", ",".join(options)]
        with self.log_file.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*words, os.fspath(self.repository), os.fspath(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.base,
            )
        GUARD.watch(self.daemon.pid)
        deadline = time.monotonic() + START_TIMEOUT
        while not is_mounted(self.path):
            if self.daemon.poll() is not None:
                code, self.daemon = self._forget(), None
                pytest.fail(f"the daemon ended with {code} before it served\n{self.log()[-4000:]}")
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"no mount after {START_TIMEOUT} s\n{self.log()[-4000:]}")
            time.sleep(0.01)
        if not self.prefix:
            wait_until(self.serves, START_TIMEOUT, "serving")  # a stale mount of before is cleared first
        return self

    def umount(self) -> None:
        """A drained unmount by the command; the daemon is gone afterwards."""
        assert self.daemon is not None
        family = self.family()
        done = self.caiafs("umount", self.path, status=None, timeout=STOP_TIMEOUT)
        if done.returncode != 0:
            pytest.fail(f"umount exited {done.returncode}: {done.stderr}\n{self.log()[-6000:]}")
        try:
            self.daemon.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the daemon outlived its unmount\n{self.log()[-4000:]}")
        code, self.daemon = self._forget(), None
        assert code == 0, f"the daemon ended with {code}\n{self.log()[-4000:]}"
        assert not is_mounted(self.path)
        self._assert_gone(family)

    def kill(self) -> None:
        """kill -9 of the daemon, then the stale mount it leaves is cleared. Nothing is drained."""
        assert self.daemon is not None
        family = self.family()
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait(10)
        self._forget()
        self.daemon = None
        clear_stale_mount(self.path)
        self._assert_gone(family)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_ended(self, timeout: float = 20) -> int:
        """Waits for a daemon that ends without being told by umount() or kill(); gives its exit status."""
        assert self.daemon is not None
        self.daemon.wait(timeout)
        code, self.daemon = self._forget(), None
        return code

    def remount(self) -> Mount:
        if self.daemon is not None:
            self.umount()
        return self.start()

    def _forget(self) -> int:
        assert self.daemon is not None
        GUARD.release(self.daemon.pid)
        return self.daemon.wait(10)

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def family(self) -> list[Process]:
        """The daemon and every process below it."""
        me = Process.of(self.pid)
        return [me, *me.children()] if me else []

    def _assert_gone(self, family: list[Process]) -> None:
        left = wait_gone(family)
        for process in left:
            process.end()
        assert not left, "left running: " + "; ".join(process.describe() for process in left)

    # What a test asks of it.

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def expect_log(self, pattern: str) -> None:
        """Lines matching *pattern* are what this test is about, so they are no trouble."""
        self._expected.append(re.compile(pattern))

    def caiafs(self, *words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """The command line, as the user of this mount."""
        return run(*self.prefix, sys.executable, "-m", "caiafs", *words, env=self.env, cwd="/", **options)

    def commit(self, *words: str) -> str:
        """Commits now; the id of the commit."""
        return self.caiafs("commit", *words, self.path).stdout.strip()

    def git(self, *words: str, status: int | None = 0) -> str:
        return run("git", "-C", self.repository, *words, status=status).stdout

    def tip(self) -> str:
        return self.git("rev-parse", f"refs/heads/{self.branch}").strip()

    def stats(self, name: str = "stats.json") -> Any:
        return json.loads((self.path / ".stats" / name).read_bytes())

    def status(self) -> Any:
        return json.loads(self.caiafs("status", "--json", self.path).stdout)

    # How it ends.

    def verify(self) -> None:
        """Everything a test must leave in order; fails with what is not."""
        try:
            if self.daemon is not None:
                ended = self.daemon.poll()
                if ended is not None:
                    self._forget()
                    self.daemon = None
                    pytest.fail(f"the daemon ended on its own with {ended}\n{self.log()[-6000:]}")
                self.umount()
            assert not is_mounted(self.path), f"{self.path} is still mounted"
            if self.repository.exists():
                self.check()
            self.assert_quiet_log()
        finally:
            self.close()

    def check(self) -> None:
        """The repository, at rest, is sound by caiafs and by git."""
        self.caiafs("check", self.repository)
        done = run("git", "-C", self.repository, "fsck", "--strict", "--full")
        wrong = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if line and not line.startswith(("dangling ", "Checking ", "notice: "))
        ]
        assert not wrong, "git fsck: " + "\n".join(wrong[:20])

    def assert_quiet_log(self) -> None:
        text = self.log()
        wrong = [
            line
            for line in text.splitlines()
            if _TROUBLE.search(line) and not any(pattern.search(line) for pattern in self._expected)
        ]
        assert not wrong, "unexpected in the log: " + "\n".join(wrong[:10]) + "\n\n" + text[-6000:]

    def close(self) -> None:
        """Leaves nothing running and nothing mounted, whatever went wrong before; never raises."""
        if self.daemon is not None:
            family = self.family()
            for process in family:
                process.end()
            self.daemon.wait()
            GUARD.release(self.daemon.pid)
            self.daemon = None
        if is_mounted(self.path):
            run("fusermount3", "-uz", self.path, status=None)

    def serves(self) -> bool:
        """Whether a daemon answers there: neither a stale mount nor the directory below.

        The kernel answers stat(2) from its cache, for a dead daemon too; statvfs(2) it never does.
        """
        try:
            os.statvfs(self.path)
            return os.stat(self.path).st_dev != os.stat(self.base).st_dev
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                return False
            raise


class Mounts:
    """Makes mounts on request and verifies all of them at the end, the youngest first."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.made: list[Mount] = []

    def __call__(self, *options: str, **settings: Any) -> Mount:
        """A running mount in a folder of its own, with these -o options."""
        mount = self.prepare(*options, **settings)
        return mount.start()

    def prepare(self, *options: str, **settings: Any) -> Mount:
        """The same, not started."""
        settings.setdefault("base", self.base / str(len(self.made)))
        mount = Mount(settings.pop("base"), *options, **settings)
        self.made.append(mount)
        return mount

    def finish(self) -> None:
        try:
            while self.made:
                self.made.pop().verify()
        finally:
            for mount in self.made:
                mount.close()
