"""Completions: shells that really complete, by a terminal's keys where the shell has them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caiafs.cli import main
from caiafs.cli.completion import describe, render
from caiafs.cli.parser import SHELLS, build_parser
from caiafs.config import OPTIONS

CASES = [
    ("caiafs stat", "caiafs status"),
    ("caiafs umo", "caiafs umount"),
    ("caiafs status --js", "caiafs status --json"),
    ("caiafs mount --pri", "caiafs mount --primary"),
    ("caiafs mount --commit-i", "caiafs mount --commit-interval"),
    ("caiafs mount --primary g", "caiafs mount --primary git"),
    ("caiafs config sh", "caiafs config show"),
    ("caiafs completion f", "caiafs completion fish"),
    ("caiafs check --rep", "caiafs check --repair"),
    ("caiafs config check set", "caiafs config check settings.toml"),
    ("caiafs umount not", "caiafs umount notes/"),
]
"""What is typed before TAB, and what stands there afterwards."""
LISTS = [
    ("caiafs mount -o commit_q", "caiafs mount -o commit_quiet="),
    ("caiafs mount -o ro,branch=main,log_le", "caiafs mount -o ro,branch=main,log_level="),
    ("caiafs mount -o ro,primary=m", "caiafs mount -o ro,primary=memory"),
]
FILES = [
    ("caiafs mount -o ro,config=set", "caiafs mount -o ro,config=settings.toml"),
    ("caiafs mount -o state_dir=no", "caiafs mount -o state_dir=notes/"),
]


class Terminal:
    """A shell on a terminal of its own, typed at."""

    def __init__(self, words: list[str], folder: Path, setup: str) -> None:
        pid, self.fd = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.execvpe(
                words[0],
                words,
                {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "PS1": "> "},
            )
        self.pid = pid
        self.type(setup + "\n")
        self.type("echo rea''dy\n")
        self.read_until("ready")

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def read_until(self, end: str, timeout: float = 30) -> str:
        seen, deadline = "", time.monotonic() + timeout
        while not re.search(end, seen):
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                pytest.fail(f"{end!r} did not come:\n{seen}")
            seen += os.read(self.fd, 65536).decode(errors="replace")
        return seen

    def complete(self, typed: str) -> str:
        """What the line is after TAB."""
        # Ctrl-A and Ctrl-E: the line becomes the words of an echo, so that the shell itself says it.
        self.type(f"{typed}\t\x01echo line: \x05 :end\n")
        match = re.search(r"\nline: (.*?) +:end\r", self.read_until(r"\nline: .*:end\r"))
        assert match
        return match[1]

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shells stand: a file and a folder to complete, and the scripts."""
    folder = tmp_path_factory.mktemp("shells")
    (folder / "settings.toml").touch()
    (folder / "notes").mkdir()
    for shell in SHELLS:
        (folder / {"zsh": "_caiafs"}.get(shell, f"c.{shell}")).write_text(render(shell))
    return folder


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")


@pytest.fixture(scope="module")
def bash(folder: Path) -> Iterator[Terminal]:
    need("bash")
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"], folder, "source c.bash")
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def zsh(folder: Path) -> Iterator[Terminal]:
    need("zsh")
    setup = (
        "unsetopt zle_bracketed_paste; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u; bindkey -e"
    )
    terminal = Terminal(["zsh", "-f", "-i"], folder, setup)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("typed", "line"), CASES + LISTS + FILES)
def test_bash_completes(bash: Terminal, typed: str, line: str) -> None:
    assert bash.complete(typed) == line


@pytest.mark.parametrize(("typed", "line"), CASES + LISTS + FILES)
def test_zsh_completes(zsh: Terminal, typed: str, line: str) -> None:
    assert zsh.complete(typed) == line.rstrip("/")  # zsh takes the slash back at the next key


@pytest.mark.parametrize(("typed", "line"), CASES + LISTS)
def test_fish_completes(folder: Path, typed: str, line: str) -> None:
    need("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source c.fish; complete -C '{typed}'"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    offered = [each.partition("\t")[0] for each in done.stdout.splitlines()]
    assert line.rpartition(" ")[2] in offered, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_setting_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in describe(build_parser()).below:
        assert command.name in script
    for option in OPTIONS:
        assert option.name in script
        assert option.name.replace("_", "-") in script
