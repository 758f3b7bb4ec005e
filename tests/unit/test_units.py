"""`caiafs install-units`: writes what is missing, knows its own, touches nothing of others, takes it back."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import caiafs
from caiafs.cli import main, units

SHIPPED = Path(caiafs.__file__).parent / "systemd"
SYSTEM = {
    "etc/systemd/system/caiafs@.service",
    "etc/systemd/user/caiafs@.service",
    "etc/caiafs/example.toml",
    "sbin/mount.caiafs",
    "sbin/mount.fuse.caiafs",
    "sbin/umount.caiafs",
    "sbin/umount.fuse.caiafs",
}


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "this_command", lambda: ["/opt/my caiafs/bin/caiafs"])
    monkeypatch.setattr(units, "_systemd_version", lambda: 252)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def install(root: Path, *words: str, status: int = 0) -> None:
    assert main(["install-units", "--root", str(root), *words]) == status


def test_writes_what_it_says_and_takes_it_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text("theirs\n")
    install(tmp_path)
    assert files(tmp_path) == SYSTEM | {"etc/fstab"}
    said = capsys.readouterr().out
    assert {line.split()[1].removeprefix(f"{tmp_path}/") for line in said.splitlines()} == SYSTEM
    assert os.readlink(tmp_path / "sbin/mount.fuse.caiafs") == "mount.caiafs"
    assert os.access(tmp_path / "sbin/mount.caiafs", os.X_OK)
    install(tmp_path, "--remove")
    assert files(tmp_path) == {"etc/fstab"}
    assert not (tmp_path / "etc/caiafs").exists()
    assert capsys.readouterr().out.count("removed") == len(SYSTEM)
    install(tmp_path, "--remove")
    assert capsys.readouterr().out == ""


def test_a_second_time_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    before = {name: (tmp_path / name).lstat().st_mtime_ns for name in SYSTEM}
    capsys.readouterr()
    install(tmp_path)
    assert {name: (tmp_path / name).lstat().st_mtime_ns for name in SYSTEM} == before
    assert capsys.readouterr().out.count("is there already") == len(SYSTEM)


def test_files_of_an_older_version_are_brought_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = tmp_path / "etc/systemd/system/caiafs@.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(units.Item("", "[Unit]\nDescription=of yore\n").text)
    install(tmp_path)
    assert "of yore" not in unit.read_text()
    assert f"brought up to date: {unit}" in capsys.readouterr().out


def test_what_somebody_changed_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    example = tmp_path / "etc/caiafs/example.toml"
    example.write_text(example.read_text() + "# mine\n")
    mine = example.read_text()
    install(tmp_path)
    install(tmp_path, "--remove")
    assert example.read_text() == mine
    assert files(tmp_path) == {"etc/caiafs/example.toml"}
    assert capsys.readouterr().out.count(f"was changed since, and is left alone: {example}") == 2


def test_files_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helper, link = tmp_path / "sbin/mount.caiafs", tmp_path / "sbin/umount.fuse.caiafs"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\nexit 0\n")
    link.symlink_to("elsewhere")
    install(tmp_path, status=1)
    assert f"is somebody else's, and is left alone: {helper}" in capsys.readouterr().out
    assert (tmp_path / "etc/systemd/system/caiafs@.service").exists()
    install(tmp_path, "--remove")
    assert helper.read_text() == "#!/bin/sh\nexit 0\n"
    assert files(tmp_path) == {"sbin/mount.caiafs", "sbin/umount.fuse.caiafs"}


def test_for_a_package(tmp_path: Path) -> None:
    install(tmp_path, "--prefix", "/usr")
    assert files(tmp_path) == {
        "usr/lib/systemd/system/caiafs@.service",
        "usr/lib/systemd/user/caiafs@.service",
        "etc/caiafs/example.toml",
        "usr/sbin/mount.caiafs",
        "usr/sbin/mount.fuse.caiafs",
        "usr/sbin/umount.caiafs",
        "usr/sbin/umount.fuse.caiafs",
    }
    unit = (tmp_path / "usr/lib/systemd/system/caiafs@.service").read_text()
    assert unit.startswith((SHIPPED / "caiafs@.service").read_text())


def test_for_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/ada/.config")
    install(tmp_path, "--user")
    assert files(tmp_path) == {
        "home/ada/.config/systemd/user/caiafs@.service",
        "home/ada/.config/caiafs/example.toml",
    }
    assert main(["install-units", "--user", "--prefix", "/usr"]) == 2


def test_never_writes_outside_its_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "etc").symlink_to(elsewhere)
    install(root, status=2)
    assert "leads out of" in capsys.readouterr().err
    assert files(elsewhere) == set()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_permission_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-units"]) == 1
    assert "as root, or with --user" in capsys.readouterr().err


def test_new_systemds_reload_by_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_systemd_version", lambda: 253)
    named = {item.path for item in units._system_items("/", None)}
    assert "/etc/systemd/system/caiafs@.service.d/notify-reload.conf" in named
    monkeypatch.setattr(units, "_systemd_version", lambda: 252)
    assert not [item for item in units._system_items("/", None) if "notify-reload" in item.path]


def test_the_command_is_called_as_it_was_found(tmp_path: Path) -> None:
    install(tmp_path)
    unit = (tmp_path / "etc/systemd/system/caiafs@.service").read_text()
    assert 'ExecStart="/opt/my caiafs/bin/caiafs" mount --foreground' in unit
    assert "/usr/bin/caiafs" not in unit
    helper = (tmp_path / "sbin/mount.caiafs").read_text()
    assert "exec '/opt/my caiafs/bin/caiafs' mount.caiafs \"$@\"" in helper


# -- what is shipped --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["caiafs@.service", "user/caiafs@.service"])
def test_units_do_not_hide_the_mount(name: str) -> None:
    """Seen with systemd 252: these give the service a mount namespace of its own, and its mount with it."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SHIPPED / name)
    hiding = re.compile(
        r"ProtectSystem|ProtectHome|ProtectProc|ProcSubset|ProtectKernel\w+|ProtectControlGroups|PrivateTmp|"
        r"PrivateDevices|PrivateMounts|PrivateUsers|\w+Paths|TemporaryFileSystem|Bind\w*|Root\w+|DynamicUser"
    )
    assert [key for key in parser["Service"] if hiding.fullmatch(key)] == []
    if name.startswith("user/"):
        # Each of these implies NoNewPrivileges for an ordinary user, which breaks fusermount3.
        implying = re.compile(
            r"NoNewPrivileges|SystemCall\w+|Restrict(?!Prevent)\w+|Lock\w+|MemoryDeny\w+|Private\w+"
        )
        assert [
            key for key in parser["Service"] if implying.match(key) and key != "RestartPreventExitStatus"
        ] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("manager", ["system", "user"])
def test_systemd_finds_nothing_wrong(manager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit status says nothing about unknown keys and bad values; what it writes does."""
    program = tmp_path / "caiafs"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(units, "this_command", lambda: [str(program)])
    install(tmp_path)
    unit = tmp_path / f"etc/systemd/{manager}/caiafs@.service"
    instance = unit.with_name("caiafs@site.service")
    shutil.copy(unit, instance)
    unit.unlink()

    def verify() -> str:
        return subprocess.run(
            ["systemd-analyze", "verify", f"--{manager}", "--recursive-errors=no", str(instance)],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        ).stderr

    assert verify() == ""
    instance.write_text(instance.read_text().replace("Restart=on-failure", "Restart=on-filure"))
    assert "on-filure" in verify()
