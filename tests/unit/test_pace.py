"""Long work on the event loop goes in little steps: what each of them handles is counted, not timed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import trio
from support.core import Core

from caiafs.committer import process as process_module
from caiafs.committer.pace import CHUNK, LITTLE, Pace
from caiafs.tree import Batch, File

FILES = 500


class Turns(trio.abc.Instrument):
    """Counts how often a task goes on."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += task is self.task


async def turns_of(pace: Pace, entries: int) -> int:
    """How often others had their turn while *entries* were handled."""
    turns = Turns(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(turns)
    try:
        for _ in range(entries // LITTLE):
            await pace.step()
    finally:
        trio.lowlevel.remove_instrument(turns)
    return turns.steps


def test_a_request_is_answered_after_each_little_step() -> None:
    async def main() -> None:
        pace = Pace()
        pace.is_asked = lambda: True
        assert await turns_of(pace, 4 * CHUNK) == 4 * CHUNK // LITTLE

    trio.run(main)


def test_others_get_their_turn_where_nobody_asks() -> None:
    async def main() -> None:
        pace = Pace()
        pace.is_asked = lambda: False
        assert await turns_of(pace, 4 * CHUNK) == 4

    trio.run(main)


class Progress(trio.abc.Instrument):
    """How far a commit is, before and after each step of any task."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.batch: Batch | None = None
        self.sent = 0
        self.before: tuple[int, ...] = (0, 0, 0)
        self.most = [0, 0, 0]
        self.total = [0, 0, 0]

    def _now(self) -> tuple[int, ...]:
        self.batch = self.core.tree._unsettled or self.batch
        held = 0 if self.batch is None else sum(len(one.entries) for one in self.batch.directories.values())
        files = [node for node in self.core.tree.nodes.values() if isinstance(node, File)]
        return held, self.sent, sum(node.content.base is not None for node in files)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.before = self._now()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        for which, (before, after) in enumerate(zip(self.before, self._now(), strict=True)):
            self.most[which] = max(self.most[which], abs(after - before))
            self.total[which] += abs(after - before)


def test_no_step_of_a_commit_handles_more_than_a_few_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured and let go, sent to the worker, settled: 500 of each, 16 at a time. What is sent together may
    begin with the rest of another directory."""
    core = Core(tmp_path)
    progress = Progress(core)

    class Counting:
        HIGHEST_PROTOCOL, loads = pickle.HIGHEST_PROTOCOL, staticmethod(pickle.loads)

        @staticmethod
        def dumps(message: Any, **options: Any) -> bytes:
            if message[0] == "directories":
                progress.sent += sum(len(state.entries) for state in message[1])
            return pickle.dumps(message, **options)

    monkeypatch.setattr(process_module, "pickle", Counting)

    async def body() -> None:
        for number in range(FILES):
            await core.put(b"f%03d" % number, b"x%d" % number)
        async with trio.open_nursery() as nursery:
            process = core.process()
            await nursery.start(process.run)
            core.use(process)
            trio.lowlevel.add_instrument(progress)
            await core.committer.commit()
            while progress.batch is None or progress.batch.directories:
                await trio.lowlevel.checkpoint()  # it is let go when the commit has its answer
            nursery.cancel_scope.cancel()

    trio.run(body)
    core.close()
    assert progress.total == [2 * FILES, FILES, FILES]
    held, sent, settled = progress.most
    assert held <= LITTLE
    assert settled <= LITTLE
    assert sent <= 2 * LITTLE
