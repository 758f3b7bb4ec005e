"""The tutorial from its first line, installation and all, as a newcomer on a new machine follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.console import follow
from support.roots import SOURCE, FreshMachine, copy_of_the_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


def test_tutorial_works_from_installation_to_the_end(machine: FreshMachine, tmp_path: Path) -> None:
    machine.install("git", "sudo")
    machine.add_user("ada", sudo=True)
    machine.put(copy_of_the_source(tmp_path / "source"), "/home/ada/caiafs")
    machine.run("chown -R ada:ada /home/ada/caiafs")
    console = machine.console("ada")
    try:
        steps = list(follow(SOURCE / "docs/tutorial.md", console, install=True))
    finally:
        console.close()
    assert any(step.install for step in steps)
