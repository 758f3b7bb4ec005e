"""What everybody tries first: the README's two commands, from a clone, on a machine that has nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.roots import FreshMachine, copy_of_the_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

_TESTS = "tests/unit/test_config.py tests/mount/test_commands.py tests/mount/test_users.py"
_FEW = "tests/unit/test_config.py"
_CLONE = (
    "git -C /srv/source init -q -b main && git -C /srv/source add -A && "
    "git -C /srv/source -c user.name=A -c user.email=a@example.org commit -qm Source"
)


@pytest.mark.parametrize("user", ["root", "ada"])
def test_the_two_commands_of_the_readme_work_twice_in_a_row(
    user: str, machine: FreshMachine, tmp_path: Path
) -> None:
    machine.install("git", *(["sudo"] if user != "root" else []))
    if user != "root":
        machine.add_user(user, sudo=True)
    machine.put(copy_of_the_source(tmp_path / "source"), "/srv/source")
    machine.run(f"{_CLONE} && chown -R {user} /srv/source")
    machine.run("git clone -q file:///srv/source caiafs", user=user)

    first = machine.run("cd caiafs && sh .ci/demo", user=user)
    assert "installing system packages" in first.stdout
    second = machine.run("cd caiafs && sh .ci/demo", user=user)
    assert "installing" not in second.stdout
    for shown in (first.stdout, second.stdout):
        assert "Move in" in shown
        assert '"state": "healthy"' in shown

    tests = _TESTS if user == "root" else _FEW  # most tests of mounts are root's
    first = machine.run(f"cd caiafs && sh .ci/test {tests}", user=user)
    second = machine.run(f"cd caiafs && sh .ci/test {_FEW}", user=user)
    assert "installing" not in second.stdout
    for shown in (first.stdout, second.stdout):
        assert " passed" in shown.splitlines()[-1]
    assert machine.run("cd caiafs && git status --porcelain", user=user).stdout == ""
    machine.run("caiafs/.venv/bin/caiafs umount /tmp/caiafs-demo/notes", user=user)


def test_without_the_right_to_install_it_says_what_to_install(machine: FreshMachine, tmp_path: Path) -> None:
    machine.add_user("ada")
    machine.put(copy_of_the_source(tmp_path / "source"), "/srv/source")
    done = machine.run("cp -r /srv/source caiafs && cd caiafs && sh .ci/demo", user="ada", status=1)
    assert "as root" in done.stderr
    assert "apt-get install" in done.stderr
    for package in ("fuse3", "libfuse3-dev", "python3-venv", "git"):
        assert package in done.stderr
