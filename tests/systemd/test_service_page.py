"""docs/service.md, followed word by word on a machine with a real systemd."""

from __future__ import annotations

import pytest
from support.console import follow
from support.machine import Machine
from support.mounts import SOURCE

PAGE = SOURCE / "docs/service.md"
SUDO = '#!/bin/sh\nexec "$@"\n'


class Shell:
    """The machine as the page's reader meets it: root's shell, in which sudo is a word without effect."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def run(self, command: str, timeout: float) -> tuple[int, list[str]]:
        done = self._machine.run("bash", "-c", f"exec 2>&1\n{command}", status=None, timeout=timeout)
        return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def machine(bare_machine: Machine) -> Machine:
    bare_machine.files["/usr/local/bin/sudo"] = SUDO
    return bare_machine.boot()


def test_page_works_word_by_word(machine: Machine) -> None:
    assert len(list(follow(PAGE, Shell(machine)))) >= 20
    assert machine.run("caiafs", "status").stdout == "no caiafs mounts\n"
