"""What the daemon costs: processor time at rest, memory under load, descriptors."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

from support.mounts import Mount, Mounts

MIB = 1 << 20


def test_idles_without_using_the_processor(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=0.1s", "commit_interval=0.5s")
    for number in range(20):
        (mount.path / f"f{number}").write_text("x" * 1000)
    mount.commit()
    time.sleep(1)
    family = mount.family()
    ticks = [process.cpu_ticks() for process in family]
    time.sleep(4)
    used = sum(process.cpu_ticks() for process in family) - sum(ticks)
    share = used / os.sysconf("SC_CLK_TCK") / 4
    assert share <= 0.015, f"{share:.1%} of a processor at rest"


def blocks(size: int, seed: int) -> list[bytes]:
    """*size* bytes that do not compress, made cheaply, in MiB steps."""
    dice = random.Random(seed)
    parts = [dice.randbytes(MIB) for _ in range(4)]
    return [
        parts[number % 4][number % MIB :] + parts[number % 4][: number % MIB] for number in range(size // MIB)
    ]


def test_file_larger_than_the_memory_budget(mounts: Mounts) -> None:
    """128 MiB through a budget of 32 MiB: written, read back, committed, read again; memory stays bounded."""
    mount = mounts("memory=32MiB", "commit_quiet=1h", "commit_interval=1h")
    family = mount.family()
    written, again = hashlib.sha1(), hashlib.sha1()
    with (mount.path / "large").open("wb") as file:
        for block in blocks(128 * MIB, 1):
            file.write(block)
            written.update(block)
    assert mount.status()["stats"]["storage_stats"]["commits"]["uncommitted_changes"] > 0
    drop_pages(mount.path / "large")
    assert digest(mount.path / "large") == written.hexdigest()
    with (mount.path / "large").open("r+b") as file:
        file.seek(100 * MIB + 5)
        file.write(b"in the middle")
    family = list({*family, *mount.family()})
    mount.commit()
    family = list({*family, *mount.family()})
    peaks = {process.describe(): process.peak_memory() / MIB for process in family if process.alive()}
    mount.remount()
    for number, block in enumerate(blocks(128 * MIB, 1)):
        if number == 100:
            block = block[:5] + b"in the middle" + block[18:]
        again.update(block)
    assert digest(mount.path / "large") == again.hexdigest()
    peaks |= {process.describe(): process.peak_memory() / MIB for process in mount.family()}
    assert max(peaks.values()) < 32 + 120, peaks


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def drop_pages(path: Path) -> None:
    """The kernel forgets the file's pages, so that a read asks the daemon."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_many_files_within_the_memory_budget(mounts: Mounts) -> None:
    mount = mounts("memory=16MiB", "commit_quiet=1h", "commit_interval=1h")
    dice = random.Random(5)
    sums = {}
    for number in range(400):
        data = dice.randbytes(256 * 1024)
        (mount.path / f"f{number}").write_bytes(data)
        sums[f"f{number}"] = hashlib.sha1(data).hexdigest()
    for name, wanted in sums.items():
        drop_pages(mount.path / name)
        assert digest(mount.path / name) == wanted
    peaks = {process.describe(): process.peak_memory() / MIB for process in mount.family()}
    assert max(peaks.values()) < 16 + 120, peaks


def test_open_files_cost_no_descriptors_in_the_daemon(mount: Mount) -> None:
    """A process may be limited to 20,000 descriptors; a thousand open files need none of them."""
    before = len(os.listdir(f"/proc/{mount.pid}/fd"))
    fds = [os.open(mount.path / f"f{number}", os.O_CREAT | os.O_RDWR) for number in range(500)]
    for number, fd in enumerate(fds):
        os.write(fd, b"%d" % number)
    during = len(os.listdir(f"/proc/{mount.pid}/fd"))
    for number, fd in enumerate(fds):
        assert os.pread(fd, 10, 0) == b"%d" % number
        os.close(fd)
    assert during - before < 50


def test_memory_is_given_back_when_inodes_are_forgotten(mount: Mount) -> None:
    """Creating and removing many files leaves nothing behind in the daemon."""
    folder = mount.path / "churn"
    folder.mkdir()

    def churn() -> None:
        for number in range(1000):
            (folder / f"f{number}").write_bytes(b"x" * 2000)
        for number in range(1000):
            (folder / f"f{number}").unlink()

    churn()
    mount.commit()
    first = resident(mount.pid)
    for _ in range(3):
        churn()
    mount.commit()
    assert resident(mount.pid) - first < 14 * MIB


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
