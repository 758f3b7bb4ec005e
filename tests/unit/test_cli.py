"""The command line, with fakes at its seams: a fake daemon behind a real control socket, no mount."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fakemount import HEALTH, STATS, FakeMount
from support.mounts import environment

import caiafs
from caiafs import control
from caiafs.cli import asking, doctor, main, mounting, render
from caiafs.cli.parser import build_parser
from caiafs.config import OPTIONS, Config
from caiafs.errors import CaiafsError, RepositoryMissing
from caiafs.mount import logs

ROOT = Path(__file__).parents[2]

# -- words ------------------------------------------------------------------------------------------


def test_without_a_command_help_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "a first session" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"caiafs {caiafs.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "'nonsense' is no command"), (["commit"], "MOUNTPOINT"),
        (["umount", "--timeout", "-1", "/m"], "--timeout"), (["sync", "/m", "x"], "no place for x"),
        (["--halp"], "--halp is no option; did you mean --help?"),
    ],
)  # fmt: skip
def test_wrong_words_exit_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "usage: caiafs" in printed
    assert said in printed


def every_command(parser: argparse.ArgumentParser, *above: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, also of those below others."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*above, name)
                yield from every_command(below, *above, name)


@pytest.mark.parametrize("command", list(every_command(build_parser())), ids=" ".join)
def test_every_command_explains_itself_within_a_terminals_width(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert max(map(len, text.splitlines())) <= 100
    assert "example" in text or command == ("doctor",)
    assert text.startswith(f"usage: caiafs {' '.join(command)}")
    if command == ("mount",):
        for option in OPTIONS:
            assert f"\n  {option.name}" in text


def test_the_documents_name_every_option_with_its_default_and_every_command() -> None:
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    for option in OPTIONS:
        assert f"`{option.name}`" in configuration
    for default in ("5s", "1s", "30s", "256MiB", "4GiB"):
        assert f"`{default}`" in configuration
    cli = (ROOT / "docs" / "cli.md").read_text()
    for command in ("mount", "umount", "commit", "sync", "status", "check", "doctor", "mount.caiafs"):
        assert f"\n## `{'caiafs ' if '.' not in command else ''}{command}" in cli


# -- mount ------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that caiafs.mount.run was called with, in the foreground."""
    seen: list[Config] = []

    def run(config: Config, ready: Callable[[], None], notifier: object, watch: object) -> int:
        seen.append(config)
        ready()
        return 0

    monkeypatch.setattr(importlib.import_module("caiafs.mount"), "run", run, raising=False)
    monkeypatch.setattr(logs, "start", lambda *arguments, **options: lambda: None)
    for name in list(os.environ):
        if name.startswith(("CAIAFS_", "CAIA_", "GOVC_", "PRIMARY_")) or name == "PORT":
            monkeypatch.delenv(name)
    return seen


@pytest.mark.parametrize(
    "words",
    [
        ["-f", "-o", "branch=b,ro", "/r", "/m"],
        ["/r", "-o", "branch=b", "-o", "ro", "/m", "--foreground"],
        ["/r", "/m", "-f", "-o", "ro,branch=b"],
    ],
)
def test_options_and_places_come_in_any_order(words: list[str], ran: list[Config]) -> None:
    assert main(["mount", *words]) == 0
    (config,) = ran
    assert (config.repo, config.mountpoint, config.branch, config.ro) == ("/r", "/m", "b", True)


def test_repository_may_come_from_the_environment_or_a_file(
    ran: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "-f", "/m"]) == 2
    assert "CAIA_REPO_PATH" in capsys.readouterr().err
    monkeypatch.setenv("CAIA_REPO_PATH", "/srv/env.git")
    assert main(["mount", "-f", "/m"]) == 0
    file = tmp_path / "c.toml"
    file.write_text('repo = "/srv/file.git"\nmountpoint = "/mnt"\n')
    assert main(["mount", "-f", "--config", str(file)]) == 0
    assert [(each.repo, each.mountpoint) for each in ran] == [
        ("/srv/env.git", "/m"),
        ("/srv/file.git", "/mnt"),
    ]


def test_usage_errors_of_mount_exit_2(ran: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "-o", "memroy=1g", "/r", "/m"]) == 2
    assert capsys.readouterr().err == "caiafs: -o memroy: unknown option; did you mean 'memory'?\n"
    for flag in ("--branch", "--author", "--http", "--state-dir"):
        assert main(["mount", flag, "", "/r", "/m"]) == 2, "nothing is not the word None"
        assert f"-o {flag[2:].replace('-', '_')} = ''" in capsys.readouterr().err
    assert main(["mount", "/r", "/m", "/more"]) == 2
    with pytest.raises(SystemExit):
        main(["mount", "/r", "/m", "--nonsense"])
    assert ran == []


def test_failure_to_mount_exits_32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config, ready: Callable[[], None], notifier: object, watch: object) -> int:
        raise RepositoryMissing(f"no repository at {config.repo}: -o init creates one")

    monkeypatch.setattr(importlib.import_module("caiafs.mount"), "run", run, raising=False)
    monkeypatch.setattr(logs, "start", lambda *arguments, **options: lambda: None)
    assert main(["mount", "-f", "/r", "/m"]) == 32
    assert capsys.readouterr().err == "caiafs: no repository at /r: -o init creates one\n"


def background(
    tmp_path: Path, run: str, words: list[str], entry: str = "main"
) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys, time, logging
import caiafs.mount
from caiafs.errors import MountError
from caiafs.cli import main, mount_helper
from caiafs.mount import daemonize
daemonize.default_log_path = lambda mountpoint: {str(tmp_path / "log")!r}
log = logging.getLogger("caiafs")
def run(config, ready, notifier, watch):
    {run}
caiafs.mount.run = run
sys.exit({entry}(sys.argv[1:]))
"""
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )


def test_mount_returns_once_it_serves_or_says_why_not(tmp_path: Path) -> None:
    body = "log.info('early'); ready(); logging.warning('late'); time.sleep(0.2); return 0"
    done = background(tmp_path, body, ["mount", "/r", "/m"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    time.sleep(0.1)
    logged = (tmp_path / "log").read_text()
    assert "INFO caiafs: early" in logged
    assert logged.count("WARNING root: late") == 1
    done = background(tmp_path, "logging.warning('look'); ready(); return 0", ["mount", "/r", "/m"])
    assert "WARNING root: look" in done.stderr
    done = background(tmp_path, "raise MountError('not here: go there')", ["mount", "/r", "/m"])
    assert (done.returncode, done.stderr) == (32, "caiafs: not here: go there\n")


def test_helper_goes_to_the_background(tmp_path: Path) -> None:
    done = background(tmp_path, "ready(); return 0", ["/r", "/m", "-o", "rw"], "mount_helper")
    assert (done.returncode, done.stderr) == (0, "")


# -- reload ----------------------------------------------------------------------------------------


def test_reload_asks_the_mount_that_is_named_or_that_the_file_names(
    fake: FakeMount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reload", str(fake.path)]) == 0
    file = tmp_path / "c.toml"
    file.write_text(f'repo = "/r"\nmountpoint = "{fake.path}"\n')
    assert main(["reload", "--config", str(file)]) == 0
    assert fake.asked == [("reload", {}), ("reload", {})]
    assert capsys.readouterr().out == "reloaded: nothing has changed\n" * 2
    assert main(["reload"]) == 2


# -- commit, sync, status ---------------------------------------------------------------------------


def test_commit_prints_the_id(fake: FakeMount, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["commit", "-m", "One", "-m", "two.", str(fake.path / "deep" / "inside")]) == 0
    assert capsys.readouterr().out == f"{fake.commit}\n"
    assert fake.asked.pop() == ("commit", {"message": "One\n\ntwo."})
    assert main(["commit", "-m", "\n\nOne\n\n", "-m", " ", "-m", "two.", str(fake.path)]) == 0
    assert fake.asked.pop() == ("commit", {"message": "One\n\ntwo."})
    assert main(["commit", "-m", "", str(fake.path)]) == 0
    assert fake.asked == [("commit", {})]
    capsys.readouterr()
    fake.changes = 0
    assert main(["commit", str(fake.path)]) == 0
    assert capsys.readouterr() == (f"{fake.commit}\n", "caiafs: nothing new to commit\n")
    fake.commit = None  # a branch without any commit
    assert main(["commit", str(fake.path)]) == 0
    assert capsys.readouterr().out == ""


def test_sync_is_quiet(fake: FakeMount, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(fake.path)]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_the_daemon_says_is_shown_with_its_exit_code(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.problem = CaiafsError("git is locked: try again")
    assert main(["commit", str(fake.path)]) == 1
    assert capsys.readouterr().err == "caiafs: git is locked: try again\n"


def test_asking_where_no_mount_is_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("commit", "sync", "status"):
        assert main([command, str(tmp_path)]) == 1
        assert "not in a caiafs mount" in capsys.readouterr().err


def test_status_for_people_and_for_programs(fake: FakeMount, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(fake.path)]) == 0
    text = capsys.readouterr().out
    assert f"{fake.path}: branch main of /srv/r.git" in text
    for words in (
        "healthy",
        "3 changes, 12 KiB, the oldest 4.2 s old",
        "12 MiB of 256 MiB (5%)",
        "44 KiB of 4 GiB",
    ):
        assert words in text
    assert main(["status", "--json", str(fake.path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["health"] == HEALTH
    assert report["stats"] == STATS
    assert report["config"]["pid"] == os.getpid()


def test_status_without_a_place_lists_all_mounts(
    fake: FakeMount, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", "--json"]) == 0
    assert [each["mountpoint"] for each in json.loads(capsys.readouterr().out)] == [str(fake.path)]
    monkeypatch.setattr(asking, "mount_table", list)
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "no caiafs mounts\n"


def test_status_of_someone_elses_mount_comes_from_the_files(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.problem = CaiafsError("not permitted")
    fake.problem.errno = errno.EPERM
    assert main(["status", str(fake.path)]) == 0
    assert "3 changes" in capsys.readouterr().out


def test_status_of_a_mount_that_fails_or_is_dead_exits_1(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.problem = CaiafsError("deep trouble")
    assert main(["status"]) == 1
    assert "deep trouble" in capsys.readouterr().out


def test_check_hands_over_and_returns_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_check(
        repo: str, branch: str | None, state_dir: str | None, repair: bool, out: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> int:  # fmt: skip
        progress(1, 2, "reading")
        out(f"{repo} {branch} {state_dir} {repair}")
        return 1

    module = types.ModuleType("caiafs.check")
    module.run_check = run_check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "caiafs.check", module)
    assert main(["check", "--repair", "--branch", "b", "--state-dir", "/s", "/r"]) == 1
    assert capsys.readouterr().out == "/r b /s True\n"


def test_check_of_no_repository_is_a_failure_and_no_mount_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


# -- umount -----------------------------------------------------------------------------------------


def test_umount_drains_unmounts_and_waits_for_the_daemon(
    fake: FakeMount, unmounted: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = subprocess.Popen(["sleep", "0.3"])
    fake.config["pid"] = daemon.pid
    fake.write("config", fake.config)
    assert main(["umount", str(fake.path)]) == 0
    assert fake.asked == [("drain", {})]
    assert unmounted == [(str(fake.path), False)]
    assert daemon.wait() == 0
    assert capsys.readouterr() == ("", "")


def test_umount_says_when_the_daemon_outlives_the_timeout(
    fake: FakeMount, unmounted: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["umount", "--timeout", "0.2", str(fake.path)]) == 32
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_umount_keeps_the_mount_when_the_drain_fails(
    fake: FakeMount, unmounted: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.problem = CaiafsError("the disk is full")
    assert main(["umount", str(fake.path)]) == 32
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert f"{'umount' if os.geteuid() == 0 else 'fusermount3 -u'} {fake.path}`" in said
    assert unmounted == []


def test_umount_of_a_busy_mount_names_who_holds_it(
    fake: FakeMount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(mountpoint: str, *, lazy: bool = False) -> None:
        raise OSError(errno.EBUSY, "target is busy")

    monkeypatch.setattr(mounting, "unmount", refuse)
    with subprocess.Popen(["sleep", "30"], cwd=fake.path) as holder:
        assert main(["umount", str(fake.path)]) == 32
        holder.kill()
    said = capsys.readouterr().err
    assert f"process {holder.pid} (sleep): works in {fake.path}" in said
    assert "fusermount3 -uz" in said


def test_umount_clears_the_mount_of_a_dead_daemon(
    fake: FakeMount,
    unmounted: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dead(path: str, timeout: float | None = None) -> None:
        raise control.ControlError("dead", errno.ENOTCONN)

    monkeypatch.setattr(mounting, "locate", dead)
    assert main(["umount", str(fake.path)]) == 0
    assert unmounted == [(str(fake.path), True)]
    assert "replays the journal" in capsys.readouterr().err


def test_umount_of_anything_else_says_what_it_is(
    fake: FakeMount, unmounted: list[tuple[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, words in (
        (tmp_path, f"is not mounted; mounted are: {fake.path}"),
        (tmp_path / "gone", "does not exist"),
        (fake.path / "inside", f"it lies in the mount at {fake.path}"),
    ):
        assert main(["umount", str(path)]) == 32
        assert words in capsys.readouterr().err
    fake.mount = control.Mount(str(fake.path), "ext4", "/dev/sda1", "rw", "8:1")
    assert main(["umount", str(fake.path)]) == 32
    assert "a mount of ext4" in capsys.readouterr().err
    assert unmounted == []


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("os.chdir(os.path.dirname(path))", "works in"),
        ("os.open(path, os.O_RDONLY)", "open"),
        ("f = open(path); ctypes.CDLL(None).mmap(None, 1, 1, 2, f.fileno(), 0); f.close()", "mapped"),
    ],
)
def test_holders_are_seen_by_directory_open_file_and_mapping(tmp_path: Path, use: str, words: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 4096)
    code = f"import ctypes, os, time; path = {str(file)!r}; {use}; print(flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = mounting.holders(str(tmp_path))
        holder.kill()
    ((pid, _program, what),) = found
    assert pid == holder.pid
    assert words in what


# -- doctor, progress, speed ------------------------------------------------------------------------


def test_doctor_fails_only_for_what_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("git", "note", "not found", "apt-get install git")]
    )
    assert main(["doctor"]) == 0
    assert "apt-get install git" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "fuse_device_problem", lambda: "/dev/fuse does not exist: sudo modprobe fuse")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "missing  /dev/fuse" in said
    assert "→ sudo modprobe fuse" in said


def test_doctor_runs_where_libraries_are_missing(tmp_path: Path) -> None:
    for name in ("trio", "pyfuse3", "dulwich", "isal", "starlette"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    done = subprocess.run(
        [sys.executable, "-m", "caiafs", "doctor"],
        check=False,
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.count("cannot be imported: not on this machine") == 5
    assert "note     starlette" in done.stdout, "a mount without http does without it"
    assert "pip install 'pyfuse3'" in done.stdout


def test_progress_shows_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Fine(Terminal):
        encoding = "utf-8"  # type: ignore[assignment]

    said = {}
    for stream in (io.StringIO(), Terminal(), Fine()):
        now = [0.0]
        with render.ProgressLine(stream, lambda: now[0]) as progress:  # noqa: B023
            for second, done in ((0.1, 0), (2.1, 5), (2.15, 6), (6.1, 7_000), (16.0, 8_000), (22.0, 9_000)):
                now[0] = second
                progress(done, 10_000, "writing to git")
        said[type(stream)] = stream.getvalue()
    assert said[io.StringIO] == (
        "caiafs: writing to git: 7,000 of 10,000\ncaiafs: writing to git: 9,000 of 10,000\n"
    )
    drawn = said[Terminal].split("\r")
    assert drawn[1].startswith("........................   0%  writing to git: 5 of 10,000, ")
    assert drawn[2].startswith("################........  70%  writing to git: 7,000 of 10,000, 3 s left")
    assert drawn[-1] == "\x1b[K"  # wiped
    assert "6 of" not in said[Terminal]  # too soon after the one before
    assert "━━━━━━━━━━━━━━━━────────" in said[Fine]


def test_what_keeps_this_process_busy_is_watched_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(render, "FIRST_DRAWN", 0.0)
    monkeypatch.setattr(render, "DRAW_EVERY", 0.001)
    done = [0]
    with render.watched(lambda: (done[0], 10, "replaying the journal")):
        deadline = time.monotonic() + 20
        while "5 of 10" not in stream.getvalue() and time.monotonic() < deadline:
            done[0] = 5
    assert "replaying the journal: 5 of 10" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_what_is_over_at_once_shows_no_progress() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with render.ProgressLine(stream) as progress:
        progress(1, 2, "quick")
    assert stream.getvalue() == ""


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, caiafs.cli; print([m for m in ('trio', 'pyfuse3', 'dulwich') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment()
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "words", [["status", "m"], ["mount", "r.git", "/m"], ["umount", "m"], ["check", "r.git"]]
)
def test_a_current_directory_that_is_gone_is_told(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(words) == 1
    assert "the current directory is gone" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = f"{sys.executable} -m caiafs --help | head -n 1"
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, env=environment())
    assert done.stderr == ""
