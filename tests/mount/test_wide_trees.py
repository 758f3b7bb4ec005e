"""Directories as wide as somebody may make them, on a real mount."""

from __future__ import annotations

import os
import time

import pytest
from support.mounts import Mounts, run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_directory_of_200_000_entries_on_a_real_mount(mounts: Mounts) -> None:
    """List, stat, add one, commit, remount: nothing costs as much as all of it twice."""
    count = 200_000
    mount = mounts.prepare("operation_timeout=120s")  # a busy machine is no failure
    run("git", "init", "-q", "--bare", "-b", "main", mount.repository)
    git = ("git", "-C", mount.repository)
    oid = run(*git, "hash-object", "-w", "--stdin", stdin="same").stdout.strip()
    lines = "".join(f"100644 blob {oid}\tfile{n:06}\n" for n in range(count))
    tree = run(*git, "mktree", stdin=lines, timeout=300).stdout.strip()
    top = run(*git, "mktree", stdin=f"040000 tree {tree}\twide\n").stdout.strip()
    commit = run(*git, "commit-tree", top, "-m", "wide").stdout.strip()
    run(*git, "update-ref", "refs/heads/main", commit)
    mount.start()
    wide = mount.path / "wide"
    started = time.monotonic()
    assert len(os.listdir(wide)) == count
    listed = time.monotonic() - started
    assert sum(entry.stat().st_size for entry in os.scandir(wide)) == 4 * count
    (wide / "new").write_bytes(b"new")
    started = time.monotonic()
    mount.commit()
    assert time.monotonic() - started < 30 + 10 * listed
    assert mount.git("show", "main:wide/new") == "new"
    mount.remount()
    assert len(os.listdir(wide)) == count + 1
    (wide / "file000007").unlink()
    mount.commit()
    assert mount.git("diff", "--name-status", "main~1", "main").split() == ["D", "wide/file000007"]
