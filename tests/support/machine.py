"""A machine that boots the real systemd, as PID 1 of namespaces of its own, over a copy of this system.

What it changes stays in memory and is gone with it; /srv is a directory of the test's and stays from
boot to boot, as a disk would. The host's own units and generators are hidden, save the few that a
boot needs. It is entered with nsenter(1), and its files are also below /proc/PID/root.

    machine.boot()                     about a second
    machine.run("systemctl", "start", "caiafs@site")
    machine.power_off()                as the power button does
    machine.cut_power()                every process is gone at once

Needs root, overlayfs, a cgroup2 that can be written, systemd and /dev/fuse.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from support.mounts import SOURCE, need_fuse
from support.processes import GUARD, Process

SYSTEMD = Path("/lib/systemd/systemd")
HOST_UNITS = Path("/usr/lib/systemd/system")
TARGETS = (
    "basic sysinit sockets timers paths slices shutdown umount local-fs local-fs-pre remote-fs remote-fs-pre "
    "network network-online multi-user final poweroff swap"
)
UNITS = (
    "systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket "
    "systemd-poweroff.service user.slice"
)
LOGIN_UNITS = "dbus.service dbus.socket systemd-logind.service user@.service user-runtime-dir@.service"
LOGINS = """
ln -s /usr/lib/systemd/system/systemd-logind.service /etc/systemd/system/dbus-org.freedesktop.login1.service
mkdir -p /etc/systemd/system/sockets.target.wants
ln -s /usr/lib/systemd/system/dbus.socket /etc/systemd/system/sockets.target.wants/
"""
OVERLAY = """
mount -t tmpfs trial "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" trial "$1/root"
"""
INSTALLED = Path("/usr/local/bin/caiafs")


def control_group() -> Path | None:
    """Where a control group of version 2 can be made."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    return None


def need_systemd() -> None:
    """Skips where a systemd cannot be booted, saying what is missing."""
    if os.geteuid() != 0:
        pytest.skip("booting a systemd takes root")
    if not SYSTEMD.exists():
        pytest.skip(f"there is no {SYSTEMD}: install systemd")
    for tool in ("unshare", "nsenter", "pivot_root", "fusermount3"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    if not os.path.exists("/dev/autofs"):
        pytest.skip("there is no /dev/autofs")
    where = control_group()
    if where is None:
        pytest.skip("no cgroup2 is mounted")
    trial = where / f"caiafs-try-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {where}: {error.strerror}")
    need_fuse()
    with tempfile.TemporaryDirectory(prefix="caiafs-") as place:
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup",
             "sh", "-ec", OVERLAY, "sh", place],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no namespaces and no overlay of our own: {done.stderr.strip()}")


class Machine:
    """One machine, in the empty directory *base*; `files` and `prepare` are for the next boot."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.disk = base / "disk"
        self.disk.mkdir()
        self.files: dict[str, str] = {
            "/etc/systemd/journald.conf.d/test.conf": (
                "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n"
            ),
            "/etc/fstab": "",
            str(INSTALLED): self._command(),
        }
        self.prepare = [self._open_the_way(), "caiafs install-units >/dev/null"]
        self.units = [f"{target}.target" for target in TARGETS.split()] + UNITS.split()
        self.boots = 0
        self._outer: subprocess.Popen[bytes] | None = None
        self._group: Path | None = None
        self.init: int | None = None

    @staticmethod
    def _command() -> str:
        variables = f"PYTHONPATH={shlex.quote(str(SOURCE))}"
        if os.stat(SOURCE).st_dev != os.stat("/").st_dev:
            variables += " PYTHONDONTWRITEBYTECODE=1"  # there, what is written is written for good
        return f'#!/bin/sh\nexec env {variables} {shlex.quote(sys.executable)} -m caiafs "$@"\n'

    @staticmethod
    def _open_the_way() -> str:
        """Ordinary users inside may search the way to this Python and to the source."""
        places = {Path(sys.executable), Path(os.path.realpath(sys.executable)), SOURCE}
        parents = {parent for place in places for parent in place.parents}
        root_device = os.stat("/").st_dev
        ways = sorted(str(parent) for parent in parents if os.stat(parent).st_dev == root_device)
        return shlex.join(["chmod", "o+x", *ways])

    def with_user(self, name: str, uid: int) -> Machine:
        """From the next boot on there is a user, and what is needed for a systemd of their own."""
        missing = [unit for unit in LOGIN_UNITS.split() if not (HOST_UNITS / unit).exists()]
        if missing:
            pytest.skip(f"there is no {missing[0]}: install dbus and libpam-systemd")
        self.units += LOGIN_UNITS.split()
        self.prepare += [LOGINS, f"useradd -m -s /bin/bash -u {uid} {name}"]
        return self

    # ---- power

    def boot(self) -> Machine:
        """Boots, and waits until everything that is wanted runs."""
        assert self.init is None
        self.boots += 1
        place = self.base / f"boot{self.boots}"
        self._build(place)
        where = control_group()
        assert where is not None
        self._group = where / f"caiafs-{os.getpid()}-{id(self) % 100000}-{self.boots}"
        self._group.mkdir()
        root_device = os.stat("/").st_dev
        elsewhere = {str(SOURCE), sys.prefix, sys.base_prefix}
        binds = "\n".join(sorted(each for each in elsewhere if os.stat(each).st_dev != root_device))
        with (place / "console").open("wb") as console:
            self._outer = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net",
                 "--propagation", "private", str(Path(__file__).with_suffix(".sh")), "join"],
                env={"PATH": os.environ["PATH"], "W": str(place), "D": str(self.disk),
                     "CG": str(self._group), "BINDS": binds},
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        GUARD.watch(self._outer.pid)
        self.wait(self._find_init, 60, "the first process", place / "console")
        self.wait(
            lambda: self.ask("systemctl", "is-system-running") in ("running", "degraded"), 60, "the boot",
            place / "console",
        )  # fmt: skip
        return self

    def power_off(self, timeout: float = 90) -> None:
        """Asks systemd to power off, and waits for the end."""
        assert self.init is not None
        os.kill(self.init, signal.SIGRTMIN + 4)
        self._wait_end(timeout)

    def cut_power(self) -> None:
        """Ends every process of the machine in one stroke."""
        assert self.init is not None
        os.kill(self.init, signal.SIGKILL)
        self._wait_end(30)

    def close(self) -> None:
        """Leaves nothing behind, in whatever state it is."""
        if self.init is not None:
            try:
                os.kill(self.init, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._outer is not None:
            if self.init is None:
                self._outer.kill()
            self._outer.wait(30)
            GUARD.release(self._outer.pid)
        self._outer = self.init = None
        self._remove_group()

    def _wait_end(self, timeout: float) -> None:
        assert self._outer is not None
        try:
            self._outer.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the machine was not off after {timeout} s\n{self.journal()[-6000:]}")
        self.init = None
        self.close()

    def _remove_group(self) -> None:
        group, self._group = self._group, None
        if group is None:
            return
        deadline = time.monotonic() + 10
        while group.exists():
            for directory, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    pass  # its last process is just ending
            if group.exists():
                assert time.monotonic() < deadline, f"{group} could not be removed"
                time.sleep(0.02)

    def _find_init(self) -> bool:
        """The process that is number 1 inside, once it is systemd."""
        assert self._group is not None
        assert self._outer is not None
        assert self._outer.poll() is None, "the machine ended while it booted"
        try:
            pids = (self._group / "init.scope/cgroup.procs").read_text().split()
        except OSError:
            return False
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if numbers[-1] == "1":
                self.init = int(pid)
                return True
        return False

    def _build(self, place: Path) -> None:
        for name in ("root", "upper", "generators", "lib/sysinit.target.wants", "lib/sockets.target.wants"):
            (place / name).mkdir(parents=True)
        for unit in self.units:
            shutil.copy(HOST_UNITS / unit, place / "lib" / unit)
        for wanted in ("systemd-journald.socket", "systemd-journald-dev-log.socket"):
            (place / "lib/sockets.target.wants" / wanted).symlink_to(f"../{wanted}")
        wants = place / "lib/multi-user.target.wants"
        wants.mkdir()
        (wants / "remote-fs.target").symlink_to("../remote-fs.target")
        journal = "systemd-journald.service"
        (place / "lib/sysinit.target.wants" / journal).symlink_to(f"../{journal}")
        generators = HOST_UNITS.with_name("system-generators")
        shutil.copy(generators / "systemd-fstab-generator", place / "generators")
        self.files["/prepare"] = "\n".join(self.prepare) + "\n"
        for path, content in self.files.items():
            file = place / "files" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755 if content.startswith("#!") else 0o644)

    # ---- inside

    def run(
        self, *words: str, status: int | None = 0, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program inside; fails the test, with its output, unless it exits with *status*."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "--", *words],
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd="/", **options,
        )  # fmt: skip
        if status is not None and done.returncode != status:
            pytest.fail(
                f"{shlex.join(words)}\nexited {done.returncode}, not {status}\n{done.stdout[-3000:]}\n"
                f"{done.stderr[-3000:]}\n--- journal\n{self.journal()[-6000:]}"
            )
        return done

    def sh(self, script: str, **options: Any) -> str:
        """Runs a shell script inside; its output."""
        return self.run("sh", "-euc", script, **options).stdout

    def run_as(self, name: str, uid: int, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program inside as a user, who has a home and is spoken to by their systemd."""
        env = [f"HOME=/home/{name}", f"USER={name}", f"XDG_RUNTIME_DIR=/run/user/{uid}"]
        env += ["PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8"]
        drop = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={uid}",
            "--clear-groups",
            "env",
            "-i",
            f"-C/home/{name}",
        ]
        return self.run(*drop, *env, *words, **options)

    def ask(self, *words: str) -> str:
        """The output of a program that may fail."""
        return self.run(*words, status=None).stdout.strip()

    def shown(self, unit: str, name: str) -> str:
        return self.ask("systemctl", "show", "-P", name, unit)

    def journal(self, *words: str) -> str:
        if self.init is None:
            return ""
        return self.ask("journalctl", "--no-pager", "-o", "short-monotonic", *words)

    def path(self, inside: str) -> Path:
        """Where a file of the machine is, seen from here."""
        return Path(f"/proc/{self.init}/root{inside}")

    def host_pid(self, pid: int) -> int:
        """The number that process *pid* of the machine has here."""
        namespace = os.readlink(f"/proc/{self.init}/ns/pid")
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") != namespace:
                    continue
                status = Path(f"/proc/{entry}/status").read_text()
            except OSError:
                continue  # it has just ended
            if status.partition("NSpid:")[2].split("\n")[0].split()[-1] == str(pid):
                return int(entry)
        raise AssertionError(f"there is no process {pid} in the machine")

    def processes(self) -> list[Process]:
        """What runs inside, as seen from here."""
        found = [Process.of(self.init)] if self.init is not None else []
        return [each for one in found if one is not None for each in (one, *one.children())]

    def wait(
        self, condition: Any, timeout: float = 20, what: str = "it", console: Path | None = None
    ) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                shown = console.read_text(errors="replace")[-3000:] if console is not None else ""
                pytest.fail(f"{what} did not happen within {timeout} s\n{shown}\n{self.journal()[-6000:]}")
            time.sleep(0.05)
