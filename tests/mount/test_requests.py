"""How often the kernel has to ask: a count that tells on any machine what is fast."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, run

MANY = 50
_COUNT = re.compile(r'^caiafs_fuse_request_seconds_count\{op="(\w+)"\} (\S+)$', re.MULTILINE)


def counted(mount: Mount) -> dict[str, float]:
    text = (mount.path / ".stats" / "caiafs.prom").read_text()
    return {name: float(count) for name, count in _COUNT.findall(text)}


def asked(mount: Mount, work: Callable[[], None]) -> dict[str, int]:
    """Requests of each kind that *work* takes MANY times, in whole ones for each."""
    before = counted(mount)
    work()
    time.sleep(0.05)  # RELEASE is sent and not waited for
    after = counted(mount)
    found = {name: round((count - before.get(name, 0)) / MANY) for name, count in after.items()}
    return {name: count for name, count in found.items() if count}


def make_files(directory: Path) -> list[Path]:
    directory.mkdir()
    files = [directory / f"f{number}" for number in range(MANY)]
    for file in files:
        file.write_bytes(b"x" * 4096)
    return files


@pytest.fixture
def files(shared_mount: Mount, request: pytest.FixtureRequest) -> list[Path]:
    return make_files(shared_mount.path / request.node.name)


@pytest.mark.parametrize("spin", ["100us", "0"])
def test_a_small_write_into_an_open_file_asks_nothing(mounts: Mounts, spin: str) -> None:
    """Not even for security.capability, since the daemon takes set-id bits away itself."""
    mount = mounts(f"spin={spin}")
    with open(mount.path / "a", "wb", buffering=0) as stream:
        stream.write(b"first")

        def write() -> None:
            for number in range(MANY):
                os.pwrite(stream.fileno(), b"y" * 4096, number % 8 * 4096)

        assert asked(mount, write) == {}


def test_creating_a_file_takes_six_round_trips(shared_mount: Mount, files: list[Path]) -> None:
    """lookup and create, one question about the first write, the write; the directory's new times."""

    def create() -> None:
        for file in files:
            with open(file.with_suffix(".new"), "xb", buffering=0) as stream:
                stream.write(b"x" * 4096)

    found = asked(shared_mount, create)
    assert found.pop("setattr", 0) <= 1  # only where the clock has moved between create and write
    assert found == {"lookup": 1, "create": 1, "getxattr": 1, "write": 1, "getattr": 1, "release": 1}


def test_what_the_kernel_knows_it_does_not_ask_again(shared_mount: Mount, files: list[Path]) -> None:
    for file in files:
        file.stat()

    def look() -> None:
        for file in files:
            file.stat()
            assert not file.with_suffix(".none").exists()

    look()
    assert asked(shared_mount, look) == {}


def test_reading_again_takes_an_open_and_a_release(shared_mount: Mount, files: list[Path]) -> None:
    def read() -> None:
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            assert len(os.read(fd, 8192)) == 4096
            os.close(fd)

    read()
    assert asked(shared_mount, read) == {"open": 1, "release": 1}


def test_a_listing_brings_the_attributes(mount: Mount) -> None:
    """After a remount nothing is cached, and one request tells of dozens of entries."""
    make_files(mount.path / "d")
    mount.umount()
    mount.start()

    def look() -> None:
        with os.scandir(mount.path / "d") as listing:
            assert sum(entry.stat().st_size for entry in listing) == MANY * 4096

    assert asked(mount, look) == {}


def test_symlinks_are_read_once(shared_mount: Mount) -> None:
    for number in range(MANY):
        (shared_mount.path / f"l{number}").symlink_to("there")

    def read() -> None:
        for number in range(MANY):
            assert os.readlink(shared_mount.path / f"l{number}") == "there"

    read()
    assert asked(shared_mount, read) == {}


def test_links_of_folders_are_counted_for_who_wants_to_know(mounts: Mounts, tmp_path: Path) -> None:
    """A repository of others: listing its root reads one tree, not that of every folder in it."""
    work, mount = tmp_path / "work", mounts()
    mount.umount()
    for number in range(MANY):
        (work / f"d{number}" / "below" / "deep").mkdir(parents=True)
        (work / f"d{number}" / "below" / "deep" / "file").write_text("x")
    script = 'git init -q "$1" && cd "$1" && git add . && git commit -qm all && git push -q "$2" HEAD:main'
    run("sh", "-c", script, "sh", work, mount.repository)
    mount.start()

    def read() -> int:
        git = mount.stats("metrics.json")["metrics_summary"]["by_backend"].get("git", {})
        return int(git.get("list", {"count": 0})["count"])

    assert len(os.listdir(mount.path)) == MANY
    before = read()
    counted = asked(mount, lambda: [os.stat(mount.path / f"d{number}") for number in range(MANY)] and None)
    assert read() - before == MANY
    assert counted == {"getattr": 1}
    assert asked(mount, lambda: [os.stat(mount.path / f"d{number}") for number in range(MANY)] and None) == {}
    inner = mount.path / "d0" / "below"
    assert [os.stat(path).st_nlink for path in (inner.parent, inner, inner / "deep")] == [3, 3, 2]
    assert (inner / "deep" / "file").read_text() == "x"
    (inner / "more").mkdir()
    (mount.path / "d1").rename(mount.path / "moved")
    assert os.stat(inner).st_nlink == 4
    mount.remount()
    assert [os.stat(path).st_nlink for path in (inner.parent, inner, mount.path / "moved")] == [3, 4, 3]
