"""The Debian package: installed on a bare Debian, used by fstab, installed anew, purged without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging_support import SESSION
from support.roots import FreshMachine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

# What dpkg itself keeps of any package that came and went, and logs and caches of the system.
_NOT_OURS = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/dpkg.log", "/var/log/apt/")


def system_files(machine: FreshMachine) -> set[str]:
    return {path for path in machine.files() if not path.startswith(_NOT_OURS)}


def test_package_serves_through_fstab_and_goes_without_a_trace(machine: FreshMachine, built: Path) -> None:
    machine.install("fuse3", "libfuse3-3", "python3", "git", "mount")
    machine.add_user("ada")
    machine.put(built, "/srv/out")
    machine.run("mkdir /srv/site && rm -rf /var/log/caiafs")
    # Compiled on their first use by whoever runs them as root, with or without caiafs.
    machine.run("python3 -m compileall -q /usr/lib/python3* || true")
    before = system_files(machine)

    machine.run("dpkg -i /srv/out/caiafs_*.deb")
    assert machine.run("dpkg --verify caiafs").stdout == ""
    assert "everything required is there" in machine.run("caiafs doctor").stdout
    machine.run(SESSION)

    # mount(8) finds the helper, by fstab and by hand.
    machine.run("echo '/srv/site.git /srv/site fuse.caiafs init,branch=main,nofail,_netdev 0 0' >>/etc/fstab")
    machine.run("mount /srv/site && echo one >/srv/site/a.txt && umount /srv/site")
    assert machine.run("git -C /srv/site.git show main:a.txt").stdout == "one\n"
    machine.run("mount -t caiafs -o ro /srv/site.git /srv/site && cat /srv/site/a.txt")
    machine.run("! touch /srv/site/b.txt 2>/dev/null && umount /srv/site")

    # Ordinary users mount for themselves.
    machine.run("mkdir n && caiafs mount -o init n.git n && echo hi >n/a && caiafs umount n", user="ada")
    assert machine.run("git -C n.git show main:a", user="ada").stdout == "hi\n"

    # Installed over itself while something is mounted: the mount goes on.
    machine.run("mount /srv/site && echo two >/srv/site/a.txt")
    machine.run("dpkg -i /srv/out/caiafs_*.deb && echo three >>/srv/site/a.txt && caiafs commit /srv/site")

    # Purged while something is mounted: all of it is committed first.
    machine.run("echo four >>/srv/site/a.txt")
    machine.run("dpkg --purge caiafs")
    assert machine.run("mountpoint /srv/site", status=None).returncode != 0
    assert machine.run("git -C /srv/site.git show main:a.txt").stdout == "two\nthree\nfour\n"
    assert machine.run("command -v caiafs", status=None).returncode != 0

    machine.run("rm -rf /srv/site.git /home/ada/n /home/ada/n.git /home/ada/.local")
    assert system_files(machine) - before == set()


def test_apt_brings_what_the_package_depends_on(machine: FreshMachine, built: Path) -> None:
    machine.put(built, "/srv/out")
    machine.install("git")
    machine.run(
        "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends /srv/out/caiafs_*.deb"
    )
    machine.run(SESSION)
    for page in ("man1/caiafs.1", "man5/caiafs.toml.5", "man8/mount.caiafs.8"):
        assert ".TH" in machine.run(f"gzip -dc /usr/share/man/{page}.gz").stdout
    machine.run("bash -c 'source /usr/share/bash-completion/completions/caiafs; complete -p caiafs'")
