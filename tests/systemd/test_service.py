"""caiafs@NAME.service under the real systemd: readiness, restarts, watchdog, stop, reload, failures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from support.machine import Machine

UNIT = "caiafs@{}.service"
MAKE_FILES = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2])):
    folder = "d%02d" % (number // 500)
    if number % 500 == 0:
        os.mkdir(folder)
    os.close(os.open("%s/f%05d" % (folder, number), os.O_CREAT | os.O_WRONLY))
"""


@pytest.fixture(scope="module")
def machine(bare_machine: Machine) -> Machine:
    return bare_machine.boot()


class Service:
    """One instance of the unit, with its file in /etc/caiafs."""

    def __init__(self, machine: Machine, name: str, **settings: object) -> None:
        self.machine = machine
        self.name = name
        self.unit = UNIT.format(name)
        self.repository = f"/srv/{name}.git"
        self.mountpoint = f"/mnt/{name}"
        self.file = f"/etc/caiafs/{name}.toml"
        machine.run("mkdir", "-p", self.mountpoint)
        self.write(**settings)

    def write(self, **settings: object) -> None:
        """Settings for the file; commits happen only when somebody asks, unless it is said otherwise."""
        table = {
            "repo": self.repository,
            "mountpoint": self.mountpoint,
            "init": True,
            "commit_quiet": "1h",
            "commit_interval": "1h",
            **settings,
        }
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
        self.machine.path(self.file).write_text(text)

    def drop_in(self, text: str) -> None:
        folder = self.machine.path(f"/run/systemd/system/{self.unit}.d")
        folder.mkdir(parents=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.machine.run("systemctl", "daemon-reload")

    def start(self) -> Service:
        self.machine.run("systemctl", "start", self.unit)
        return self

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", self.unit)

    def shown(self, name: str) -> str:
        return self.machine.shown(self.unit, name)

    @property
    def pid(self) -> int:
        return int(self.shown("MainPID"))

    def put(self, name: str, text: str) -> None:
        self.machine.path(f"{self.mountpoint}/{name}").write_text(text)

    def get(self, name: str) -> str:
        return self.machine.path(f"{self.mountpoint}/{name}").read_text()

    def settings(self) -> dict[str, dict[str, object]]:
        described: dict[str, dict[str, object]] = json.loads(self.get(".stats/config.json"))["settings"]
        return described

    def git(self, *words: str) -> str:
        return self.machine.run("git", "-C", self.repository, *words).stdout

    def mounts(self) -> int:
        """How many mounts lie on top of each other there."""
        return len(self.machine.ask("findmnt", "-n", self.mountpoint).splitlines())

    def wait_back(self, old: int) -> None:
        """Until systemd has started it again."""
        self.machine.wait(
            lambda: self.shown("ActiveState") == "active" and self.pid not in (old, 0), 60, "the restart"
        )

    def events(self, *words: str) -> list[dict[str, str]]:
        """What the daemon wrote to the journal."""
        self.machine.run("journalctl", "--sync")
        lines = self.machine.ask("journalctl", "-o", "json", "-u", self.unit, *words).splitlines()
        return [json.loads(line) for line in lines]


def test_is_ready_when_it_serves_and_says_how_it_is(machine: Machine) -> None:
    service = Service(machine, "site").start()
    service.put("a.txt", "one")  # at once: nothing to wait for
    assert machine.ask("findmnt", "-no", "FSTYPE,SOURCE", service.mountpoint) == "fuse.caiafs /srv/site.git"
    machine.wait(lambda: "not yet in git" in service.shown("StatusText"), what="the status")
    assert service.shown("StatusText").startswith("healthy: ")
    machine.run("caiafs", "commit", service.mountpoint)
    machine.wait(lambda: service.shown("StatusText") == "healthy: all is in git", what="the status")
    (mounted,) = service.events("CAIAFS_EVENT=mounted")
    wanted = {"PRIORITY": "6", "SYSLOG_IDENTIFIER": "caiafs", "CAIAFS_MOUNT": service.mountpoint,
              "CAIAFS_REPO": service.repository, "CAIAFS_BRANCH": "main",
              "MESSAGE": f"{service.repository} is mounted on {service.mountpoint}"}  # fmt: skip
    assert {name: mounted[name] for name in wanted} == wanted
    assert mounted["CODE_FILE"].endswith("mount/__init__.py")
    (committed,) = service.events("CAIAFS_EVENT=committed")
    assert committed["CAIAFS_COMMIT"] == service.git("rev-parse", "main").strip()
    service.stop()
    assert (service.shown("ActiveState"), service.shown("Result")) == ("inactive", "success")
    assert service.mounts() == 0


def test_comes_back_after_kill_9_with_everything(machine: Machine) -> None:
    service = Service(machine, "killed").start()
    for number in range(50):
        service.put(f"f{number}", f"text {number}")
    old = service.pid
    os.kill(machine.host_pid(old), 9)
    service.wait_back(old)
    assert [service.get(f"f{number}") for number in range(50)] == [f"text {number}" for number in range(50)]
    assert service.mounts() == 1
    assert service.shown("NRestarts") == "1"
    service.stop()
    assert len(service.git("ls-tree", "-r", "main").splitlines()) == 50


def test_a_loop_that_hangs_is_started_again_and_says_where_it_hung(machine: Machine) -> None:
    service = Service(machine, "hung")
    service.drop_in("WatchdogSec=2")
    service.start()
    started = time.monotonic()
    service.put("kept", "yes")
    machine.wait(lambda: time.monotonic() - started > 2.5)
    assert service.shown("NRestarts") == "0"  # it is fed
    old = service.pid
    os.kill(machine.host_pid(old), 19)
    machine.wait(lambda: service.pid not in (old,), 60, "the watchdog")
    service.wait_back(old)
    assert service.get("kept") == "yes"
    assert service.mounts() == 1
    said = " ".join(event["MESSAGE"] for event in service.events())
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said
    assert "mount/__init__.py" in said
    service.stop()


def test_stop_drains_ten_thousand_files_and_asks_for_the_time(machine: Machine) -> None:
    """It has half a second to stop, and takes what it needs, since it gets on."""
    service = Service(machine, "drained")
    service.drop_in("TimeoutStopSec=500ms\nExecStopPost=")
    service.start()
    machine.run(sys.executable, "-c", MAKE_FILES, service.mountpoint, "10000", timeout=100)
    assert service.git("for-each-ref").strip() == ""
    service.stop()
    assert (service.shown("ActiveState"), service.shown("Result")) == ("inactive", "success")
    assert service.mounts() == 0
    assert len(service.git("ls-tree", "-r", "--name-only", "main").splitlines()) == 10000


def test_reload_obeys_what_it_can_and_says_what_it_cannot(machine: Machine) -> None:
    service = Service(machine, "reloaded").start()
    old = service.pid
    service.write(commit_quiet="7m", memory="64MiB", log_level="debug", branch="other")
    machine.run("systemctl", "reload", service.unit)
    in_force = service.settings()
    assert (in_force["commit_quiet"]["value"], in_force["memory"]["value"]) == (420, 64 << 20)
    assert in_force["branch"]["value"] is None
    (event,) = service.events("CAIAFS_EVENT=reloaded")
    assert event["CAIAFS_KEPT"] == "branch"
    assert event["PRIORITY"] == "4"
    assert "only a new mount changes branch" in event["MESSAGE"]
    # A file that does not hold fails the reload, and nothing else.
    machine.path(service.file).write_text("memroy = 1\n")
    failed = machine.run("systemctl", "reload", service.unit, status=None)
    assert failed.returncode != 0
    assert service.events("-p", "err", "-g", "did you mean 'memory'")
    assert service.settings() == in_force
    # By signal, as everywhere. Nobody waits for an answer then; the status has it.
    machine.run("systemctl", "kill", "-s", "HUP", "--kill-who=main", service.unit)
    machine.wait(lambda: "not reloaded" in service.shown("StatusText"), what="the status")
    assert service.settings() == in_force
    service.write(commit_quiet="8m")
    machine.run("systemctl", "kill", "-s", "HUP", "--kill-who=main", service.unit)
    machine.wait(lambda: service.settings()["commit_quiet"]["value"] == 480, what="the reload by signal")
    machine.wait(lambda: "not reloaded" not in service.shown("StatusText"), what="the status")
    assert service.shown("ActiveState") == "active"
    assert service.pid == old
    service.stop()


def test_a_mount_that_cannot_be_fails_with_its_cause_in_one_line(machine: Machine) -> None:
    service = Service(machine, "failing", init=False)
    for text, cause in (
        (None, "no git repository at /srv/failing.git"),
        ("repo = '/srv/x'\nmountpoint = '/mnt/failing'\nmemroy = 1\n", "unknown setting 'memroy'"),
    ):
        if text is not None:
            machine.path(service.file).write_text(text)
        assert machine.run("systemctl", "start", service.unit, status=None).returncode != 0
        assert (service.shown("ActiveState"), service.shown("NRestarts")) == ("failed", "0")
        (event,) = [
            event for event in service.events("-p", "err", "_COMM=python") if cause in event["MESSAGE"]
        ]
        assert "\n" not in event["MESSAGE"]
        machine.run("systemctl", "reset-failed", service.unit)
    assert cause not in service.shown("StatusText")  # a file that is no settings is not a mount's trouble


def test_stop_while_a_program_writes(machine: Machine) -> None:
    service = Service(machine, "busy").start()
    script = f"cd {service.mountpoint}; while :; do echo line >>out || exit 9; done"
    words = ["nsenter", "-t", str(machine.init), "-m", "-p", "--", "sh", "-c", script]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as writer:
        try:
            machine.wait(lambda: machine.path(f"{service.mountpoint}/out").exists(), what="the writer's file")
            service.stop()
            assert service.shown("Result") == "success"
            assert service.mounts() == 0
            assert writer.wait(20) == 9
        finally:
            writer.kill()
    lines = service.git("show", "main:out").splitlines()
    assert len(lines) > 0
    assert set(lines[:-1]) == {"line"}


def test_a_stopped_service_leaves_a_live_mount_of_others_alone(machine: Machine) -> None:
    """The cleaning up after a start that failed since somebody else has mounted there."""
    service = Service(machine, "taken")
    machine.run("caiafs", "mount", "-o", "init", service.repository, service.mountpoint)
    assert machine.run("systemctl", "start", service.unit, status=None).returncode != 0
    assert "mounted already" in " ".join(event["MESSAGE"] for event in service.events("-p", "err"))
    assert service.mounts() == 1
    machine.run("caiafs", "umount", service.mountpoint)


def test_units_hold_and_their_exposure_is_what_the_documentation_says(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", UNIT.format("site"))
    assert (done.stdout, done.stderr) == ("", "")
    said = machine.ask("systemd-analyze", "security", "--no-pager", UNIT.format("site"))
    (figure,) = re.findall(r"Overall exposure level for .*: ([\d.]+)", said)
    assert float(figure) <= 4.2


USER_MANAGER = """
[Service]
Type=notify
User=ada
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/1500 HOME=/home/ada
ExecStartPre=+install -d -m 700 -o ada -g ada /run/user/1500
ExecStart=/lib/systemd/systemd --user --unit=basic.target
"""


def test_for_a_user(machine: Machine) -> None:
    machine.run("useradd", "-m", "-u", "1500", "ada")
    machine.path("/run/systemd/system/ada.service").write_text(USER_MANAGER)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "ada.service")

    def as_ada(script: str, status: int | None = 0) -> str:
        return machine.run_as("ada", 1500, "sh", "-euc", script, status=status).stdout

    as_ada("caiafs install-units --user; mkdir ~/notes")
    settings = machine.path("/home/ada/.config/caiafs/notes.toml")
    settings.write_text('repo = "~/notes.git"\nmountpoint = "~/notes"\ninit = true\n')
    as_ada("systemctl --user start caiafs@notes; echo mine >~/notes/file")
    assert as_ada("systemctl --user show -P StatusText caiafs@notes").startswith("healthy")
    assert "user_id=1500" in machine.ask("findmnt", "-no", "OPTIONS", "/home/ada/notes")
    old = int(as_ada("systemctl --user show -P MainPID caiafs@notes"))
    os.kill(machine.host_pid(old), 9)

    def is_back() -> bool:
        said = as_ada("systemctl --user show -P ActiveState,MainPID caiafs@notes", status=None).split()
        return "active" in said and str(old) not in said

    machine.wait(is_back, 60, "the restart")
    assert as_ada("cat ~/notes/file") == "mine\n"
    as_ada("systemctl --user stop caiafs@notes; caiafs install-units --user --remove")
    assert as_ada("git -C ~/notes.git show main:file; ls ~/.config/systemd/user") == "mine\n"
