"""Real source trees, unpacked with tar into a mount and beside it on disk: nothing tells them apart.

The sdists come from the package registry once and stay in the user's cache (CAIAFS_TEST_CACHE, or
caiafs-tests in $XDG_CACHE_HOME).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, need_fuse, run

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

# Fixed versions, so that every run sees the same trees. The first holds more than 4,000 files beside 2,700 of
# translations, which are left out.
SDISTS = ("Django==5.1.4", "requests==2.32.3", "setuptools==75.6.0")


def cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CAIAFS_TEST_CACHE") or base / "caiafs-tests")


def sdist(requirement: str) -> Path:
    """The archive, downloaded unless it is in the cache; skips where that fails."""
    place = cache() / requirement.replace("==", "-")
    if not list(place.glob("*.tar.gz")):
        place.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        words += ["--disable-pip-version-check", "-d", os.fspath(place), requirement]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
        if not list(place.glob("*.tar.gz")):
            pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    return next(place.glob("*.tar.gz"))


@dataclass
class Trees:
    mount: Mount
    disk: Path
    files: int

    @property
    def inside(self) -> Path:
        return self.mount.path / "trees"


@pytest.fixture(scope="module")
def trees(scratch: Path) -> Iterator[Trees]:
    """The archives unpacked by tar on both sides."""
    need_fuse()
    archives = [sdist(requirement) for requirement in SDISTS]
    base = scratch / "trees"
    mounts = Mounts(base)
    base.mkdir()
    disk = base / "disk"
    disk.mkdir()
    mount = mounts()
    unpacked = Trees(mount, disk, 0)
    unpacked.inside.mkdir()
    for archive in archives:
        for place in (disk, unpacked.inside):
            run("tar", "-C", place, "--exclude=locale", "-xpzf", archive)
        with tarfile.open(archive) as tar:
            unpacked.files += sum(member.isfile() and "/locale/" not in member.name for member in tar)
    os.utime(unpacked.inside, ns=(1, 1))
    os.utime(disk, ns=(1, 1))
    yield unpacked
    mounts.finish()
    shutil.rmtree(base, ignore_errors=True)


PRINTED = r"%P\t%y\t%m\t%U\t%G\t%n\t%l\t%s\t%T@\n"


def listing(place: Path) -> list[str]:
    """Modes, owners, links, targets, times; sizes but for directories, whose size is the filesystem's own."""
    lines = run("find", place, "-printf", PRINTED).stdout.splitlines()
    fields = [line.split("\t") for line in lines]
    return sorted("\t".join(each[:7] + (each[8:] if each[1] == "d" else each[7:])) for each in fields)


def compare(trees: Trees) -> None:
    run("diff", "-r", "--no-dereference", trees.disk, trees.inside)
    ours, theirs = listing(trees.inside), listing(trees.disk)
    if links_of_directories(trees.disk) != links_of_directories(trees.inside):
        ours, theirs = ([line for line in lines if "\td\t" not in line] for lines in (ours, theirs))
    assert ours == theirs


def links_of_directories(place: Path) -> int:
    return place.stat().st_nlink


def test_trees_are_real(trees: Trees) -> None:
    assert trees.files >= 4000


def test_live(trees: Trees) -> None:
    compare(trees)


def test_clone(trees: Trees, disk: Path) -> None:
    commit = trees.mount.commit()
    run("git", "clone", "-q", trees.mount.repository, disk / "clone")
    assert run("git", "-C", disk / "clone", "rev-parse", "HEAD").stdout.strip() == commit
    empty = [path for path in trees.disk.rglob("*") if path.is_dir() and not any(path.iterdir())]
    done = run("diff", "-r", "--no-dereference", trees.disk, disk / "clone" / "trees", status=None)
    only = [
        line
        for line in done.stdout.splitlines()
        if not any(f"{path.parent}: {path.name}" in line for path in empty)
    ]
    assert not only, only[:10]
    run("git", "-C", disk / "clone", "fsck", "--strict")
    shutil.rmtree(disk / "clone")


def test_history_reads_well(trees: Trees) -> None:
    text = trees.mount.git("log", "--stat", "--format=%s%n%n%b")
    assert "setup.py" in text
    assert all(len(line) <= 72 for line in trees.mount.git("log", "--format=%s").splitlines())


def test_after_a_remount(trees: Trees) -> None:
    words = ("find", trees.mount.path, "-printf", PRINTED.replace(r"%s", r"%s\t%i\t%C@"))
    before = sorted(run(*words).stdout.splitlines())
    trees.mount.remount()
    assert sorted(run(*words).stdout.splitlines()) == before
    compare(trees)


def test_after_kill_9(trees: Trees) -> None:
    inside = trees.inside
    top = next(path for path in inside.iterdir() if path.name.lower().startswith("django"))
    for tree in (top, next(path for path in trees.disk.iterdir() if path.name == top.name)):
        run(
            "sh",
            "-ec",
            'cd "$1"; rm -r tests/a*; mv docs dox; sed -i s/django/DJANGO/ setup.cfg pyproject.toml || true',
            "sh",
            tree,
        )
    trees.mount.kill()
    trees.mount.start()
    run("diff", "-r", "--no-dereference", trees.disk, trees.inside)
