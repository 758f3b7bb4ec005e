"""Settings: precedence, units, and messages that name the way out."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest

from caiafs.config import (
    GIB,
    MIB,
    OPTIONS,
    Config,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_http,
    parse_seconds,
    split_options,
    state_directory,
)
from caiafs.errors import UsageError


def load(*options: str, environ: dict[str, str] | None = None, file: str | None = None) -> Config:
    return Config.load("/r", "/m", options, environ or {}, file)


def test_defaults_are_those_of_the_design() -> None:
    config = load()
    assert (config.repo, config.mountpoint, config.source) == ("/r", "/m", "/r")
    assert config.branch is None
    assert config.primary == "memory"
    assert config.enable_fallback is True
    assert config.operation_timeout == 5.0
    assert (config.commit_quiet, config.commit_interval) == (1.0, 30.0)
    assert (config.memory, config.journal_max) == (256 * MIB, 4 * GIB)
    assert (config.virtual, config.log_level) == ("hidden", "info")
    assert (config.init, config.ro, config.allow_other) == (False, False, False)
    assert config == Config("/r", "/m")


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().ro = True  # type: ignore[misc]


def test_every_option_has_a_field_and_every_field_is_described() -> None:
    described = load().describe()
    for option in OPTIONS:
        assert {"fsname": "source"}.get(option.name, option.name) in described
    assert described["memory"] == {"value": 256 * MIB, "origin": "default"}
    json.dumps(described)


def test_o_wins_over_file_wins_over_environment_wins_over_old_names(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    environ = {"PRIMARY_BACKEND": "git"}
    assert load(environ=environ).origins["primary"] == "environment PRIMARY_BACKEND"
    environ["CAIAFS_PRIMARY"] = "memory"
    config = load(environ=environ)
    assert (config.primary, config.origins["primary"]) == ("memory", "environment CAIAFS_PRIMARY")
    file.write_text('primary = "git"\n')
    config = load(environ=environ, file=str(file))
    assert (config.primary, config.origins["primary"]) == ("git", f"file {file}")
    config = load("primary=memory", environ=environ, file=str(file))
    assert (config.primary, config.origins["primary"]) == ("memory", "-o")


def test_a_file_can_be_named_in_o(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('commit_quiet = "250ms"\nmemory = 67108864\nro = true\n')
    config = load(f"config={file}")
    assert (config.commit_quiet, config.memory, config.ro) == (0.25, 64 * MIB, True)
    with pytest.raises(UsageError, match="two configuration files"):
        load(f"config={file}", file="/other.toml")


def test_file_names_repository_and_mountpoint_relative_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('repo = "notes.git"\nmountpoint = "/srv/notes"\nstate_dir = "state"\n')
    config = Config.load(None, None, [], {}, str(file))
    assert config.repo == str(tmp_path / "notes.git")
    assert config.mountpoint == "/srv/notes"
    assert config.state_dir == str(tmp_path / "state")


def test_arguments_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load("r", "m", ["state_dir=s"], {})
    assert (config.repo, config.mountpoint) == (f"{tmp_path}/r", f"{tmp_path}/m")
    assert config.state_dir == f"{tmp_path}/s"


def test_old_environment_names() -> None:
    environ = {
        "PRIMARY_BACKEND": "govc",
        "CAIA_REPO_PATH": "/srv/r.git",
        "GOVC_REPO_NAME": "notes",
        "PORT": "8080",
    }
    config = Config.load(None, "/m", [], environ)
    assert (config.primary, config.repo, config.source) == ("memory", "/srv/r.git", "notes")
    assert (config.http, config.origins["http"]) == ("127.0.0.1:8080", "environment PORT")
    assert config.origins["source"] == "environment GOVC_REPO_NAME"
    assert Config.load("/r", "/m", [], environ).repo == "/r"
    with pytest.raises(UsageError, match=r"PRIMARY_BACKEND.*'redis'.*memory, git"):
        load(environ={"PRIMARY_BACKEND": "redis"})
    with pytest.raises(UsageError, match=r"PORT.*'http'.*from 1 to 65535.*unset it"):
        load(environ={"PORT": "http"})
    assert load("http=unix:/run/x", environ={"PORT": "8080"}).http == "unix:/run/x"


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load(environ={"CAIAFS_BRANCH": "", "PRIMARY_BACKEND": "", "PORT": ""}) == load()


def test_missing_repository_or_mountpoint_is_said() -> None:
    with pytest.raises(UsageError, match="CAIA_REPO_PATH"):
        Config.load(None, "/m", [], {})
    with pytest.raises(UsageError, match="MOUNTPOINT"):
        Config.load("/r", None, [], {})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("memroy=1g", "did you mean 'memory'"),
        ("commit-quiet=1s", "did you mean 'commit_quiet'"),
        ("zzzzzz", "known are: allow_other, author"),
        ("memory", "memory=SIZE"),
        ("memory=much", "memory.*'much'.*256MiB"),
        ("memory=256", "at least 1 MiB"),
        ("commit_quiet=-1s", "commit_quiet"),
        ("operation_timeout=0", "from 10 ms to 1 h"),
        ("operation_timeout=nan", "operation_timeout"),
        ("primary=redis", "one of memory, git"),
        ("enable_fallback=maybe", "true or false"),
        ("virtual=gone", "hidden, visible"),
        ("log_level=loud", "debug, info, warning, error"),
        ("branch=a..b", "check-ref-format"),
        ("branch=a b", "check-ref-format"),
        ("branch=-x", "check-ref-format"),
        ("branch=x.lock", "check-ref-format"),
        ("branch=" + "x" * 251, "at most 250 bytes"),
        ("author=nobody", "Name <mail>"),
        ("author=A  <a@b>", "Name <mail>"),
        ("http=8080", "ADDR:PORT.*unix:PATH"),
        ("http=127.0.0.1:65536", "0 to 65535"),
        ("http=127.0.0.1:", "0 to 65535"),
        ("http=example.org:80", "address of this machine"),
        ("http=::1:80", "address of this machine"),
        ("http=[::1", "address of this machine"),
        ("http=unix:", "unix:PATH"),
        ("http=unix:/run/", "unix:PATH"),
        ("http=unix:/" + "x" * 107, "at most 107 bytes"),
        ("remount", "a mount that is there already"),
        ("config=", "TOML file"),
        ("config=/does/not/exist.toml", "No such file"),
        ('author="A <a@b>', "left open"),
    ],
)
def test_bad_options_name_the_way_out(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(option)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "kept", "local"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("localhost:0", "127.0.0.1:0", True),
        ("127.8.8.8:1", "127.8.8.8:1", True),
        ("[::1]:443", "[::1]:443", True),
        ("[0:0:0:0:0:0:0:1]:443", "[::1]:443", True),
        ("0.0.0.0:8080", "0.0.0.0:8080", False),
        ("[::]:8080", "[::]:8080", False),
        ("192.0.2.7:8080", "192.0.2.7:8080", False),
        ("[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:8080", True),
        ("[::ffff:192.0.2.7]:8080", "[::ffff:192.0.2.7]:8080", False),
        ("unix:/run/caiafs/http", "unix:/run/caiafs/http", True),
    ],
)
def test_http_addresses(given: str, kept: str, local: bool) -> None:
    address = load(f"http={given}").http
    assert address is not None
    assert address.lower() in (kept, str(parse_http(kept)))  # how Python writes a mapped one changed
    assert parse_http(address).is_local is local


def test_paths_of_http_in_a_file_are_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('http = "unix:run/http"\nhttp_token_file = "token"\n')
    config = load(file=str(file))
    assert (config.http, config.http_token_file) == (f"unix:{tmp_path}/run/http", f"{tmp_path}/token")


def test_misspelt_variable_is_refused_and_a_foreign_one_is_noted() -> None:
    with pytest.raises(UsageError, match="CAIAFS_PRIMARY"):
        load(environ={"CAIAFS_PRIMRAY": "git"})
    assert "CAIAFS_XYZZY_9" in load(environ={"CAIAFS_XYZZY_9": "1"}).notes[0]


@pytest.mark.parametrize(
    "text", ["memory = \n", "memroy = 1\n", "memory = [1]\n", "ro = 1\n", "[section]\nro = true\n"]
)
def test_bad_files_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=str(file)):
        load(file=str(file))


def test_words_of_mount8_are_accepted() -> None:
    fstab = (
        "rw,defaults,_netdev,nofail,x-systemd.automount,x-gvfs-hide,comment=hi,users,relatime,async,noauto"
    )
    config = load(fstab)
    assert config.ro is False
    assert config.kernel_options == ("noexec", "nosuid", "nodev")
    assert load("users,exec,dev").kernel_options == ("nosuid", "exec", "dev")
    assert load("nodev,dev,noatime,sync,async,dirsync").kernel_options == ("dev", "noatime", "dirsync")
    assert (load("ro,noexec").ro, load("ro,noexec").kernel_options) == (True, ("ro", "noexec"))
    assert (load("ro,rw").ro, load("ro,rw").kernel_options) == (False, ())


def test_sloppy_turns_unknown_words_into_notes() -> None:
    config = Config.load("/r", "/m", ["frobnicate=1"], {}, sloppy=True)
    assert "frobnicate" in config.notes[0]


def test_the_last_word_wins() -> None:
    assert load("branch=a", "branch=b").branch == "b"


def test_commas_can_be_part_of_a_value() -> None:
    assert list(split_options([r"author=Lovelace\, Ada <a@b>,ro"])) == [
        ("author", "Lovelace, Ada <a@b>"),
        ("ro", None),
    ]
    assert load('author="Lovelace, Ada <a@b>",ro').author == "Lovelace, Ada <a@b>"
    assert list(split_options([",,ro,"])) == [("ro", None)]


def test_branch_is_taken_without_its_prefix_and_with_any_byte() -> None:
    assert load("branch=refs/heads/work/notes").branch == "work/notes"
    name = os.fsdecode(b"caf\xe9")
    assert load(f"branch={name}").branch == name


def test_undecodable_paths_survive_describe() -> None:
    repo = os.fsdecode(b"/r\xff")
    described = json.loads(json.dumps(Config.load(repo, "/m", [], {}).describe()))
    assert os.fsencode(described["repo"]["value"]) == b"/r\xff"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("65536", 65536),
        ("64k", 65536),
        ("256MiB", 256 * MIB),
        ("1g", GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("1MB", 10**6),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("500ms", 0.5), ("5s", 5), ("1m", 60), ("0.5h", 1800), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "k", "1x", "1 2", "-1", "1e3", "٣k", "inf"])
def test_nonsense_is_no_size_and_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="a duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (256 * MIB, "256 MiB"),
        (1023 * MIB, "0.999 GiB"),
        (4 * GIB, "4 GiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00025, "250 µs"),
        (0.5, "500 ms"),
        (5, "5 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_state_directories_of_branches_never_nest_or_collide() -> None:
    names = ["a", "a/b", "a%2Fb", "b/" * 150 + "x", "b/" * 150 + "y"]
    places = [state_directory("/g", name) for name in names]
    assert places[:3] == ["/g/caiafs/a", "/g/caiafs/a%2Fb", "/g/caiafs/a%252Fb"]
    assert len(set(places)) == len(places)
    assert all(os.path.dirname(place) == "/g/caiafs" for place in places)
    assert all(len(os.path.basename(place)) < 256 for place in places)
    assert state_directory("/g", b"a/b") == places[1]
    assert state_directory("/g", "a", "/elsewhere") == "/elsewhere"


def test_config_can_be_sent_to_another_process() -> None:
    config = load("branch=a", "nodev")
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.origins == config.origins
