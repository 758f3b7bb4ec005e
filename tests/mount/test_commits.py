"""The history behind a mount: what is committed, when, under which name, and what comes in from outside."""

from __future__ import annotations

import mmap
import os
import re
import time
from pathlib import Path

import pytest
from support.mounts import Mount, Mounts, run, wait_until
from support.users import in_child

from caiafs.control import call, client


def count(mount: Mount) -> int:
    return int(mount.git("rev-list", "--count", f"refs/heads/{mount.branch}"))


def subject(mount: Mount) -> str:
    return mount.git("log", "-1", "--format=%s", mount.branch).strip()


def test_first_commit_creates_the_branch(mount: Mount) -> None:
    assert mount.git("for-each-ref", "refs/heads") == ""
    (mount.path / "a.txt").write_text("hello\n")
    commit = mount.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert mount.tip() == commit
    assert mount.git("show", f"{commit}:a.txt") == "hello\n"
    assert count(mount) == 1


def test_commit_says_what_changed(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h", "commit_interval=1h")  # or a slow test would find its changes committed
    (mount.path / "a.txt").write_text("one\n")
    mount.commit()
    assert subject(mount) == "Add a.txt"
    (mount.path / "a.txt").write_text("two\n")
    mount.commit()
    assert subject(mount) == "Update a.txt"
    os.rename(mount.path / "a.txt", mount.path / "b.txt")
    mount.commit()
    assert "b.txt" in subject(mount)
    (mount.path / "b.txt").unlink()
    (mount.path / "docs").mkdir()
    for number in range(12):
        (mount.path / "docs" / f"{number}.md").write_text(f"{number}\n")
    mount.commit("-m", "By hand")
    assert subject(mount) == "By hand"
    for number in range(12):
        (mount.path / "docs" / f"{number}.md").write_text("changed\n")
    mount.commit()
    assert "docs/" in subject(mount)
    assert "12" in subject(mount)
    assert "docs/3.md" in mount.git("log", "-1", "--format=%b")


def test_commit_without_changes_makes_none(mount: Mount) -> None:
    (mount.path / "a").write_text("one\n")
    first = mount.commit()
    assert mount.commit() == first
    assert mount.tip() == first


def test_editor_save_is_one_change(mount: Mount) -> None:
    (mount.path / "text").write_text("one\n")
    mount.commit()
    (mount.path / ".text.swp").write_text("two\n")
    os.rename(mount.path / ".text.swp", mount.path / "text")
    mount.commit()
    assert subject(mount) == "Update text"
    assert mount.git("diff", "--name-status", "HEAD~1", "HEAD").split() == ["M", "text"]


def test_commit_comes_by_itself_after_a_quiet_moment(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=0.3s")
    (mount.path / "a").write_text("one\n")
    wait_until(lambda: mount.git("for-each-ref", "refs/heads"), 10, "a commit")
    assert mount.git("show", "main:a") == "one\n"


def test_commit_comes_at_the_latest_after_the_interval(mounts: Mounts) -> None:
    """A writer that never rests does not put it off for ever."""
    mount = mounts("commit_quiet=5s", "commit_interval=1s")
    deadline = time.monotonic() + 15
    number = 0
    while not mount.git("for-each-ref", "refs/heads"):
        (mount.path / "a").write_text(f"{number}\n")
        number += 1
        assert time.monotonic() < deadline, "no commit"
        time.sleep(0.05)


def test_author_is_who_was_named(mounts: Mounts) -> None:
    mount = mounts("author=Ada Lovelace <ada@example.org>")
    (mount.path / "a").write_text("one\n")
    mount.commit()
    assert mount.git("log", "-1", "--format=%an <%ae>").strip() == "Ada Lovelace <ada@example.org>"


def test_mount_commits_are_points_in_time(mounts: Mounts) -> None:
    """Two counters are written in turn, the first one first: no commit shows the second ahead."""
    mount = mounts("commit_quiet=0.05s", "commit_interval=0.2s")
    (mount.path / "far").mkdir()
    first, second = mount.path / "first", mount.path / "far" / "second"

    def write() -> None:
        deadline = time.monotonic() + 6
        number = 0
        while time.monotonic() < deadline:
            number += 1
            for path in (first, second):
                if number % 3:
                    path.write_text(f"{number}\n")
                else:
                    temporary = path.with_suffix(".new")
                    temporary.write_text(f"{number}\n")
                    os.rename(temporary, path)

    pid = in_child(write)
    forced = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if forced < 3:
            mount.commit()
            forced += 1
        time.sleep(0.3)
    mount.commit()
    pairs = []
    for commit in mount.git("rev-list", "--reverse", "main").split():
        names = mount.git("ls-tree", "-r", "--name-only", commit).split()
        values = [
            int(mount.git("cat-file", "blob", f"{commit}:{name}").strip() or 0) if name in names else 0
            for name in ("first", "far/second")
        ]
        pairs.append((values[0], values[1]))
    assert len(pairs) >= 5, pairs
    for one, two in pairs:
        # Between the emptying of a file by open(2) and its close it reads 0; it never runs ahead.
        assert two <= one or one == 0, pairs
        assert one in (0, two, two + 1) or two == 0, pairs
    latest = 0
    for one, _ in pairs:
        assert not one or one >= latest, pairs
        latest = max(one, latest)


def test_history_reads_well(mount: Mount) -> None:
    for number in range(3):
        (mount.path / f"f{number}").write_text(f"{number}\n")
        mount.commit()
    (mount.path / "f0").write_text("changed\n")
    mount.commit()
    text = mount.git("log", "--stat", "--format=%h %s")
    assert "f0 | 2 +-" in text
    assert len(mount.git("log", "--format=%H").split()) == 4
    assert mount.git("log", "--format=%H", "--follow", "--", "f0").split()[0] == mount.tip()


# From outside


@pytest.fixture
def clone(mount: Mount, disk: Path) -> Path:
    """A clone of a first state: two files of several lines."""
    (mount.path / "ours").write_text("1\n2\n3\n")
    (mount.path / "both").write_text("".join(f"line {number}\n" for number in range(20)))
    (mount.path / "sub").mkdir()
    (mount.path / "sub" / "file").write_text("sub\n")
    mount.commit()
    run("git", "clone", "-q", mount.repository, disk / "clone")
    return disk / "clone"


def push(clone: Path, message: str) -> str:
    run("git", "-C", clone, "add", "-A")
    run("git", "-C", clone, "commit", "-q", "-m", message)
    run("git", "-C", clone, "push", "-q", "origin", "main")
    return run("git", "-C", clone, "rev-parse", "HEAD").stdout.strip()


def test_push_shows_in_the_mount(mount: Mount, clone: Path) -> None:
    """Pages, names, negative names and listings that the kernel has cached are all replaced."""
    assert (mount.path / "ours").read_text() == "1\n2\n3\n"
    assert not (mount.path / "new").exists()
    assert sorted(os.listdir(mount.path)) == ["both", "ours", "sub"]
    assert os.listdir(mount.path / "sub") == ["file"]
    (clone / "ours").write_text("changed outside, and longer\n")
    (clone / "new").write_text("new\n")
    (clone / "sub" / "file").unlink()
    (clone / "sub" / "other").write_text("other\n")
    pushed = push(clone, "outside")
    wait_until(lambda: (mount.path / "new").exists(), 10, "the push in the mount")
    assert (mount.path / "ours").read_text() == "changed outside, and longer\n"
    assert sorted(os.listdir(mount.path)) == ["both", "new", "ours", "sub"]
    assert os.listdir(mount.path / "sub") == ["other"]
    assert mount.tip() == pushed, "nothing of ours was there to merge"
    (mount.path / "ours").write_text("ours again\n")
    commit = mount.commit()
    assert mount.git("rev-parse", f"{commit}^").strip() == pushed


def test_push_and_own_changes_are_merged(mount: Mount, clone: Path) -> None:
    (clone / "theirs").write_text("theirs\n")
    (clone / "both").write_text("outside\n")
    (clone / "sub" / "deep").mkdir()
    (clone / "sub" / "deep" / "theirs").write_text("theirs\n")
    (mount.path / "ours").write_text("1\n2\nours\n")
    (mount.path / "sub" / "mine").write_text("mine\n")
    (mount.path / "sub" / "file").unlink()
    pushed = push(clone, "outside")
    mount.commit()
    wait_until(lambda: (mount.path / "theirs").exists(), 10, "the push in the mount")
    mount.commit()
    assert (mount.path / "ours").read_text() == "1\n2\nours\n"
    assert (mount.path / "both").read_text() == "outside\n"
    assert sorted(os.listdir(mount.path / "sub")) == ["deep", "mine"]
    assert (mount.path / "sub" / "deep" / "theirs").read_text() == "theirs\n"
    mount.git("merge-base", "--is-ancestor", pushed, "main")
    names = mount.git("ls-tree", "-r", "--name-only", "main").split()
    assert names == ["both", "ours", "sub/deep/theirs", "sub/mine", "theirs"]


def test_push_that_conflicts_keeps_both(mount: Mount, clone: Path) -> None:
    """Ours stays in place, theirs beside it, and the merge commit says so."""
    mount.expect_log("outside change")
    (clone / "ours").write_text("1\noutside\n3\n")
    (mount.path / "ours").write_text("1\ninside\n3\n")
    pushed = push(clone, "outside")
    mount.commit()
    wait_until(lambda: len(os.listdir(mount.path)) == 4, 10, "theirs beside ours")
    mount.commit()
    assert (mount.path / "ours").read_text() == "1\ninside\n3\n"
    (beside,) = [name for name in os.listdir(mount.path) if name not in ("ours", "both", "sub")]
    assert beside.startswith("ours")
    assert (mount.path / beside).read_text() == "1\noutside\n3\n"
    mount.git("merge-base", "--is-ancestor", pushed, "main")
    assert "ours" in mount.git("log", "--merges", "-1", "--format=%B", "main")


def test_branch_moved_outside_is_never_overwritten(mount: Mount, clone: Path) -> None:
    """Pushes and own commits race for a while; every pushed commit stays in the history."""
    pushed = []
    for number in range(6):
        (mount.path / f"in{number}").write_text("inside\n")
        (clone / f"out{number}").write_text("outside\n")
        run("git", "-C", clone, "add", "-A")
        run("git", "-C", clone, "commit", "-q", "-m", f"out {number}")
        for _ in range(20):
            run("git", "-C", clone, "pull", "-q", "--no-rebase", "--no-edit")
            done = run("git", "-C", clone, "push", "-q", "origin", "main", status=None)
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        pushed.append(run("git", "-C", clone, "rev-parse", "HEAD").stdout.strip())
        if number % 2:
            mount.commit()
    mount.commit()
    wait_until(lambda: (mount.path / "out5").exists(), 10, "the last push in the mount")
    mount.commit()
    for commit in pushed:
        mount.git("merge-base", "--is-ancestor", commit, "main")
    names = set(mount.git("ls-tree", "--name-only", "main").split())
    assert {f"{side}{number}" for side in ("in", "out") for number in range(6)} <= names
    assert names == set(os.listdir(mount.path))


def test_open_files_read_on_while_a_push_comes_in(mount: Mount, clone: Path) -> None:
    (mount.path / "held").write_text("held\n")
    mount.commit()
    run("git", "-C", clone, "pull", "-q")
    time.sleep(0.05)
    fd = os.open(mount.path / "held", os.O_RDWR)
    assert os.pread(fd, 10, 0) == b"held\n"
    (clone / "held").unlink()
    push(clone, "held removed")
    wait_until(lambda: not (mount.path / "held").exists(), 10, "the removal in the mount")
    assert os.pread(fd, 10, 0) == b"held\n"
    os.pwrite(fd, b"HELD", 0)
    assert os.pread(fd, 10, 0) == b"HELD\n"
    os.close(fd)


def test_git_housekeeping_while_mounted(mount: Mount) -> None:
    """gc, repack and prune of the repository from outside, at any moment."""
    for number in range(40):
        (mount.path / f"f{number}").write_text(f"{number}\n" * 100)
        if number % 4 == 0:
            mount.commit()
    mount.git("gc", "-q", "--prune=now")
    assert (mount.path / "f3").read_text() == "3\n" * 100
    (mount.path / "f3").write_text("after\n")
    mount.commit()
    mount.git("repack", "-adq")
    mount.git("prune-packed", "-q")
    mount.git("fsck", "--strict", "--full")
    mount.remount()
    for number in range(40):
        expected = "after\n" if number == 3 else f"{number}\n" * 100
        assert (mount.path / f"f{number}").read_text() == expected


def test_many_small_commits_are_packed_together(mounts: Mounts) -> None:
    mount = mounts("commit_quiet=1h", "commit_interval=1h")
    for number in range(70):
        (mount.path / f"f{number % 7}").write_text(f"{number}\n")
        call(os.fspath(mount.path), "commit")
    assert count(mount) == 70
    packs = len(list((mount.repository / "objects" / "pack").glob("*.pack")))
    assert packs < 60, f"{packs} packs for 70 commits"


def test_writers_never_wait_for_git(mounts: Mounts) -> None:
    """A locked ref stops commits; it stops no writer, and it heals without help."""
    mount = mounts("commit_quiet=0.1s", "commit_interval=0.5s")
    mount.expect_log(r"(?i)lock")
    (mount.path / "a").write_text("one\n")
    mount.commit()
    lock = mount.repository / "refs" / "heads" / "main.lock"
    lock.write_text("")
    begin = time.monotonic()
    for number in range(50):
        (mount.path / f"f{number}").write_text("while locked\n")
    assert time.monotonic() - begin < 5
    time.sleep(1.5)
    assert mount.stats("health.json")["state"] in ("healthy", "degraded")
    assert "f1" not in mount.git("ls-tree", "--name-only", "main")
    lock.unlink()
    wait_until(lambda: "f49" in mount.git("ls-tree", "--name-only", "main"), 20, "the commit after the lock")


def test_a_commit_has_what_the_kernel_still_held(mount: Mount) -> None:
    """The kernel is asked to hand over only while it may hold something: a file that is open for writing, one
    that is closed and mapped, the time of a rename. off: a commit that never asks."""
    path = mount.path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, b"open".ljust(4096))
        mount.commit()
        assert mount.git("show", "main:file").strip() == "open"
        mapped = mmap.mmap(descriptor, 4096)
    finally:
        os.close(descriptor)
    with mapped:
        mapped[:6] = b"mapped"
        mount.commit()
        assert mount.git("show", "main:file").strip() == "mapped"
    path.rename(mount.path / "renamed")
    mount.commit()
    side = mount.git("rev-parse", "refs/caiafs/main")
    os.sync()  # nothing is left that the kernel could hand over
    mount.commit()
    assert mount.git("rev-parse", "refs/caiafs/main") == side


def test_a_commit_after_a_close_asks_the_kernel_for_nothing(mount: Mount) -> None:
    """off: a syncfs for each commit, which opens and closes the root directory."""
    (mount.path / "file").write_bytes(b"x")
    (mount.path / "file").read_bytes()  # its release was heard before this was answered

    def opened() -> list[str]:
        text = (mount.path / ".stats" / "caiafs.prom").read_text()
        return re.findall(r'request_seconds_count{op="opendir"} (.*)', text)

    before = opened()
    mount.commit()
    assert opened() == before


def test_the_daemon_is_found_by_one_request(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the figures were read to find the daemon")

    told = mount.stats("config.json")
    monkeypatch.setattr(client, "read_stats", refuse)
    found = client.locate(str(mount.path))
    assert (found.pid, found.state_dir) == (told["pid"], told["state_dir"])
