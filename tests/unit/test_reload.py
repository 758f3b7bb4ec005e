"""Settings that change while a mount serves, and what is said of those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiafs.config import Config, Remount, split_remount
from caiafs.errors import UsageError
from caiafs.memory import MemoryTier
from caiafs.mount.reload import LIVE, compare


def write(file: Path, **settings: object) -> None:
    lines = ['repo = "r.git"', 'mountpoint = "m"']
    lines += [f'{name} = "{value}"' for name, value in settings.items()]
    file.write_text("\n".join(lines) + "\n")


def test_a_file_is_read_again_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has another working directory by then."""
    file = tmp_path / "c.toml"
    write(file, commit_quiet="1s", log_level="info")
    monkeypatch.chdir(tmp_path)
    config = Config.load(None, None, ["log_level=debug"], {"CAIAFS_MEMORY": "1g", "HOME": "/x"}, "c.toml")
    monkeypatch.chdir("/")
    write(file, commit_quiet="5m", log_level="error", branch="other")
    assert config.given is not None
    change = compare(config, config.given.gather())
    assert change.changed == ("commit_quiet",)  # -o goes before the file, as at the start
    assert change.kept == ("branch",)
    assert change.config.commit_quiet == 300
    assert (change.config.branch, change.config.log_level, change.config.memory) == (None, "debug", 1 << 30)
    assert change.config.origins["commit_quiet"] == f"file {file}"
    assert change.describe() == "reloaded: commit_quiet = 300.0; only a new mount changes branch"
    assert "HOME" not in config.given.environ


def test_a_setting_that_is_gone_is_the_default_again(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    write(file, memory="1GiB")
    config = Config.load(None, None, (), {}, str(file))
    write(file)
    assert config.given is not None
    change = compare(config, config.given.gather())
    assert change.changed == ("memory",)
    assert change.config.memory == Config("", "").memory
    assert "memory" not in change.config.origins
    again = compare(change.config, config.given.gather())
    assert again.describe() == "reloaded: nothing has changed"


def test_a_file_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    write(file)
    config = Config.load(None, None, (), {}, str(file))
    assert config.given is not None
    write(file, memroy="1GiB")
    with pytest.raises(UsageError, match="did you mean 'memory'"):
        config.given.gather()
    file.unlink()
    with pytest.raises(UsageError, match="No such file"):
        config.given.gather()


def test_live_settings_are_settings() -> None:
    assert {name for name in LIVE if hasattr(Config("", ""), name)} == LIVE


def test_a_smaller_budget_holds_at_once() -> None:
    class Block:
        def __init__(self) -> None:
            self.size = 1000

        def evict(self) -> None:
            self.size = 0

    memory = MemoryTier(100_000)
    blocks = [Block() for _ in range(50)]
    for block in blocks:
        memory.hold(block)
    memory.resize(10_000)
    assert memory.held <= 10_000
    assert [block.size for block in blocks].count(0) == memory.evictions > 40


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["remount,ro"], Remount(True, (), ())),
        (["remount,ro,rw"], Remount(False, (), ())),
        (["remount", "rw=false"], Remount(True, (), ())),
        (
            ["rw,remount,suid,nodev,memory=1g,x-y,_netdev"],
            Remount(False, ("suid", "nodev"), (("memory", "1g"),)),
        ),
        (["remount,user_id=0,group_id=0,default_permissions,max_read=4096"], Remount(None, (), ())),
    ],
)
def test_words_of_a_remount(options: list[str], wanted: Remount) -> None:
    assert split_remount(options) == wanted


def test_unknown_words_of_a_remount_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'branch'"):
        split_remount(["remount,brnch=x"])
