"""Hearing that a ref moved: whatever git does to it is heard, and nothing is heard of quiet."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store_support import git, new_store

from caiafs.committer import refwatch
from caiafs.committer.refwatch import RefWatch
from caiafs.store import COMMIT, TREE, Store, encode_commit

WHO = b"A <a@a>"


class Scene:
    def __init__(self, store: Store, ref: bytes) -> None:
        self.store = store
        self.ref = ref.decode()
        self.watch = RefWatch(store.git_dir, ref)
        self.commits = [self._commit(number) for number in range(2)]

    def _commit(self, number: int) -> str:
        with self.store.pack_writer(os.path.join(self.store.git_dir, "caiafs")) as writer:
            tree = writer.add(TREE, b"")
            oid = writer.add(COMMIT, encode_commit(tree, (), WHO, WHO, number, number, 0, b"x"))
            kept = writer.finish()
        assert kept is not None
        kept.release()
        return oid.hex()

    def git(self, *words: str) -> None:
        git(self.store.git_dir, *words)

    @property
    def heard(self) -> bool:
        return bool(select.select([self.watch.fd], [], [], 0)[0])


@pytest.fixture(params=[b"refs/heads/main", b"refs/heads/a/b/main"])
def scene(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(refwatch, "_is_local", lambda path: True)
    made = Scene(new_store(tmp_path), request.param)
    yield made
    made.watch.close()


def test_a_quiet_ref_is_not_heard_of(scene: Scene) -> None:
    assert scene.watch.arm()
    scene.git("cat-file", "-t", scene.commits[0])
    assert not scene.heard


@pytest.mark.parametrize("packed", [False, True])
def test_whatever_git_does_to_a_ref_is_heard(scene: Scene, packed: bool) -> None:
    """Each step is heard; then it is armed anew. off: a directory of the ref that is not watched."""
    first, second = scene.commits
    steps = [
        ("update-ref", scene.ref, first),
        ("update-ref", scene.ref, second),
        ("update-ref", "-d", scene.ref),
        ("update-ref", scene.ref, first),
    ]
    if packed:
        steps[1:1] = [("pack-refs", "--all")]
        steps[3:3] = [("pack-refs", "--all", "--prune")]
    for step in steps:
        assert scene.watch.arm()
        assert not scene.heard
        scene.git(*step)
        assert scene.heard, step


def test_a_symbolic_ref_has_to_be_looked_at(scene: Scene) -> None:
    scene.git("update-ref", "refs/heads/elsewhere", scene.commits[0])
    scene.git("symbolic-ref", scene.ref, "refs/heads/elsewhere")
    assert not scene.watch.arm()
    scene.git("symbolic-ref", "-d", scene.ref)
    assert scene.watch.arm()


def test_a_filesystem_that_others_write_to_has_to_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refwatch, "LOCAL", frozenset())
    watch = RefWatch(new_store(tmp_path).git_dir, b"refs/heads/main")
    assert not watch.arm()
    watch.close()


def test_without_inotify_it_has_to_be_looked_at(tmp_path: Path) -> None:
    watch = RefWatch(new_store(tmp_path).git_dir, b"refs/heads/main")
    watch.close()
    assert not watch.arm()
