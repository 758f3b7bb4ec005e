"""When a commit is made, and what happens when git says no: on a clock that only the test moves.

The worker is the real one, in this process; it can be told to refuse.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from support.core import BRANCH, Core, LocalWorker
from test_store_support import fsck
from test_store_support import git as run_git

from caiafs.committer import schedule
from caiafs.committer.pace import LITTLE
from caiafs.committer.process import Refused, WorkerGone, WorkerProcess
from caiafs.committer.schedule import TIDY_QUIET, Committer, Outcome
from caiafs.committer.worker import Order
from caiafs.errors import StoreError
from caiafs.tree import Batch


class Stubborn:
    """A worker that refuses as long as it was told to; notes when it was asked to commit."""

    def __init__(self, real: LocalWorker) -> None:
        self.real = real
        self.refusals: list[StoreError] = []
        self.asked: list[float] = []
        self.gate: trio.Event | None = None
        self.told: list[str] = []
        self.tidied = trio.Event()
        self.tidied.set()

    async def ask(self, *message: Any, ahead: Iterable[tuple[Any, ...]] = ()) -> Any:
        self.told.append(message[0])
        if message[0] == "tidy":
            await self.tidied.wait()
        if message[0] == "commit":
            self.asked.append(trio.current_time())
            if self.gate is not None:
                await self.gate.wait()
            if self.refusals:
                self.real._directories = {}
                raise self.refusals.pop(0)
        return await self.real.ask(*message, ahead=ahead)


class Stage:
    """A core, its committer running, and the clock."""

    def __init__(self, core: Core, worker: Stubborn, clock: trio.testing.MockClock) -> None:
        self.core = core
        self.worker = worker
        self.clock = clock
        self.names = iter(range(10**6))

    async def change(self, data: bytes = b"x") -> None:
        await self.core.put(b"file%d" % next(self.names), data)
        await self.idle()

    async def after(self, seconds: float) -> int:
        """Let *seconds* pass; how many commits there are then."""
        self.clock.jump(seconds)
        await self.idle()
        return self.commits

    async def idle(self) -> None:
        """Everybody did what can be done without time going by, threads too."""
        others = trio.to_thread.current_default_thread_limiter()
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.005)
            while self.core.fs._threads.borrowed_tokens or others.borrowed_tokens:
                await trio.testing.wait_all_tasks_blocked(0.005)

    @property
    def commits(self) -> int:
        return self.core.committer.commits


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Play]:
    """Plays a scene on a stage; an indirect parameter holds options for Config."""
    options = {"commit_quiet": 1.0, "commit_interval": 30.0, **getattr(request, "param", {})}
    core = Core(tmp_path, **options)
    stubborn = Stubborn(core.worker)
    core.use(cast(WorkerProcess, stubborn))
    core.worker = stubborn.real

    def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
        clock = trio.testing.MockClock()

        async def main() -> None:
            async with running(core):
                stage = Stage(core, stubborn, clock)
                await stage.idle()
                await scene(stage)

        trio.run(main, clock=clock)

    yield run
    stubborn.refusals.clear()
    stubborn.gate = None
    core.run(core.committer.drain)
    assert not fsck(core.git_dir)
    core.close()


@contextlib.asynccontextmanager
async def running(core: Core) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.committer.run)
        yield
        nursery.cancel_scope.cancel()


def test_a_commit_comes_after_a_quiet_moment(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change()
        assert await stage.after(0.6) == 0
        await stage.change()  # the quiet begins anew
        assert await stage.after(0.6) == 0
        assert await stage.after(0.6) == 1
        assert await stage.after(100) == 1  # and nothing is committed twice

    play(scene)


def test_a_commit_comes_at_the_latest_after_the_interval(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(59):
            await stage.change()
            assert await stage.after(0.5) == 0
        await stage.change()
        assert await stage.after(0.6) == 1

    play(scene)


@pytest.mark.parametrize("play", [{"journal_max": 1 << 20}], indirect=True)
def test_a_journal_that_fills_up_is_committed_without_a_quiet_moment(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change(b"x" * 400_000)
        assert await stage.after(0.1) == 0
        await stage.change(b"x" * 200_000)
        assert await stage.after(0) == 1

    play(scene)


@pytest.mark.parametrize("play", [{"memory": 1 << 20, "commit_quiet": 3600.0}], indirect=True)
def test_many_changed_names_are_committed_before_they_outgrow_memory(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(1200):
                nursery.start_soon(stage.core.put, b"name%d" % number, b"")
        assert await stage.after(0) >= 1

    play(scene)


def test_a_refused_commit_is_tried_again_with_growing_pauses(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.refusals = [StoreError("no room")] * 40
        await stage.change()
        while len(stage.worker.asked) < 18:
            await stage.after(0.1 if len(stage.worker.asked) < 4 else 2)
        pauses = [
            later - earlier
            for earlier, later in zip(stage.worker.asked, stage.worker.asked[1:], strict=False)
        ]
        assert pauses[0] < 1
        assert pauses[3] > pauses[0]
        assert all(10 < pause <= 36 for pause in pauses[12:])
        assert "no room" in (stage.core.committer.trouble or "")
        stage.worker.refusals.clear()
        assert await stage.after(40) == 1
        assert stage.core.committer.trouble is None

    play(scene)


def test_who_asks_for_a_commit_is_told_soon_that_git_has_refused_for_long(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.refusals = [StoreError("no room")] * 60
        await stage.change()
        for _ in range(30):
            await stage.after(40)
        assert len(stage.worker.asked) > 15
        said: list[str] = []

        async def ask() -> None:
            with pytest.raises(StoreError) as caught:
                await stage.core.committer.commit()
            said.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await stage.after(0)
        assert said == ["not committed, but safe in the journal: no room"]

    play(scene)


def test_who_asks_for_a_commit_waits_where_git_refuses_for_a_moment(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.refusals = [StoreError("no room")] * 3
        await stage.change()
        done = trio.Event()

        async def ask() -> None:
            await stage.core.committer.commit()
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await stage.idle()
            assert stage.core.committer.step() == (0, 0, "waiting to try git again: no room")
            for _ in range(20):
                await stage.after(0.5)
            assert done.is_set()

    play(scene)


def test_the_lock_of_another_process_is_waited_for_in_short_pauses(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.refusals = [Refused("locked", True)] * 12
        await stage.change()
        await stage.after(1)
        for _ in range(25):  # growing pauses would take minutes
            await stage.after(1.3)
        assert stage.commits == 1

    play(scene)


def test_a_worker_that_went_away_costs_a_try_and_no_change(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.refusals = [WorkerGone("the commit worker ended")]
        await stage.change(b"what was written")
        await stage.after(1.1)
        assert await stage.after(1) == 1
        assert run_git(stage.core.git_dir, "cat-file", "blob", "main:file0") == b"what was written"

    play(scene)


def test_a_worker_that_ends_while_it_is_told_of_a_batch_commits_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """off: each message goes to the worker that is there when its turn comes. The second worker then makes a
    commit of what it was told, and the journal lets go of all."""
    core = Core(tmp_path)
    whole = Committer._parts

    async def body() -> None:
        for number in range(300):
            await core.put(b"f%03d" % number, b"x")
        async with trio.open_nursery() as nursery:
            process = core.process()
            await nursery.start(process.run)
            core.use(process)

            def parts(committer: Committer, batch: Batch, order: Order) -> Iterator[tuple[Any, ...]]:
                for number, part in enumerate(whole(committer, batch, order)):
                    if number == 2 and process.starts == 1:
                        assert process._process is not None
                        process._process.kill()
                        process._process.wait()
                    yield part

            monkeypatch.setattr(Committer, "_parts", parts)
            await core.committer.commit()
            assert process.starts == 2
            nursery.cancel_scope.cancel()

    trio.run(body)
    assert len(run_git(core.git_dir, "ls-tree", "--name-only", "main").split()) == 300
    core.close()


def test_who_asks_for_a_commit_does_not_wait_for_packs_to_be_brought_together(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "TIDY_EVERY", 2)

    async def scene(stage: Stage) -> None:
        stage.worker.tidied = trio.Event()
        for _ in range(2):
            await stage.change()
            await stage.core.committer.commit()
        assert stage.worker.told == ["commit", "commit"]
        await stage.after(TIDY_QUIET)
        assert stage.worker.told == ["commit", "commit", "tidy"]
        await stage.change()
        await stage.after(1.1)
        assert stage.worker.told[3:] == []  # the worker does one thing at a time
        stage.worker.tidied.set()
        await stage.idle()
        assert stage.worker.told[3:] == ["commit"]
        await stage.after(10)
        assert stage.worker.told[4:] == []

    play(scene)


def test_packs_are_brought_together_in_the_end_where_commits_never_pause(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "TIDY_EVERY", 3)

    async def scene(stage: Stage) -> None:
        for _ in range(9):
            await stage.change()
            await stage.core.committer.commit()
            await stage.after(TIDY_QUIET / 2)
        assert stage.worker.told == [*["commit"] * 6, "tidy", *["commit"] * 3]

    play(scene)


def test_a_commit_that_waits_goes_before_the_packs(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is time for them the worker is busy with one commit, and another waits already."""
    monkeypatch.setattr(schedule, "TIDY_EVERY", 3)

    async def scene(stage: Stage) -> None:
        async def commit() -> None:
            await stage.core.put(b"file%d" % next(stage.names), b"x")
            await stage.core.committer.commit()

        for _ in range(3):
            await commit()
        stage.worker.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            await stage.idle()
            await stage.after(TIDY_QUIET)
            nursery.start_soon(commit)
            await stage.idle()
            assert stage.worker.told == ["commit"] * 4
            stage.worker.gate.set()
        await stage.idle()
        assert stage.worker.told == ["commit"] * 5
        await stage.after(TIDY_QUIET)
        assert stage.worker.told == [*["commit"] * 5, "tidy"]

    play(scene)


def test_what_changes_while_git_is_busy_comes_with_the_next_commit(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.worker.gate = trio.Event()
        await stage.change(b"first")
        await stage.after(1.1)
        await stage.change(b"second")  # nobody waits for git
        assert stage.commits == 0
        stage.worker.gate.set()
        await stage.idle()
        assert run_git(stage.core.git_dir, "ls-tree", "--name-only", "main").split() == [b"file0"]
        assert await stage.after(1.1) == 2
        assert run_git(stage.core.git_dir, "ls-tree", "--name-only", "main").split() == [b"file0", b"file1"]

    play(scene)


def test_asking_does_not_wait_for_the_quiet_moment(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change()
        outcome = await stage.core.committer.commit("as I said")
        assert outcome.commit is not None
        assert run_git(stage.core.git_dir, "log", "-1", "--format=%s", "main") == b"as I said\n"
        assert await stage.after(5) == 1

    play(scene)


@pytest.mark.parametrize(("names", "is_early"), [(3, True), (LITTLE, False)])
def test_a_small_commit_is_told_once_git_has_it_and_nobody_sees_it_half_done(
    play: Play, names: int, is_early: bool
) -> None:
    async def scene(stage: Stage) -> None:
        committer, fs = stage.core.committer, stage.core.fs
        told: list[tuple[bytes | None, int, int]] = []
        seen: list[tuple[bytes | None, int, int]] = []

        def landed(outcome: Outcome) -> None:
            assert stage.core.store.read_ref(BRANCH) == outcome.commit
            told.append((outcome.commit, outcome.changes, committer.commits))

        async def look() -> None:
            while not told:
                await trio.lowlevel.checkpoint()
            seen.append((committer.head, fs.pending, committer.commits))

        for number in range(names):
            await stage.core.put(b"name%d" % number, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            outcome = await committer.commit(landed=landed)
            if not is_early:
                assert told == []
                nursery.cancel_scope.cancel()
        if is_early:
            assert told == [(*outcome, 0)]
            assert seen == [(outcome.commit, 0, 1)]

    play(scene)


def test_a_commit_that_somebody_pushed_beside_is_not_told_early(play: Play) -> None:
    """What the caller is to hear is the merge."""

    async def scene(stage: Stage) -> None:
        told: list[Outcome] = []
        await stage.change()
        await stage.core.committer.commit()
        await stage.change()
        lines = b"commit refs/heads/main\ncommitter E <e@e> 1 +0000\ndata 1\nx\nfrom refs/heads/main^0\n"
        run_git(stage.core.git_dir, "fast-import", "--quiet", stdin=lines + b"M 644 inline t\ndata 1\nx\n")
        outcome = await stage.core.committer.commit(landed=told.append)
        assert told == []
        parents = run_git(stage.core.git_dir, "log", "-1", "--format=%P", "main").split()
        assert len(parents) == 2
        assert outcome.commit == stage.core.store.read_ref(BRANCH)

    play(scene)


def test_asking_when_git_refuses_says_so_and_loses_nothing(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change(b"kept")
        stage.worker.refusals = [StoreError("no room")] * 500

        async def pass_time() -> None:
            while True:
                await stage.idle()
                stage.clock.jump(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_time)
            with pytest.raises(StoreError, match="no room"):
                await stage.core.committer.commit()
            nursery.cancel_scope.cancel()
        stage.worker.refusals.clear()
        await stage.after(40)
        assert run_git(stage.core.git_dir, "cat-file", "blob", "main:file0") == b"kept"

    play(scene)


def test_a_branch_that_moved_outside_is_taken_in_without_a_change_of_ours(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change()
        await stage.core.committer.commit()
        lines = b"commit refs/heads/main\ncommitter E <e@e> 1 +0000\ndata 1\nx\nfrom refs/heads/main^0\n"
        lines += b"M 644 inline theirs\ndata 5\nhello\n"
        run_git(stage.core.git_dir, "fast-import", "--quiet", stdin=lines)
        stage.core.look()
        for _ in range(20):
            await stage.idle()
        node = await stage.core.find(b"theirs")
        assert await stage.core.fs.read(node, 0, 10) == b"hello"  # type: ignore[arg-type]

    play(scene)


def test_idle_means_idle(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.change()
        await stage.after(2)
        asked = len(stage.worker.asked)
        for _ in range(100):
            await stage.after(60)
        assert len(stage.worker.asked) == asked
        assert not stage.core.committer._fs.is_dirty

    play(scene)


@pytest.mark.parametrize("what", ["segments", "the state directory", "the folder for new packs"])
def test_what_was_tidied_away_beside_a_mount_keeps_nothing_from_git(tmp_path: Path, what: str) -> None:
    """The daemon has its segments open, whatever happens to their names."""
    core = Core(tmp_path, memory=1 << 16, segment_size=4096)
    core.run(core.put, b"f", b"x" * 300_000)
    core.run(core.put, b"g", b"y" * 300_000)
    if what == "segments":
        segments = sorted(Path(core.state).glob("*.seg"))
        assert len(segments) > 1
        for path in segments[1:]:  # so that a position could be looked for in the one before
            path.unlink()
    elif what == "the state directory":
        shutil.rmtree(core.state)
    else:
        shutil.rmtree(Path(core.git_dir, "caiafs/tmp"))
    core.commit()
    assert run_git(core.git_dir, "cat-file", "blob", "main:g") == b"y" * 300_000
    assert not fsck(core.git_dir)
    core.close()


def test_who_asks_for_a_commit_does_not_wait_for_the_disk_to_get_the_journal_back(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor until a large batch is forgotten; both happens all the same."""
    slow = threading.Event()
    batches: list[Batch] = []

    async def scene(stage: Stage) -> None:
        core = stage.core
        close, freeze = core.journal.close_released, core.fs.freeze

        def closing() -> None:
            slow.wait(10)
            close()

        def freezing() -> Batch:
            batches.append(freeze())
            return batches[-1]

        monkeypatch.setattr(core.journal, "close_released", closing)
        monkeypatch.setattr(core.fs, "freeze", freezing)
        for number in range(150):
            await core.put(b"f%03d" % number, b"x")
        await core.committer.commit()
        assert batches[0].directories
        assert core.journal._retired
        slow.set()
        await stage.idle()
        assert not batches[0].directories
        assert not core.journal._retired

    play(scene)
