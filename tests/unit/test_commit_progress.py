"""How far a commit is: counted by the builder, told by the worker, passed on by the committer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
import trio.lowlevel
from support.core import Core

from caiafs.committer import worker as worker_module


def test_the_worker_tells_how_many_names_are_written_and_of_how_many(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(worker_module, "ALIVE", 0.0)
    core = Core(tmp_path)

    async def body() -> list[tuple[int, int, str]]:
        for number in range(120):
            await core.put(b"d%d/f" % (number % 3) + str(number).encode(), b"x")
        seen: list[tuple[int, int, str]] = []
        async with trio.open_nursery() as nursery:
            process = core.process()
            await nursery.start(process.run)
            core.use(process)

            async def watch() -> None:
                while True:
                    seen.append(core.committer.step())
                    await trio.lowlevel.checkpoint()

            assert core.committer.step() == (0, 0, "waiting for the kernel")
            nursery.start_soon(watch)
            await core.committer.commit()
            assert process.written[1] == 120 + 3
            nursery.cancel_scope.cancel()
        return seen

    seen = trio.run(body)
    core.close()
    assert {text for _, _, text in seen} >= {"writing to git"}
    assert all(0 <= done <= total for done, total, _ in seen)


def test_signs_of_life_count_up_to_the_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker_module, "ALIVE", 0.0)
    core = Core(tmp_path)
    told: list[tuple[Any, ...]] = []
    send = core.worker._send
    monkeypatch.setattr(core.worker, "_send", lambda *message: (told.append(message), send(*message)))

    async def body() -> None:
        for number in range(20):
            await core.put(b"f%d" % number, b"x")

    trio.run(body)
    core.commit()
    core.close()
    counts = [message[1:] for message in told if message[0] == "alive" and len(message) == 3]
    assert counts[0][0] < counts[-1][0]
    assert counts[-1] == (20, 20)
    assert counts == sorted(counts)
