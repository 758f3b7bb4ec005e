"""Settings in every place they may stand, the commands that check and show them, and the example file."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from caiafs.cli import asking, main, mounting, settings
from caiafs.config import OPTIONS, Config, Option, check_file, show_value
from caiafs.config.example import render

ROOT = Path(__file__).parents[2]
DESIGNED = (
    "branch init ro primary enable_fallback operation_timeout commit_quiet commit_interval memory "
    "journal_max state_dir author http virtual allow_other log_level"
)
SAMPLES: dict[str, tuple[str, ...]] = {
    "branch": ("work/a", "work/b", "work/c"),
    "state_dir": ("/var/a", "/var/b", "/var/c"),
    "author": ("A <a@example.org>", "B <b@example.org>", "C <c@example.org>"),
    "fsname": ("a", "b", "c"),
    "http": ("127.0.0.1:8081", "127.0.0.1:8082", "unix:/run/c.sock"),
    "http_token_file": ("/etc/a", "/etc/b", "/etc/c"),
}


def samples(option: Option) -> tuple[str, ...]:
    """Three values, as text; where there are only two, the outer ones are the same."""
    if option.choices:
        first, last = option.choices[0], option.choices[-1]
        return first, last, first
    if option.name in SAMPLES:
        return SAMPLES[option.name]
    for unit in ("s", "ms", "MiB", ""):
        try:
            option.parse(f"4{unit}")
        except ValueError:
            continue
        return f"2{unit}", f"3{unit}", f"4{unit}"
    raise AssertionError(f"no sample for {option.name}: give it one in SAMPLES")


def taken(option: Option) -> None:
    """Skip a setting that this version refuses altogether."""
    if option.allowed.startswith("nothing"):
        pytest.skip(f"{option.name}: {option.allowed}")


def value(option: Option, config: Config) -> Any:
    return getattr(config, option.field)


def test_the_names_of_the_design_are_all_there() -> None:
    assert set(DESIGNED.split()) <= {option.name for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_setting_is_taken_from_every_place_and_the_highest_wins(option: Option, tmp_path: Path) -> None:
    taken(option)
    low, middle, high = samples(option)
    file = tmp_path / "c.toml"
    file.write_text(f"{option.name} = {json.dumps(middle)}\n")
    variable = f"CAIAFS_{option.name.upper()}"
    environ = {variable: low}

    def load(*options: str, file: str | None = None, environ: dict[str, str] | None = None) -> Config:
        return Config.load("/r", "/m", options, environ or {}, file)

    config = load(environ=environ)
    assert (value(option, config), config.origins[option.field]) == (
        option.parse(low),
        f"environment {variable}",
    )
    config = load(environ=environ, file=str(file))
    assert (value(option, config), config.origins[option.field]) == (option.parse(middle), f"file {file}")
    config = load(f'{option.name}="{high}"', environ=environ, file=str(file))
    assert (value(option, config), config.origins[option.field]) == (option.parse(high), "-o")


@pytest.mark.parametrize(
    ("old", "raw", "name", "value", "higher"),
    [
        ("PRIMARY_BACKEND", "git", "primary", "git", "memory"),
        ("GOVC_REPO_NAME", "old", "fsname", "old", "new"),
        ("PORT", "8080", "http", "127.0.0.1:8080", "127.0.0.1:9090"),
        ("CAIA_REPO_PATH", "/srv/old.git", "repo", "/srv/old.git", "/srv/new.git"),
    ],
)
def test_names_of_the_older_program_are_lowest(
    old: str, raw: str, name: str, value: str, higher: str, tmp_path: Path
) -> None:
    field = {"fsname": "source"}.get(name, name)
    environ = {old: raw}
    repo = None if name == "repo" else "/r"
    config = Config.load(repo, "/m", [], environ)
    assert (getattr(config, field), config.origins[field]) == (value, f"environment {old}")
    file = tmp_path / "c.toml"
    file.write_text(f'{name} = "{higher}"\n')
    assert getattr(Config.load(repo, "/m", [], environ, str(file)), field) == higher
    if name == "repo":
        assert Config.load(higher, "/m", [], environ).repo == higher
    else:
        assert getattr(Config.load(repo, "/m", [f"{name}={higher}"], environ), field) == higher
        environ[f"CAIAFS_{name.upper()}"] = higher
        assert getattr(Config.load(repo, "/m", [], environ), field) == higher


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_setting_is_a_flag(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(option)
    seen: list[Config] = []
    monkeypatch.setattr(mounting, "start", lambda config, foreground: seen.append(config) or 0)
    flag = f"--{option.name.replace('_', '-')}"
    first, last, _ = samples(option)
    if option.is_switch:
        assert main(["mount", flag, "/r", "/m"]) == 0
        assert value(option, seen[-1]) is True
        if option.metavar == "BOOL":
            assert main(["mount", flag.replace("--", "--no-", 1), "/r", "/m"]) == 0
            assert value(option, seen[-1]) is False
        return
    assert main(["mount", flag, first, "/r", "/m"]) == 0
    assert value(option, seen[-1]) == option.parse(first)
    assert main(["mount", "-o", f'{option.name}="{first}"', f"{flag}={last}", "/r", "/m"]) == 0
    assert value(option, seen[-1]) == option.parse(last), "the later word wins, flag or -o"


def test_a_flag_may_hold_what_separates_in_o(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(mounting, "start", lambda config, foreground: seen.append(config) or 0)
    assert main(["mount", "--author", 'Lovelace, "Ada" <ada@example.org>', "/r", "/m"]) == 0
    assert seen[0].author == 'Lovelace, "Ada" <ada@example.org>'


# -- check ------------------------------------------------------------------------------------------


def test_check_names_everything_that_is_wrong_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '# a file\nrepo = "/srv/r.git"\nmemroy = "1g"\nmemory = "12"\n\ncommit_quiet = "2d"\n'
        '"primary" = "gti"\nenable_fallback = "maybe"\n[branch]\nname = "main"\n[sectoin]\nx = 1\n'
    )
    assert main(["config", "check", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    expected = [
        (3, "'memroy'; did you mean 'memory'"),
        (4, "at least 1 MiB"),
        (6, "from 0 s to 1 h"),
        (7, "one of memory, git; did you mean 'git'"),
        (8, "true or false"),
        (9, "branch name"),
        (11, "in no [section]"),
    ]
    for line, (number, words) in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}:{number}: ")
        assert words in line


def test_check_of_good_files_is_zero_and_of_one_bad_file_among_them_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, empty, bad = tmp_path / "good.toml", tmp_path / "empty.toml", tmp_path / "bad.toml"
    good.write_text('repo = "r.git"\nmemory = "1g"\n')
    empty.write_text("")
    bad.write_text("ro = 3\n")
    assert main(["config", "check", str(good), str(empty)]) == 0
    assert capsys.readouterr().out == f"{good}: good; it sets repo, memory\n{empty}: good; it sets nothing\n"
    assert main(["config", "check", str(good), str(bad)]) == 2
    assert f"{bad}:1: ro = 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("memory = \n", "not valid TOML"), ("\xff\n", "not valid TOML")],
)
def test_check_of_what_is_no_settings_file(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    assert main(["config", "check", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_check_finds_what_a_mount_would_find(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    for option in OPTIONS:
        file.write_text(f"{option.name} = [1]\n")
        assert len(check_file(str(file))) == 1, option.name


# -- show -------------------------------------------------------------------------------------------


def test_show_gives_values_in_human_units_and_where_they_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"CAIAFS_COMMIT_INTERVAL": "90"}
    config = Config.load("/srv/r.git", "/m", ["memory=64m,ro"], environ)
    told = {"branch": "main", "state_dir": "/srv/r.git/caiafs/main", "settings": config.describe()}
    monkeypatch.setattr(asking, "configuration", lambda path: ("/m", json.loads(json.dumps(told))))
    assert main(["config", "show", "/m"]) == 0
    text = capsys.readouterr().out
    for row in (
        r"memory +64 MiB +-o",
        r"commit_interval +1 min 30 s +environment CAIAFS_COMMIT_INTERVAL",
        r"operation_timeout +5 s +default",
        r"branch +main +default",
        r"state_dir +/srv/r.git/caiafs/main +default",
        r"author +- +default",
        r"ro +true +-o",
        r"repo +/srv/r.git +command line",
    ):
        assert re.search(rf"^  {row}$", text, re.MULTILINE), row
    assert main(["config", "show", "--json", "/m"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(config.describe()))


def test_show_where_no_mount_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(tmp_path)]) == 1
    assert "not in a caiafs mount" in capsys.readouterr().err


def test_values_for_people() -> None:
    assert show_value("memory", 64 << 20) == "64 MiB"
    assert show_value("source", "name") == "name"
    assert show_value("kernel_options", ["ro", "nodev"]) == "ro,nodev"
    assert show_value("author", None) == ""


# -- the example ------------------------------------------------------------------------------------


def test_example_has_every_option_at_its_default() -> None:
    lines = re.findall(r"^#(\w+ = .*)$", render(), re.MULTILINE)
    table = tomllib.loads("\n".join(lines))
    assert list(table) == ["repo", "mountpoint", *(option.name for option in OPTIONS)]
    defaults = Config("", "")
    for option in OPTIONS:
        default = getattr(defaults, option.field)
        if default not in (None, ""):
            assert option.parse(table[option.name]) == default, option.name
        elif not option.allowed.startswith("nothing"):
            option.parse(table[option.name])  # an example, and one that is taken


def test_example_as_it_stands_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(render())
    assert check_file(str(file)) == []
    assert Config.load("/r", "/m", [], {}, str(file)) == Config("/r", "/m")


def test_example_is_the_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "example"]) == 0
    shipped = ROOT / "systemd" / "caiafs.toml.example"
    assert capsys.readouterr().out == shipped.read_text(), "`make share` writes it anew"


# -- wrong words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["moutn"], "did you mean 'mount'"),
        (["frobnicate"], "known are: check, commit, completion, config"),
        (["config", "chekc"], "did you mean 'check'"),
        (["config", "show", "--jsn", "/m"], "did you mean --json?"),
        (["config", "check"], "FILE"),
        (["completion", "tcsh"], "known are: bash, fish, zsh"),
        (["mount", "--memroy", "1g", "/r", "/m"], "did you mean --memory?"),
        (["mount", "--commit_quiet=1s", "/r", "/m"], "did you mean --commit-quiet?"),
        (["mount", "--qqq", "/r", "/m"], "--qqq is no option"),
        (["status", "--jsno"], "did you mean --json?"),
        (["check", "--repiar", "/r"], "did you mean --repair?"),
        (["umount", "--timeout", "soon", "/m"], "a positive number of seconds"),
        (["sync", "/m", "more"], "no place for more"),
        (["doctor", "now"], "no place for now"),
    ],
)
def test_wrong_words_are_answered_with_the_nearest_right_one(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["help"], "usage: caiafs [-h]"),
        (["help", "mount"], "usage: caiafs mount"),
        (["help", "config", "show"], "usage: caiafs config show"),
    ],
)
def test_help_is_a_command_too(words: list[str], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(usage)


def test_config_alone_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 2
    assert "actions:" in capsys.readouterr().err


def test_tables_line_up() -> None:
    config = {"branch": "main", "state_dir": "/s", "settings": Config("/r", "/m").describe()}
    lines = settings.render("/m", config).splitlines()[1:]
    starts = {line.index("default") for line in lines if line.endswith("default")}
    assert len(starts) == 1
