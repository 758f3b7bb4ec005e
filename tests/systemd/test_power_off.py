"""Power off and power gone with dirty mounts: the next boot has everything."""

from __future__ import annotations

from support.machine import Machine
from support.mounts import run

SITE = """\
repo = "/srv/site.git"
mountpoint = "/mnt/site"
init = true
commit_quiet = "1h"
commit_interval = "1h"
"""
READER = """\
[Unit]
After=remote-fs.target
ConditionPathExists=/srv/site.git/refs/heads/main
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/cat /mnt/site/first
[Install]
WantedBy=multi-user.target
"""
FSTAB = (
    "/srv/auto.git /mnt/auto fuse.caiafs init,commit_quiet=1h,commit_interval=1h,x-systemd.automount 0 0\n"
)


def write(machine: Machine, name: str) -> None:
    machine.run("ls", "/mnt/auto")  # the first access, from inside
    for place in ("site", "auto"):
        folder = machine.path(f"/mnt/{place}")
        (folder / name).write_text(f"{name} of {place}")
        for number in range(100):
            (folder / f"{name}{number}").write_text(f"{number}")


def missing(machine: Machine, *names: str) -> list[str]:
    """What is not as it was written."""
    machine.run("ls", "/mnt/auto")
    wrong = []
    for place in ("site", "auto"):
        folder = machine.path(f"/mnt/{place}")
        texts = {name: f"{name} of {place}" for name in names}
        texts |= {f"{name}{number}": f"{number}" for name in names for number in range(100)}
        for name, text in texts.items():
            if not (folder / name).exists() or (folder / name).read_text() != text:
                wrong.append(f"{place}/{name}")
    return wrong


def in_git(machine: Machine, place: str) -> set[str]:
    """The names on the branch, looked at while the machine is off."""
    refs = machine.disk / f"{place}.git"
    return set(run("git", "-C", refs, "ls-tree", "--name-only", "main").stdout.splitlines())


def test_power_off_and_power_loss_with_dirty_mounts(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.files["/etc/caiafs/site.toml"] = SITE
    machine.files["/etc/fstab"] = FSTAB
    machine.files["/root/reader.service"] = READER
    machine.prepare += [
        "cp /root/reader.service /etc/systemd/system/",
        "mkdir -p /mnt/site",
        "systemctl enable -q caiafs@site reader",
    ]
    machine.boot()
    write(machine, "first")
    assert (machine.disk / "site.git").exists()
    assert not (machine.disk / "site.git/refs/heads/main").exists()
    machine.power_off()
    # Both ways of mounting commit on the way out.
    assert {"first", "first99"} <= in_git(machine, "site") & in_git(machine, "auto")

    machine.boot()
    assert missing(machine, "first") == []
    # Who waits for remote-fs.target comes after the mount, without a word about it.
    assert machine.shown("reader.service", "ActiveState") == "active"
    write(machine, "second")
    machine.cut_power()
    assert "second" not in in_git(machine, "site") | in_git(machine, "auto")

    machine.boot()
    assert missing(machine, "first", "second") == []
    machine.run("systemctl", "stop", "caiafs@site", "mnt-auto.automount", "mnt-auto.mount")
    assert {"second", "second99"} <= in_git(machine, "site") & in_git(machine, "auto")
    for place in ("site", "auto"):
        machine.run("caiafs", "check", f"/srv/{place}.git")
    machine.power_off()
