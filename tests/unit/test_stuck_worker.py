"""A commit worker that was killed and hangs in the kernel: it ends when the disk answers, and not before."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from support.core import Core

from caiafs.committer.process import WorkerGone


class Stuck:
    """A process on which SIGKILL has no effect yet."""

    pid = 0

    def __init__(self) -> None:
        self.was_killed = False
        self.ended: int | None = None

    def kill(self) -> None:
        self.was_killed = True

    def poll(self) -> int | None:
        return self.ended

    def wait(self, timeout: float) -> int:
        if self.ended is None:
            raise subprocess.TimeoutExpired("worker", timeout)
        return self.ended


def test_there_is_no_second_worker_beside_one_that_may_still_write(tmp_path: Path) -> None:
    core = Core(tmp_path)

    async def body() -> None:
        await core.put(b"f", b"x")
        process: Any = core.process()
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run)
            assert await process.ask("probe")
            real, stuck = process._process, Stuck()
            process._process = stuck
            process.stop()
            assert stuck.was_killed
            real.kill()
            real.wait()
            core.use(process)
            for _ in range(2):
                with pytest.raises(WorkerGone, match="hangs in the kernel"):
                    await process.ask("probe")
            assert process.pid is None
            assert process.starts == 1
            stuck.ended = -9
            assert (await core.committer.commit()).commit is not None
            assert process.starts == 2
            nursery.cancel_scope.cancel()

    trio.run(body)
    core.close()
