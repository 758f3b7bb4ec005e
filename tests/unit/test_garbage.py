"""Collections stay short however much is in memory, and cycles still go."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from caiafs import child
from caiafs.committer import worker
from caiafs.mount import garbage


class Node:
    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.callbacks[:] = callbacks
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_a_full_collection_looks_only_at_what_came_since_the_last() -> None:
    garbage.stay_short()
    seen: list[int] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            seen.append(len(gc.get_objects(2)))

    gc.callbacks.insert(0, look)
    kept = [Node() for _ in range(300_000)]
    assert len(kept) == 300_000
    assert len(seen) > 5
    assert max(seen[1:]) < 40_000  # the first one still meets what other tests left in this process
    assert gc.get_freeze_count() > 250_000


def test_cycles_still_go() -> None:
    garbage.stay_short()
    one, other = Node(), Node()
    one.other, other.other = other, one
    watch = weakref.ref(one)
    del one, other
    kept = [Node() for _ in range(100_000)]
    assert watch() is None
    assert kept


def test_what_was_set_aside_goes_by_its_references() -> None:
    garbage.stay_short()
    node = Node()
    gc.collect()
    watch = weakref.ref(node)
    del node
    assert watch() is None


def test_the_commit_worker_does_not_look_for_cycles_in_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    inlet, feed = os.pipe()
    os.close(feed)
    monkeypatch.setattr(child, "begin", lambda: True)
    monkeypatch.setattr(child, "take_standard_streams", lambda: (inlet, -1))
    worker.main()
    os.close(inlet)
    looks: list[str] = []
    gc.callbacks.append(lambda phase, info: looks.append(phase))
    batch = [([], {}) for _ in range(30_000)]
    assert len(batch) == 30_000
    assert not looks
