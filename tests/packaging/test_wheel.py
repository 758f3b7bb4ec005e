"""The wheel and the sdist, on a Debian that has only what the documentation says is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packaging_support import SESSION
from support.roots import FreshMachine, copy_of_the_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

_NEEDS = ["fuse3", "libfuse3-dev", "pkg-config", "gcc", "libc6-dev", "python3-dev", "python3-venv", "git"]


def test_wheel_and_sdist_install_and_run(machine: FreshMachine, built: Path, tmp_path: Path) -> None:
    machine.install(*_NEEDS)
    machine.put(built, "/srv/out")
    before = machine.files()
    machine.run("python3 -m venv /opt/wheel && /opt/wheel/bin/pip install -q /srv/out/caiafs-*.whl")

    said = machine.run("/opt/wheel/bin/caiafs doctor").stdout
    assert "everything required is there" in said
    machine.run("PATH=/opt/wheel/bin:$PATH; " + SESSION)

    source = copy_of_the_source(tmp_path / "source") / "caiafs"
    found = [
        os.path.join(folder, name) for folder, _, names in os.walk(source, followlinks=True) for name in names
    ]
    wanted = {os.path.relpath(path, source) for path in found}
    listing = (
        "cd /opt/wheel/lib/python3.11/site-packages/caiafs && find . -type f ! -name '*.pyc' -printf '%P\\n'"
    )
    assert set(machine.run(listing).stdout.split()) == wanted, "what the code reads has to come along"

    share = machine.run("cd /opt/wheel/share && find . -type f").stdout.split()
    for wanted in (
        "./man/man1/caiafs.1",
        "./man/man5/caiafs.toml.5",
        "./man/man8/mount.caiafs.8",
        "./bash-completion/completions/caiafs",
        "./zsh/site-functions/_caiafs",
        "./fish/vendor_completions.d/caiafs.fish",
        "./doc/caiafs/examples/caiafs.toml",
        "./doc/caiafs/docs/cli.md",
    ):
        assert wanted in share
    machine.run("/opt/wheel/bin/caiafs config check /opt/wheel/share/doc/caiafs/examples/caiafs.toml")
    # Data that the code reads at run time came along, too.
    machine.run("/opt/wheel/bin/caiafs install-units --root /srv/root && test -s /srv/root/sbin/mount.caiafs")

    machine.run("python3 -m venv /opt/sdist && /opt/sdist/bin/pip install -q /srv/out/caiafs-*.tar.gz")
    listing = "find . -path '*caiafs*' -type f ! -name '*.pyc' ! -name RECORD ! -name direct_url.json | sort"
    wheel, sdist = (machine.run(f"cd /opt/{name} && {listing}").stdout for name in ("wheel", "sdist"))
    assert wheel == sdist
    assert machine.run("/opt/sdist/bin/caiafs --version").stdout.startswith("caiafs ")

    machine.run("/opt/wheel/bin/pip uninstall -q -y caiafs")
    left = machine.run("find /opt/wheel -name '*caiafs*'").stdout
    assert left == ""
    machine.run("rm -rf /opt/wheel /opt/sdist /srv/root /var/log/caiafs")
    after = {path for path in machine.files() if not path.startswith(("/root/.cache", "/var/log"))}
    assert after - before == set(), "left behind outside of the environment"
