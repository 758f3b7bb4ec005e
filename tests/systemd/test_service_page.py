"""docs/service.md, followed word by word on a machine with a real systemd."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest
from support.console import follow
from support.machine import Machine
from support.mounts import SOURCE

PAGE = SOURCE / "docs/service.md"
UID = 1500
SUDO = '#!/bin/sh\nexec "$@"\n'


class Shell:
    """The machine as the page's reader meets it: root's shell, in which sudo is a word without effect."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def run(self, command: str, timeout: float) -> tuple[int, list[str]]:
        done = self._start("bash", "-c", f"exec 2>&1\n{command}", timeout=timeout)
        return done.returncode, done.stdout.splitlines()

    def _start(self, *words: str, timeout: float) -> CompletedProcess[str]:
        return self._machine.run(*words, status=None, timeout=timeout)


class UsersShell(Shell):
    """The same, as ada has it."""

    def _start(self, *words: str, timeout: float) -> CompletedProcess[str]:
        return self._machine.run_as("ada", UID, *words, status=None, timeout=timeout)


@pytest.fixture(scope="module")
def machine(bare_machine: Machine) -> Machine:
    bare_machine.files["/usr/local/bin/sudo"] = SUDO
    machine = bare_machine.with_user("ada", UID).boot()
    machine.run("systemctl", "start", f"user@{UID}")  # as a login does
    return machine


def test_page_works_word_by_word(machine: Machine) -> None:
    done = list(follow(PAGE, Shell(machine), user=UsersShell(machine)))
    assert len(done) >= 30
    assert len([step for step in done if step.user]) >= 10
    assert machine.run("caiafs", "status").stdout == "no caiafs mounts\n"
    assert machine.run_as("ada", UID, "find", ".config", "-name", "*caiafs*").stdout == ".config/caiafs\n"
