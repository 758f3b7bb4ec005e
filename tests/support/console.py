"""Documents that are true: every command that a page shows is run, and shows what the page says it shows.

A fenced block with the language `console` is a session: `$ ` begins a command, `> ` goes on with it, and
what follows is its output. Output is compared line by line, and loosely where it has to vary: `...` alone
stands for any number of lines, `...` in a line for any text, and a git id for any other. A command without
output after it may print what it likes, but must not fail. A line such as `[exit 32]` is the exit status of
one that fails. Blocks marked `console install` put caiafs on a machine, and run only where it is to be put.
Those marked `console user` are typed by an ordinary user, on a page that is otherwise root's.

One shell runs a whole page, so that `cd` and variables last. As root it has namespaces of its own, in which
/etc, /srv and so on are copies that vanish; `sudo` is then a word without effect.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from support.mounts import environment

TIMEOUT = 60.0
"""Seconds that one step may take; those that install something may take thirty times as long."""
_FORGET_MOUNTS = """while read -r _ place type _; do
    if [ "$type" = fuse.caiafs ]; then umount -l "$(printf '%b' "$place")" || true; fi
done </proc/self/mounts"""
_MARK = "--- that was it:"
_END = "END-OF-THE-STEP"
_ID = re.compile(r"\b[0-9a-f]{7,40}\b")


@dataclass(slots=True)
class Step:
    """One command of a page, and what it shows."""

    line: int
    command: str
    shown: list[str] = field(default_factory=list)
    status: int = 0
    install: bool = False
    user: bool = False


def steps(page: Path) -> list[Step]:
    """Every command of *page*, in order. Fails on a console block that holds none."""
    found: list[Step] = []
    inside = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = "" if inside else line.removeprefix("```").strip() or "text"
        elif inside.split(" ")[0] == "console":
            if line.startswith("$ "):
                found.append(Step(number, line[2:], install="install" in inside, user="user" in inside))
            elif line.startswith("> ") or line == ">":
                found[-1].command += "\n" + line[2:]
            elif match := re.fullmatch(r"\[exit (\d+)\]", line):
                found[-1].status = int(match[1])
            else:
                found[-1].shown.append(line)
        elif inside in ("sh", "bash", "shell"):
            pytest.fail(f"{page.name}:{number}: commands belong into a console block, where they are run")
    return found


def matches(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether *printed* is what a page shows."""
    pattern = ""
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        words = _ID.split(line.rstrip())
        loose = [re.escape(part).replace(r"\.\.\.", ".*?") for part in words]
        pattern += r"\b[0-9a-f]{7,40}\b".join(loose) + r"[ \t]*\n"
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed)) is not None


class Console:
    """A shell on a machine that looks untouched: an empty home, and only what a page puts there."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._shell = subprocess.Popen(
            [*words, "bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(env),
        )

    @classmethod
    def here(cls, base: Path) -> Console:
        """A shell on this machine, with a home below *base* and the caiafs of this tree."""
        home, tools = base / "home" / "ada", base / "bin"
        home.mkdir(parents=True)
        tools.mkdir()
        _script(tools / "caiafs", f'exec {sys.executable} -m caiafs "$@"')
        words: list[str] = []
        if os.geteuid() == 0:
            _script(tools / "sudo", 'exec "$@"')
            words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
            words += [_copies(base), "sh"]
        env = environment(HOME=str(home), LC_ALL="C.UTF-8", USER="ada", PWD=str(home))
        # A person has no settings of git but those that the page makes.
        for name in [name for name in env if name.startswith("GIT_") and name != "GIT_CONFIG_NOSYSTEM"]:
            del env[name]
        env["PATH"] = f"{tools}:{env['PATH']}"
        return cls(words, env, home)

    def run(self, command: str, timeout: float = TIMEOUT) -> tuple[int, list[str]]:
        """The exit status of *command*, and the lines that it printed."""
        assert self._shell.stdin is not None
        step = f"eval \"$(cat <<'{_END}'\n{command}\n{_END}\n)\" </dev/null; printf '\\n{_MARK} %d\\n' $?\n"
        self._shell.stdin.write(step.encode())
        self._shell.stdin.flush()
        text = self._read(command, timeout)
        output, _, status = text.rpartition(f"\n{_MARK} ")
        return int(status), output.rstrip("\n").split("\n") if output.strip("\n") else []

    def close(self) -> None:
        """End the shell, and with it, in its own namespaces, everything that it left behind."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            self._shell.wait(20)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()
        assert self._shell.stdout is not None
        self._shell.stdout.close()

    def _read(self, command: str, timeout: float) -> str:
        assert self._shell.stdout is not None
        seen, deadline = b"", time.monotonic() + timeout
        end = re.compile(rb"\n" + _MARK.encode() + rb" \d+\n\Z")
        while not end.search(seen):
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self._shell.stdout], [], [], left)[0]:
                pytest.fail(f"$ {command}\nran for more than {timeout:g} s:\n{seen.decode(errors='replace')}")
            piece = os.read(self._shell.stdout.fileno(), 65536)
            if not piece:
                pytest.fail(f"$ {command}\nended the shell:\n{seen.decode(errors='replace')}")
            seen += piece
        return seen.decode(errors="replace")


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _copies(base: Path) -> str:
    """The words that give a shell its own /etc, /srv and so on, and then run the rest."""
    # Mounts of others came along into this namespace: without them, nothing here keeps those busy.
    lines = ["set -e", _FORGET_MOUNTS]
    for place in ("/etc", "/srv", "/usr/sbin", "/var/log"):
        upper, work = (base / kind / place.strip("/").replace("/", "-") for kind in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        lines.append(f"mount -t overlay overlay -o lowerdir={place},upperdir={upper},workdir={work} {place}")
    return "\n".join([*lines, 'exec "$@"'])


class Shell(Protocol):
    """Where a page is followed."""

    def run(self, command: str, timeout: float) -> tuple[int, list[str]]:
        """The exit status of *command*, and the lines that it printed."""


def follow(page: Path, run: Shell, *, install: bool = False, user: Shell | None = None) -> Iterator[Step]:
    """Do what *page* says, step by step; fails at the first that is not as shown."""
    for step in steps(page):
        if step.install and not install:
            continue
        where = f"{page.name}:{step.line}"
        shell = user if step.user else run
        assert shell is not None, f"{where}: nobody is there to type this"
        status, printed = shell.run(step.command, TIMEOUT * (30 if step.install else 1))
        said = "\n".join(printed)
        if status != step.status:
            pytest.fail(f"{where}: $ {step.command}\nexited {status}, not {step.status}:\n{said}")
        if step.shown and not matches(step.shown, printed):
            shown = "\n".join(step.shown)
            pytest.fail(f"{where}: $ {step.command}\nthe page shows:\n{shown}\nit printed:\n{said}")
        yield step


def need_tools(page: Path) -> None:
    """Skip where a page needs root, or a program that is not here."""
    text = page.read_text()
    if "$ sudo " in text and os.geteuid() != 0:
        pytest.skip("needs root")
    for tool in ("git", "rsync", "setfattr", "unshare"):
        if f" {tool} " in text and shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
