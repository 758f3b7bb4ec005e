"""What the kernel and a real daemon keep of docs/security.md: modes, mount flags, hooks, peers."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, run
from support.trap import plant
from support.users import ALICE, acting_as, need_root


def mount_options(mount: Mount) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f" {mount.path} " in line:
            left, right = line.split(" - ")
            return set(left.split()[5].split(",")) | set(right.split()[2].split(","))
    raise AssertionError("not mounted")


def test_everything_beside_a_mount_is_for_its_owner_alone(mounts: Mounts) -> None:
    mount = mounts.prepare(env={})
    mask = os.umask(0)
    try:
        mount.start()
    finally:
        os.umask(mask)
    (mount.path / "f").write_bytes(b"secret")
    state = Path(mount.stats("config.json")["state_dir"])
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in state.iterdir()}
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert modes.pop("control") == 0o600
    assert any(name.endswith(".seg") for name in modes)
    assert set(modes.values()) == {0o600}
    for private in ("tmp", "locks"):
        path = mount.repository / "caiafs" / private
        assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o700
    (mount.path / "f").unlink()


def test_the_kernel_is_told_to_enforce_modes_and_to_run_no_set_uid_program(mounts: Mounts) -> None:
    need_root()
    mount = mounts("allow_other")
    assert {"nosuid", "nodev", "default_permissions", "allow_other"} <= mount_options(mount)
    program = mount.path / "whoami"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    os.mknod(mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with acting_as(ALICE):
        words = ["setpriv", "--reuid", str(ALICE), "--regid", str(ALICE), "--clear-groups", program, "-u"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ALICE)
    with pytest.raises(PermissionError):
        (mount.path / "null").open("rb")


def test_without_allow_other_even_root_needs_to_be_the_user(mounts: Mounts) -> None:
    mount = mounts()
    assert "default_permissions" in mount_options(mount)
    assert "allow_other" not in mount_options(mount)


def test_another_user_may_not_command_a_mount(mounts: Mounts) -> None:
    need_root()
    mount = mounts("allow_other")
    state = Path(mount.stats("config.json")["state_dir"])
    for path in (mount.base, mount.repository, mount.repository / "caiafs"):
        path.chmod(0o755)
    with acting_as(ALICE), socket.socket(socket.AF_UNIX) as sock, pytest.raises(PermissionError):
        sock.connect(str(state / "control"))
    state.chmod(0o755)
    (state / "control").chmod(0o666)
    try:
        with acting_as(ALICE), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(state / "control"))
            sock.sendall(b'{"command": "commit"}\n')
            assert b"not permitted" in sock.recv(4096)
    finally:
        state.chmod(0o700)
        (state / "control").chmod(0o600)


def test_no_path_leaves_the_mount(mount: Mount) -> None:
    outside = mount.base / "outside"
    outside.write_bytes(b"outside")
    for name in ("a/../../outside", "..", "../outside"):
        assert (mount.path / name).resolve().is_relative_to(mount.base)
    (mount.path / "d").mkdir()
    (mount.path / "d" / "up").symlink_to("../../outside")
    assert os.readlink(mount.path / "d" / "up") == "../../outside"
    assert (mount.path / "d" / "up").read_bytes() == b"outside"  # the kernel's doing, as anywhere
    (mount.path / "d" / "up").unlink()
    assert (mount.path / "d" / ".." / "..").resolve() == mount.base.resolve()


def test_a_mount_runs_nothing_that_the_repository_names(mounts: Mounts) -> None:
    """Hooks and configured programs, while commits, recovery and check do their work; repacks: tests/unit."""
    mount = mounts.prepare()
    run("git", "init", "-q", "--bare", "-b", "main", mount.repository)
    clean = (mount.repository / "config").read_text()
    mark = plant(mount.repository, mount.base)
    mount.start()
    for number in range(3):
        (mount.path / f"f{number}").write_bytes(b"%d" % number)
        mount.commit()
    mount.kill()
    mount.start()
    (mount.path / "$(touch pwned)").write_bytes(b"x")
    (mount.path / "`touch pwned`;x").mkdir()
    (mount.path / "-exec").write_bytes(b"x")
    mount.commit("-m", "$(touch pwned) `touch pwned`")
    mount.umount()
    mount.caiafs("check", mount.repository)
    assert not mark.exists(), mark.read_text()
    assert not list(mount.base.rglob("pwned"))
    (mount.repository / "config").write_text(clean)
    (mount.repository / "info" / "attributes").unlink()
    for hook in (mount.repository / "hooks").iterdir():
        hook.unlink()


def test_names_cannot_forge_lines_of_the_log(mount: Mount) -> None:
    (mount.path / "x\n2026-01-01 forged").write_bytes(b"x")
    mount.commit()
    assert not re.search(r"^2026-01-01 forged", mount.log(), re.MULTILINE)
