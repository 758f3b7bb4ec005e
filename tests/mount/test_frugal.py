"""What a mount may use of the machine, counted: wakeups, bytes, descriptors, flushes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

from support.mounts import Mount, Mounts, wait_until

from caiafs.control import client


def figure(path: str, name: str) -> int:
    (value,) = re.findall(rf"^{name}:\s+(\d+)", Path(path).read_text(), re.MULTILINE)
    return int(value)


def wakeups(pid: int) -> int:
    return sum(
        figure(f"/proc/{pid}/task/{task}/status", "voluntary_ctxt_switches")
        for task in os.listdir(f"/proc/{pid}/task")
    )


def test_an_idle_mount_sleeps(mount: Mount) -> None:
    """Nobody looks at anything, and nothing is written. off: a worker that looks twice a second."""
    for number in range(20):
        (mount.path / f"f{number}").write_bytes(b"x" * 4096)
    mount.commit()
    family = [process.pid for process in mount.family()]

    def seen() -> list[tuple[int, int]]:
        return [(wakeups(pid), figure(f"/proc/{pid}/io", "write_bytes")) for pid in family]

    def quiet() -> bool:
        before = seen()
        time.sleep(0.5)
        return [now[1] for now in seen()] == [then[1] for then in before]

    wait_until(quiet, 20, "a quiet half second")
    before = seen()
    begun = time.monotonic()
    time.sleep(2)
    after = seen()
    spent = time.monotonic() - begun
    woken = sum(now[0] - then[0] for now, then in zip(after, before, strict=True))
    assert [now[1] for now in after] == [then[1] for then in before], "an idle mount wrote"
    assert woken / spent < 1.5, f"{woken} wakeups in {spent:.1f} s"


def test_descriptors_do_not_grow_with_commits(mounts: Mounts) -> None:
    """Each commit is a pack, each pack a file that is open while it is read from: not for ever."""
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    counts = []
    for number in range(30):
        (mount.path / f"f{number}").write_bytes(b"%d" % number * 1000)
        client.call(str(mount.path), "commit", timeout=60)
        counts.append(max(len(os.listdir(f"/proc/{process.pid}/fd")) for process in mount.family()))
    mount.umount()
    mount.start()
    for number in range(30):
        assert (mount.path / f"f{number}").read_bytes() == b"%d" % number * 1000
    after = max(len(os.listdir(f"/proc/{process.pid}/fd")) for process in mount.family())
    assert max(counts) - counts[0] < 30, counts
    assert after - counts[0] < 60


def test_a_large_tree_that_was_walked_is_let_go_of(mounts: Mounts) -> None:
    """The kernel would keep all of it. Who has a file open, or works in a folder, notices nothing."""
    mount = mounts("memory=2MiB")
    for folder in range(40):
        (mount.path / f"d{folder}").mkdir()
        for number in range(50):
            (mount.path / f"d{folder}" / f"f{number}").write_bytes(b"%d" % number)
    mount.umount()
    mount.start()
    words = ["sh", "-c", "read x; pwd -P; cat f7"]
    with (
        subprocess.Popen(
            words, cwd=mount.path / "d0", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as inside,
        open(mount.path / "d0" / "f3", "rb") as opened,
    ):
        for _ in range(2):
            for folder in range(40):
                with os.scandir(mount.path / f"d{folder}") as listing:
                    assert sum(entry.stat().st_size for entry in listing) == 90
        wait_until(lambda: inodes(mount) < 1600, 20, "a smaller tree in memory")
        assert opened.read() == b"3"
        assert (mount.path / "d0" / "f3").read_bytes() == b"3"
        said, _ = inside.communicate("go\n")
    assert said.splitlines() == [str(mount.path / "d0"), "7"]


def inodes(mount: Mount) -> int:
    list(os.scandir(mount.path / "d39"))
    return int(mount.stats()["storage_stats"]["memory"]["inode_bytes"]) // 700


def test_writers_that_sync_share_flushes(mount: Mount) -> None:
    """Each of eight writers syncs twenty files: fewer flushes than files, each of which was durable."""
    writers = 8
    before = syncs(mount)
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for count in range(20):
                with open(mount.path / f"w{number}-{count}", "xb", buffering=0) as stream:
                    stream.write(b"x" * 4096)
                    os.fsync(stream.fileno())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    made = syncs(mount) - before
    assert 0 < made < writers * 20, made


def syncs(mount: Mount) -> int:
    summary = mount.stats("metrics.json")["metrics_summary"]["by_backend"]
    return int(summary.get("journal", {}).get("sync", {}).get("count", 0))
