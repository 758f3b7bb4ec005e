"""Tiers that fail under a real mount: a journal's disk that is full, and a repository that takes nothing.

What every call does when a tier fails is tests/unit/test_failover_matrix.py; here is the kernel's share, the
worker process, and real disks. `make failover` runs all of it, the slow ones too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, run, wait_until
from support.processes import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount small filesystems")

QUICK = ("retry_ceiling=300ms", "retry_pause=50ms", "commit_quiet=100ms", "operation_timeout=20s")


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    made = Small(tmp_path_factory)
    yield made
    made.clear()


class Small:
    """Small filesystems, mounted where the test wants them."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._mounted: list[Path] = []

    def __call__(self, place: Path, size: str) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "small", place)
        self._mounted.append(place)
        return place

    def clear(self) -> None:
        for place in reversed(self._mounted):
            subprocess.run(["umount", "-l", os.fspath(place)], check=False)


def fill(place: Path) -> Path:
    """Take all the room there is; unlink the file to give it back."""
    path = place / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return path


def use_up(mount: Mount) -> None:
    """What the journal's last page has room for, too: a change is refused now."""
    for number in range(1000):
        try:
            (mount.path / f"{number:0200}").touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return
    pytest.fail("the disk is not full")


def state(mount: Mount) -> str:
    found: str = mount.stats("health.json")["state"]
    return found


def fallbacks(mount: Mount, origin: str, to: str) -> float:
    beginning = f'caiafs_fallbacks_total{{from="{origin}",to="{to}"}} '
    lines = (mount.path / ".stats/caiafs.prom").read_text().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(beginning))


def healthy(mount: Mount, timeout: float = 20) -> None:
    wait_until(lambda: state(mount) == "healthy", timeout, f"healthy, and not {mount.stats('health.json')}")


def committed(mount: Mount, name: str) -> bytes:
    return subprocess.run(
        ["git", "-C", os.fspath(mount.repository), "cat-file", "blob", f"main:{name}"],
        check=True, capture_output=True, env=mount.env,
    ).stdout  # fmt: skip


def quiet(mount: Mount) -> None:
    """The log will tell of the trouble that the test makes."""
    mount.expect_log("commit failed, will be tried again|the journal takes nothing|could not be released")
    mount.expect_log("could not be synced|kernel could not hand over|nothing keeps the change|worker")


def test_a_full_journal_disk_falls_back_to_git_and_returns(small: Small, mounts: Mounts) -> None:
    """Every call is in git when it returns; then the journal is in front again, with no one's help."""
    place = small(mounts.base / "state", "1m")
    mount = mounts(f"state_dir={place}/s", *QUICK)
    quiet(mount)
    (mount.path / "before").write_bytes(b"in the journal")
    mount.commit()
    filler = fill(place)
    data = os.urandom(300_000)
    with (mount.path / "file").open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        assert committed(mount, "file") == data, "fsync says that git has it"
    health = mount.stats("health.json")
    assert (health["state"], health["healthy"]) == ("degraded", False)
    assert health["backends"]["journal"]["state"] == "failed"
    assert any("No space left on device" in reason for reason in health["reasons"])
    assert "No space left" in mount.caiafs("status", mount.path, status=None).stdout
    # A commit let go of a little room, so that small changes may be the journal's again.
    os.rename(mount.path / "file", mount.path / "renamed")
    (mount.path / "renamed").chmod(0o600)
    assert os.getxattr(mount.path / "renamed", "user.caiafs.state") in (b"committed", b"journal")
    assert (mount.path / "before").read_bytes() == b"in the journal"
    filler.unlink()
    healthy(mount)
    mount.commit()
    before = fallbacks(mount, "memory", "git")
    assert before > 0
    (mount.path / "after").write_bytes(b"x")
    assert fallbacks(mount, "memory", "git") == before
    mount.kill()
    mount.start()
    assert (mount.path / "after").read_bytes() == b"x"
    assert (mount.path / "renamed").read_bytes() == data


def test_with_both_disks_full_calls_fail_and_nothing_is_half_done(small: Small, mounts: Mounts) -> None:
    place = small(mounts.base / "both", "4m")
    mount = mounts(f"state_dir={place}/s", *QUICK, repository=place / "r.git")
    quiet(mount)
    mount.expect_log("ENOSPC|No space left")
    (mount.path / "kept").write_bytes(b"kept" * 1000)
    (mount.path / "folder").mkdir()
    mount.commit()
    filler = fill(place)
    use_up(mount)
    before = snapshot(mount)
    for call in (
        lambda: (mount.path / "new").touch(),
        lambda: (mount.path / "kept").unlink(),
        lambda: (mount.path / "folder").rmdir(),
        lambda: os.rename(mount.path / "kept", mount.path / "folder" / "kept"),
        lambda: (mount.path / "kept").chmod(0o600),
        lambda: os.truncate(mount.path / "kept", 7),
        lambda: os.setxattr(mount.path / "kept", "user.x", b"y"),
        lambda: os.symlink("goal", mount.path / "link"),
        lambda: os.link(mount.path / "kept", mount.path / "hard"),
    ):
        with pytest.raises(OSError, match="No space left on device") as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
        assert snapshot(mount) == before
    assert state(mount) == "failed"
    filler.unlink()
    (mount.path / "new").write_bytes(b"works again, at once")
    healthy(mount)
    mount.commit()
    assert committed(mount, "new") == b"works again, at once"
    mount.remount()
    assert snapshot(mount).keys() == before.keys() | {"new"}


def test_a_write_that_nothing_keeps_is_told_to_the_program(small: Small, mounts: Mounts) -> None:
    """fsync and close give the error of the write-back; the file is what it was."""
    place = small(mounts.base / "both", "4m")
    mount = mounts(f"state_dir={place}/s", *QUICK, repository=place / "r.git")
    quiet(mount)
    mount.expect_log("ENOSPC|No space left")
    (mount.path / "kept").write_bytes(b"kept")
    mount.commit()
    fd = os.open(mount.path / "kept", os.O_RDWR)
    filler = fill(place)
    os.write(fd, b"lost" * 300_000)
    with pytest.raises(OSError, match="No space left"):
        os.fsync(fd)
    with contextlib.suppress(OSError):  # the kernel may tell it once more
        os.close(fd)
    wait_until(lambda: (mount.path / "kept").read_bytes() == b"kept", what="the kernel asking again")
    filler.unlink()
    (mount.path / "kept").write_bytes(b"kept again")
    healthy(mount)
    mount.remount()
    assert (mount.path / "kept").read_bytes() == b"kept again"


def snapshot(mount: Mount) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for root, folders, files in os.walk(mount.path):
        for name in [*folders, *files]:
            path = Path(root, name)
            info = path.lstat()
            content = path.read_bytes() if name in files else b""
            about = (info.st_mode, info.st_nlink, info.st_size, content, tuple(os.listxattr(path)))
            found[os.fspath(path.relative_to(mount.path))] = about
    return found


# ---- the repository


def moved_away(mount: Mount, place: Path) -> None:
    os.rename(mount.repository, mount.repository.with_name("elsewhere"))


def moved_back(mount: Mount, place: Path) -> None:
    os.rename(mount.repository.with_name("elsewhere"), mount.repository)


def read_only(mount: Mount, place: Path) -> None:
    """Its objects, by a mount of their own: a whole filesystem that is written to cannot become read-only."""
    objects = mount.repository / "objects"
    run("mount", "--bind", objects, objects)
    run("mount", "-o", "remount,bind,ro", objects)


def writable(mount: Mount, place: Path) -> None:
    run("umount", "-l", mount.repository / "objects")


def full(mount: Mount, place: Path) -> None:
    fill(place)


def emptied(mount: Mount, place: Path) -> None:
    (place / "filler").unlink()


def locked(mount: Mount, place: Path) -> None:
    (mount.repository / "refs/heads/main.lock").touch()


def unlocked(mount: Mount, place: Path) -> None:
    (mount.repository / "refs/heads/main.lock").unlink()


def stopped(mount: Mount, place: Path) -> None:
    (worker,) = [child for child in Process.of(mount.pid).children() if "committer" in child.describe()]  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGSTOP)


def left(mount: Mount, place: Path) -> None:
    """Nobody wakes the worker: it is replaced."""


FAULTS = {
    "moved away": (moved_away, moved_back, "moved away"),
    "read-only": (read_only, writable, "Read-only file system"),
    "full": (full, emptied, "No space left"),
    "locked by another": (locked, unlocked, "main.lock"),
    "a worker that hangs": (stopped, left, "silent|sign of life"),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name == "read-only" else pytest.mark.slow) for name in FAULTS]
)
def test_a_repository_that_fails_stops_nobody_and_gets_everything_later(
    small: Small, mounts: Mounts, fault: str
) -> None:
    """Readers and writers go on; health says why; when it ends, all is committed with no one's help."""
    begin, end, reason = FAULTS[fault]
    place = small(mounts.base / "repository", "6m")
    options = [*QUICK, "worker_timeout=8s", "operation_timeout=1s"] if begin is stopped else QUICK
    mount = mounts(f"state_dir={mounts.base}/s", *options, repository=place / "r.git")
    quiet(mount)
    mount.expect_log("exists: another git process|No space left|Read-only|cannot|No such file")
    (mount.path / "early").write_bytes(b"early")
    mount.commit()
    begin(mount, place)
    try:
        for number in range(20):
            (mount.path / f"file {number}").write_bytes(b"%d" % number * 1000)
        wait_until(lambda: state(mount) == "degraded", 20, "degraded")
        told = mount.stats("health.json")
        assert any(reason_part in " ".join(told["reasons"]) for reason_part in reason.split("|")), told
        for number in range(20):
            assert (mount.path / f"file {number}").read_bytes() == b"%d" % number * 1000
        (mount.path / "file 0").unlink()
        (mount.path / "late").write_bytes(b"late")
        assert (mount.path / "early").read_bytes() == b"early"
    finally:
        end(mount, place)
    healthy(mount)
    wait_until(
        lambda: mount.stats()["storage_stats"]["commits"]["uncommitted_changes"] == 0, 20, "all in git"
    )
    assert committed(mount, "late") == b"late"
    assert committed(mount, "file 19") == b"19" * 1000


def test_a_daemon_whose_repository_was_moved_with_its_state_is_asked_there(mount: Mount) -> None:
    quiet(mount)
    mount.expect_log("repository is gone|moved away|No such file|cannot")
    (mount.path / "file").write_bytes(b"data")
    moved_away(mount, mount.path)
    try:
        refused = mount.caiafs("commit", mount.path, status=1)
        assert "repository is gone" in refused.stderr
        wait_until(lambda: "degraded" in mount.caiafs("status", mount.path).stdout, 20, "degraded")
        told = json.loads((mount.path / ".stats/config.json").read_text())["state_dir"]
        assert (Path(told) / "lock").exists()
    finally:
        moved_back(mount, mount.path)
    healthy(mount)
    mount.commit()
    assert committed(mount, "file") == b"data"


def test_large_files_are_read_while_the_state_directory_is_full(small: Small, mounts: Mounts) -> None:
    place = small(mounts.base / "state", "3m")
    mount = mounts(f"state_dir={place}/s", *QUICK)
    quiet(mount)
    data = os.urandom(4 << 20)
    (mount.path / "large").write_bytes(data)
    mount.umount()
    mount.start()
    fill(place)
    assert (mount.path / "large").read_bytes() == data
    with (mount.path / "large").open("rb") as file:
        file.seek(2 << 20)
        assert file.read(100) == data[2 << 20 :][:100]
    (place / "filler").unlink()


def test_a_damaged_object_costs_its_file_and_is_named(mounts: Mounts) -> None:
    mount = mounts(*QUICK)
    quiet(mount)
    mount.expect_log(r"read: |damaged|corrupt|readable again")
    (mount.path / "good").write_bytes(b"good")
    (mount.path / "bad").write_bytes(os.urandom(5000))
    mount.commit()
    mount.umount()
    path, whole = damage(mount, "bad")
    oid = path.parent.name + path.name
    mount.start()
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "bad").read_bytes()
    assert (mount.path / "good").read_bytes() == b"good"
    health = mount.stats("health.json")
    assert health["state"] == "degraded"
    assert any(oid in reason for reason in health["reasons"]), health
    (mount.path / "other").write_bytes(b"goes on")
    mount.commit()
    checked = mount.caiafs("check", mount.repository, status=None)
    assert checked.returncode != 0
    assert oid in checked.stdout + checked.stderr
    path.write_bytes(whole)
    healthy(mount)
    assert len((mount.path / "bad").read_bytes()) == 5000


def test_a_change_of_a_damaged_file_is_held_back_alone(mounts: Mounts) -> None:
    """Everything else reaches git; the change outlives kill -9, and gets there when the object is mended."""
    mount = mounts(*QUICK)
    quiet(mount)
    mount.expect_log(r"damaged|readable again|are not in git|are only safe in the journal")
    data = os.urandom(5 * 4096)
    (mount.path / "bad").write_bytes(data)
    mount.commit()
    mount.umount()
    path, whole = damage(mount, "bad")
    mount.start()
    patch = os.open(mount.path / "bad", os.O_RDWR | os.O_DIRECT)
    os.pwrite(patch, b"x" * 4096, 8192)
    os.close(patch)
    (mount.path / "other").write_bytes(b"goes on")
    wait_until(lambda: in_git(mount, "other"), 20, "the other file in git")
    health = mount.stats("health.json")
    assert any("changes of bad are not in git" in reason for reason in health["reasons"]), health
    assert os.getxattr(mount.path / "bad", "user.caiafs.state") in (b"journal", b"durable")
    refused = mount.caiafs("commit", mount.path, status=1)
    assert "changes of bad are only safe in the journal" in refused.stderr
    mount.kill()
    checked = mount.caiafs("check", mount.repository, status=None)
    assert checked.returncode != 0
    assert "bad" in checked.stdout + checked.stderr
    mount.caiafs("check", "--repair", mount.repository, status=None)
    mount.start()
    (mount.path / "more").write_bytes(b"goes on")
    wait_until(lambda: in_git(mount, "more"), 20, "more in git")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole)
    wait_until(lambda: committed(mount, "bad")[8192:12288] == b"x" * 4096, 40, "the change in git")
    assert committed(mount, "bad") == data[:8192] + b"x" * 4096 + data[12288:]
    healthy(mount)


def in_git(mount: Mount, name: str) -> bool:
    return name in mount.git("ls-tree", "-r", "--name-only", "main").split()


def damage(mount: Mount, name: str) -> tuple[Path, bytes]:
    """Make every object a file, so that the one of *name* can be damaged alone; its path, and what it was."""
    oid = mount.git("rev-parse", f"main:{name}").strip()
    for pack in list((mount.repository / "objects/pack").glob("*.pack")):
        data = pack.read_bytes()
        pack.unlink()
        pack.with_suffix(".idx").unlink()
        run_bytes("git", "-C", os.fspath(mount.repository), "unpack-objects", "-q", stdin=data)
    path = mount.repository / "objects" / oid[:2] / oid[2:]
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:100] + bytes(20) + whole[120:])
    return path, whole


def run_bytes(*words: str, stdin: bytes) -> None:
    subprocess.run(words, input=stdin, check=True, capture_output=True)


def test_git_in_front_and_no_fallback_undoes_what_git_refuses(small: Small, mounts: Mounts) -> None:
    """Also in the journal, also after a remount."""
    place = small(mounts.base / "repository", "6m")
    mount = mounts(
        "primary=git", "enable_fallback=false", f"state_dir={mounts.base}/s", *QUICK,
        repository=place / "r.git",
    )  # fmt: skip
    quiet(mount)
    mount.expect_log("No space left|Read-only|cannot")
    (mount.path / "kept").write_bytes(b"kept")
    assert committed(mount, "kept") == b"kept"
    before = snapshot(mount)
    read_only(mount, place)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (mount.path / "new").write_bytes(b"x")
        with pytest.raises(OSError, match="Read-only"):
            (mount.path / "kept").unlink()
        assert snapshot(mount) == before
        assert state(mount) == "failed"
        mount.kill()
    finally:
        writable(mount, place)
    mount.start()
    assert snapshot(mount) == before
    (mount.path / "new").write_bytes(b"y")
    assert committed(mount, "new") == b"y"
    healthy(mount)


@pytest.mark.slow
def test_git_in_front_falls_back_to_the_journal(small: Small, mounts: Mounts) -> None:
    place = small(mounts.base / "repository", "6m")
    mount = mounts("primary=git", f"state_dir={mounts.base}/s", *QUICK, repository=place / "r.git")
    quiet(mount)
    mount.expect_log("No space left|Read-only|cannot")
    (mount.path / "kept").write_bytes(b"kept")
    assert committed(mount, "kept") == b"kept"
    read_only(mount, place)
    try:
        (mount.path / "new").write_bytes(b"x")
        assert state(mount) == "degraded"
        assert os.getxattr(mount.path / "new", "user.caiafs.state") in (b"journal", b"durable")
        assert fallbacks(mount, "git", "memory") > 0
    finally:
        writable(mount, place)
    healthy(mount)
    wait_until(
        lambda: mount.stats()["storage_stats"]["commits"]["uncommitted_changes"] == 0, 20, "all in git"
    )
    assert committed(mount, "new") == b"x"
    (mount.path / "last").write_bytes(b"z")
    assert committed(mount, "last") == b"z"
