"""mount(8), umount(8), fstab and automount, the real ones, on a machine of their own."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support.machine import Machine

SETTINGS = "branch=main,commit_quiet=1h,commit_interval=1h"
FSTAB = f"""\
/srv/auto.git /mnt/auto fuse.caiafs defaults,{SETTINGS},_netdev,x-systemd.automount 0 0
/srv/plain.git /mnt/plain caiafs noauto,nofail,nosuid,{SETTINGS} 0 0
/home/ada/notes.git /home/ada/notes fuse.caiafs noauto,user,{SETTINGS} 0 0
"""
CONSUMER = """\
[Unit]
RequiresMountsFor=/mnt/auto/data
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cat /mnt/auto/message; echo seen >/mnt/auto/answer'
"""
REPOSITORIES = """
useradd -m -u 1500 ada
for place in /srv/auto.git /srv/plain.git /home/ada/notes.git; do
    git init -q --bare -b main $place
    printf 'blob\\nmark :1\\ndata 6\\nhello\\n\\ncommit refs/heads/main\\n' >/run/stream
    printf 'committer A <a@b> 0 +0000\\ndata 1\\nx\\nM 644 :1 message\\n' >>/run/stream
    git -C $place fast-import --quiet </run/stream
done
chown -R ada:ada /home/ada
mkdir -p /mnt/plain /mnt/other
install -d -o ada -g ada /home/ada/notes
"""


@pytest.fixture(scope="module")
def machine(bare_machine: Machine) -> Machine:
    bare_machine.files["/etc/fstab"] = FSTAB
    bare_machine.files["/usr/lib/systemd/system-preset/test"] = ""
    bare_machine.files["/run/consumer.service"] = CONSUMER
    bare_machine.prepare.append(REPOSITORIES)
    return bare_machine.boot()


def git(machine: Machine, repository: str, *words: str) -> str:
    return machine.run("git", "-C", repository, *words).stdout


def options(machine: Machine, place: str) -> set[str]:
    return set(machine.ask("findmnt", "-no", "OPTIONS", place).split(","))


def test_automount_mounts_on_first_access_and_commits_when_it_stops(machine: Machine) -> None:
    assert machine.shown("mnt-auto.mount", "ActiveState") == "inactive"
    assert machine.run("cat", "/mnt/auto/message").stdout == "hello\n"
    assert machine.shown("mnt-auto.mount", "ActiveState") == "active"
    assert machine.shown("mnt-auto.mount", "Type") == "fuse.caiafs"
    machine.path("/mnt/auto/new").write_text("text")
    said = machine.ask("journalctl", "-o", "cat", "CAIAFS_MOUNT=/mnt/auto", "CAIAFS_EVENT=mounted")
    assert "is mounted on /mnt/auto" in said
    machine.run("systemctl", "stop", "mnt-auto.mount")
    assert git(machine, "/srv/auto.git", "show", "main:new") == "text"
    assert machine.run("cat", "/mnt/auto/new").stdout == "text"  # mounted once more, by looking


UNIT = f"""\
[Mount]
What=/srv/plain.git
Where=/mnt/unit
Type=fuse.caiafs
Options=nosuid,nodev,{SETTINGS}
"""
FIRST_ACCESS = "[Automount]\nWhere=/mnt/unit\nTimeoutIdleSec=1\n"


def test_mount_and_automount_units_and_an_end_by_idleness(machine: Machine) -> None:
    units = machine.path("/run/systemd/system")
    (units / "mnt-unit.mount").write_text(UNIT)
    (units / "mnt-unit.automount").write_text(FIRST_ACCESS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "mnt-unit.automount")
    machine.run("sh", "-c", "echo idle >/mnt/unit/idle")
    machine.wait(lambda: machine.shown("mnt-unit.mount", "ActiveState") == "inactive", 60, "the idle end")
    assert machine.shown("mnt-unit.mount", "Result") == "success"
    assert git(machine, "/srv/plain.git", "show", "main:idle") == "idle\n"
    machine.run("systemctl", "stop", "mnt-unit.automount")


def test_a_service_waits_for_the_mount_that_it_requires(machine: Machine) -> None:
    machine.run("systemctl", "stop", "mnt-auto.mount")
    machine.sh("cp /run/consumer.service /run/systemd/system/; systemctl daemon-reload")
    assert {"mnt-auto.mount"} <= set(machine.shown("consumer.service", "Requires").split())
    machine.run("systemctl", "start", "consumer.service")
    assert machine.path("/mnt/auto/answer").read_text() == "seen\n"
    machine.run("systemctl", "stop", "mnt-auto.mount")  # and takes the service along
    assert machine.shown("consumer.service", "ActiveState") == "inactive"
    assert git(machine, "/srv/auto.git", "show", "main:answer") == "seen\n"


def test_mount_by_fstab_and_a_plain_umount_that_commits(machine: Machine) -> None:
    place = machine.path("/mnt/plain")
    for text in ("one", "two"):
        machine.run("mount", "/mnt/plain")
        (place / "file").write_text(text)
        machine.run("umount", "/mnt/plain")
        assert list(place.iterdir()) == []
        # It was on the way out, so that the next mount finds the branch free at once.
        assert git(machine, "/srv/plain.git", "show", "main:file") == text
    machine.wait(lambda: not machine.ask("pgrep", "-f", "mount.caiafs"), 20, "the end of the daemons")


def test_types_and_options_of_mount8(machine: Machine) -> None:
    words = [
        "mount",
        "-v",
        "-t",
        "fuse.caiafs",
        "-o",
        f"rw,noexec,{SETTINGS}",
        "/srv/plain.git",
        "/mnt/other",
    ]
    machine.run(*words)
    shown = options(machine, "/mnt/other")
    assert {"rw", "noexec"} <= shown
    assert not {"nosuid", "nodev"} & shown  # who leaves them out means suid and dev, mount(8) says
    assert machine.ask("findmnt", "-no", "FSTYPE,SOURCE", "/mnt/other") == "fuse.caiafs /srv/plain.git"
    machine.run("umount", "/mnt/other")
    machine.run("mount", "-t", "caiafs", "-o", "ro,nosuid,nodev", "/srv/plain.git", "/mnt/other")
    assert {"ro", "nosuid", "nodev"} <= options(machine, "/mnt/other")
    opened = machine.run("mount", "-o", "remount,rw", "/mnt/other", status=32)
    assert "keeps no journal" in opened.stderr
    machine.run("umount", "/mnt/other")
    failed = machine.run("mount", "-t", "caiafs", "-o", "memroy=1", "/srv/plain.git", "/mnt/other", status=32)
    assert "did you mean 'memory'" in failed.stderr


def is_read_only(path: Path) -> bool:
    try:
        path.write_text("x")
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def test_remount_read_only_and_back(machine: Machine) -> None:
    machine.run("mount", "/mnt/plain")
    place = machine.path("/mnt/plain")
    (place / "before").write_text("kept")
    with (place / "open").open("w") as file:
        file.write("x")
        busy = machine.run("mount", "-o", "remount,ro", "/mnt/plain", status=32)
        assert "open for writing" in busy.stderr
        assert not is_read_only(place / "still")
        busy = machine.run("umount", "/mnt/plain", status=32)
        assert "/mnt/plain is busy" in busy.stderr
    machine.run("mount", "-o", "remount,ro", "/mnt/plain")
    assert is_read_only(place / "after")
    assert {"ro", "nosuid"} <= options(machine, "/mnt/plain")
    assert git(machine, "/srv/plain.git", "show", "main:before") == "kept"
    assert json.loads((place / ".stats/config.json").read_text())["settings"]["ro"]["value"] is True
    # Past the kernel the daemon refuses, too.
    machine.run("mount", "-i", "-o", "remount,rw", "/mnt/plain")
    assert is_read_only(place / "after")
    machine.run("mount", "-o", "remount,rw,commit_interval=5m", "/mnt/plain")
    assert not is_read_only(place / "after")
    settings = json.loads((place / ".stats/config.json").read_text())["settings"]
    assert (settings["ro"]["value"], settings["commit_interval"]["value"]) == (False, 300)
    fixed = machine.run("mount", "-o", "remount,branch=other", "/mnt/plain", status=32)
    assert "branch cannot change" in fixed.stderr
    machine.run("umount", "/mnt/plain")
    assert git(machine, "/srv/plain.git", "show", "main:after") == "x"


def test_umount_loses_nothing_when_git_takes_nothing(machine: Machine) -> None:
    machine.run("mount", "/mnt/plain")
    machine.path("/mnt/plain/stuck").write_text("waits")
    lock = machine.path("/srv/plain.git/refs/heads/main.lock")
    lock.touch()
    done = machine.run("umount", "/mnt/plain")
    assert "the next mount commits it" in done.stderr
    assert not machine.ask("findmnt", "-n", "/mnt/plain")
    lock.unlink()
    machine.wait(lambda: not machine.ask("pgrep", "-f", "mount.caiafs"), 60, "the daemon's end")
    machine.run("mount", "/mnt/plain")
    assert machine.path("/mnt/plain/stuck").read_text() == "waits"
    # A mount whose daemon is dead is unmounted like any other.
    pid = json.loads(machine.path("/mnt/plain/.stats/config.json").read_text())["pid"]
    os.kill(machine.host_pid(pid), 9)
    machine.run("umount", "/mnt/plain")
    machine.run("mount", "/mnt/plain")
    machine.run("umount", "/mnt/plain")
    assert git(machine, "/srv/plain.git", "show", "main:stuck") == "waits"


def test_an_ordinary_user_mounts_what_fstab_lets_them(machine: Machine) -> None:
    as_ada = ["setpriv", "--reuid=1500", "--regid=1500", "--clear-groups", "env", "HOME=/home/ada"]
    machine.run(*as_ada, "mount", "/home/ada/notes")
    shown = options(machine, "/home/ada/notes")
    assert {"nosuid", "nodev", "noexec", "user_id=1500"} <= shown
    machine.run(*as_ada, "sh", "-c", "echo mine >/home/ada/notes/file")
    machine.run(*as_ada, "umount", "/home/ada/notes")
    assert not machine.ask("findmnt", "-n", "/home/ada/notes")
    assert git(machine, "/home/ada/notes.git", "show", "main:file") == "mine\n"
    refused = machine.run(*as_ada, "mount", "/mnt/plain", status=None)
    assert refused.returncode != 0
    assert "may not" in refused.stderr
