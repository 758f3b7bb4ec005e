"""Power loss at any call: a workload is recorded, and of every moment a machine starts again.

The workload is the core on a directory (support.core), from the making of the repository on:
changes, syncs, commits beside them, packs joined. After each change the tree is noted. So what a
mount shows after the power was lost must be one of these trees, whole: not older than the last
sync or commit that had returned, not newer than the last change that had begun. Its commits must
be these trees, too, in order; git and `caiafs check` must find nothing; and work goes on.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import trio

from caiafs.check import run_check
from caiafs.errors import FSError, RepositoryMissing
from caiafs.mount import preflight
from caiafs.store import BLOB, COMMIT, TREE, Store, encode_commit, patch_tree
from caiafs.tree import Directory, File, Node, Symlink
from support.core import BRANCH, IDENTITY, WHO, Core, LocalWorker
from support.mounts import run
from support.power import Platter, Recorder

KINDS = [stat.S_IFREG | 0o644] * 4 + [stat.S_IFDIR | 0o755] * 2 + [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600]
Tree = dict[str, tuple[Any, ...]]


class Life(Core):
    """A core that finds its places as the mount does: repository, lock and state directory."""

    def _open(self) -> Store:
        self.lock: preflight.Lock | None = None
        try:
            store = Store.open(self.git_dir)
        except RepositoryMissing:
            store = Store.create(self.git_dir)
        self.state = preflight.state_directory(self.config, store.git_dir, b"main")
        self.lock = preflight.lock_branch(self.config, store.git_dir, b"main")
        return store

    def _local_worker(self) -> LocalWorker:
        return _Worker(self.place, lambda tip: self.committer.tip_seen(tip))

    def close(self) -> None:
        super().close()
        self.store.close()
        if self.lock is not None:
            self.lock.release()


class _Worker(LocalWorker):
    def do_tidy(self) -> bool:
        """Without git, whose calls would go past the recorder."""
        return self._store.consolidate(self._tmp, more_than=6, git=None)


class Mark(NamedTuple):
    """After so many calls: change *number* is about to "begin", or all up to it are "kept" for certain,
    or so many commits from outside are "pushed"."""

    calls: int
    what: str
    number: int


class Recording:
    """A workload that was recorded, with every tree that it went through."""

    def __init__(self, base: Path, seed: int, changes: int, writes: int = 0, outside: float = 0.0) -> None:
        """Record at least so many *changes*, and go on until so many *writes* were made. After each a
        commit may arrive on the branch from *outside*, with that probability."""
        self.outside = outside
        self.pushed: list[str] = []
        self.rng = random.Random(seed)
        self.trees: list[Tree] = []
        self.views: list[dict[str, tuple[str, str]]] = []
        self.marks: list[Mark] = []
        self.commits = 0
        self._digests: dict[tuple[int, int, int], tuple[str, str]] = {}
        base.mkdir()
        self.recorder = Recorder(str(base))
        with self.recorder:
            self._mark("begin", 0)
            life = Life(base, memory=1 << 20, segment_size=64 << 10)
            trio.run(self._work, life, changes, writes)
            life.close()
        self.recorder.assert_complete()
        listed = run("git", "-C", base / "repo.git", "rev-list", "refs/heads/main").stdout.split()
        self.own = set(listed) - set(self.pushed)
        self.by_tree: dict[str, list[int]] = {}
        for number, tree in enumerate(self.trees):
            self.by_tree.setdefault(digest(tree), []).append(number)

    def _mark(self, what: str, number: int) -> None:
        self.marks.append(Mark(len(self.recorder.calls), what, number))

    # ---- the workload

    async def _work(self, life: Life, changes: int, writes: int) -> None:
        await self._note(life)
        async with trio.open_nursery() as nursery:
            busy = trio.CapacityLimiter(1)
            while len(self.trees) <= changes or self.recorder.writes < writes:
                number = len(self.trees)
                self._mark("begin", number)
                with contextlib.suppress(FSError):  # refused, and so nothing changed
                    await self._change(life, number)
                await self._note(life)
                dice = self.rng.random()
                if dice < 0.04:
                    kept = len(self.trees) - 1
                    await life.fs.sync()
                    self._mark("kept", kept)
                elif dice < 0.09 and not busy.borrowed_tokens:
                    nursery.start_soon(self._commit, life, busy)
                if self.rng.random() < self.outside and life.store.read_ref(BRANCH) is not None:
                    await self._take_in(life, busy)
                await trio.lowlevel.checkpoint()
        await self._commit(life, busy)

    async def _commit(self, life: Life, busy: trio.CapacityLimiter) -> None:
        async with busy:
            kept = len(self.trees) - 1
            await life.committer.commit()
            self.commits += 1
            self._mark("kept", kept)

    async def _take_in(self, life: Life, busy: trio.CapacityLimiter) -> None:
        """Somebody pushes one new or changed file, and the next commit takes it in, as one record."""
        async with busy:
            pass  # a commit that runs comes to its end: what it does is told apart from what follows
        self._push(life)
        life.look()
        self._mark("begin", len(self.trees))
        await self._commit(life, busy)
        await self._note(life)
        self._mark("kept", len(self.trees) - 1)

    def _push(self, life: Life) -> None:
        with Store.open(life.git_dir) as store:
            tip = store.read_ref(BRANCH)
            assert tip is not None
            packer = store.pack_writer(os.path.join(life.git_dir, "caiafs"))
            name = b"o%d" % self.rng.randrange(1 + len(self.pushed) // 2 + 1)
            blob = packer.add(BLOB, b"outside %d\n" % len(self.pushed) * 30)
            old = store.tree_bytes(store.commit(tip).tree)
            tree = packer.add(TREE, patch_tree(old, {name: (0o100644, blob)}))
            stamp = 2_000_000_000 + len(self.pushed)
            text = b"Outside\n"
            commit = packer.add(
                COMMIT, encode_commit(tree, (tip,), IDENTITY, IDENTITY, stamp, stamp, 0, text)
            )
            kept = packer.finish()
            assert kept is not None
            assert store.swap_ref(BRANCH, tip, commit, b"push", IDENTITY)
            kept.release()
        self.pushed.append(commit.hex())
        self._mark("pushed", len(self.pushed))

    async def _change(self, life: Life, number: int) -> None:
        """One call of the core, so that the journal gets one record, or several as one."""
        fs, rng = life.fs, self.rng
        nodes = list(fs.tree.nodes.values())
        node, fresh = rng.choice(nodes), b"n%d" % number
        folders = [n for n in nodes if isinstance(n, Directory)]
        parent, other = rng.choice(folders), rng.choice(folders)
        for folder in (parent, other):
            await fs.children(folder)
        name = rng.choice([fresh, *(parent.children or ())])
        target = rng.choice([fresh, *(other.children or ())])
        kind = rng.randrange(12)
        if len(nodes) > 70:
            kind = rng.choice((3, 3, 4, 8))
        if kind < 3:
            await fs.create(parent.ino, fresh, rng.choice(KINDS), WHO, target=b"goal" * (1 + number % 3))
        elif kind == 3:
            await rng.choice([fs.unlink, fs.unlink, fs.rmdir])(parent.ino, name)
        elif kind == 4:
            await fs.rename(parent.ino, name, other.ino, target, rng.choice([0, 0, 1, 2]))
        elif kind == 5:
            await fs.link(node.ino, parent.ino, fresh)
        elif kind == 6:
            fs.set_attributes(node.ino, mode=rng.randrange(0o10000), uid=number, atime=number, mtime=-number)
        elif kind == 7:
            fs.set_xattr(node.ino, b"user.%d" % rng.randrange(3), rng.randbytes(9), lambda _: True)
        elif isinstance(node, File):
            if kind == 8:
                fs.set_attributes(node.ino, size=rng.randrange(9000))
            else:
                await fs.write(node, rng.randrange(6000), rng.randbytes(rng.choice((1, 400, 3000, 9000))))

    async def _note(self, life: Life) -> None:
        tree, view = await shown(life, self._digests)
        self.trees.append(tree)
        self.views.append(view)

    # ---- what was promised

    def bounds(self, calls: int) -> tuple[int, int]:
        """After so many calls: the change that is kept for certain, and the last one that had begun."""
        kept = begun = 0
        for mark in self.marks:
            if mark.calls > calls:
                break
            if mark.what == "kept":
                kept = max(kept, mark.number)
            elif mark.what == "begin":
                begun = mark.number
        return kept, begun

    def pushed_by(self, calls: int) -> list[str]:
        """The commits that were on the branch for certain when so many calls were made."""
        numbers = [mark.number for mark in self.marks if mark.what == "pushed" and mark.calls <= calls]
        return self.pushed[: max(numbers, default=0)]


async def shown(
    life: Life, known: dict[tuple[int, int, int], tuple[str, str]] | None = None
) -> tuple[Tree, dict[str, tuple[str, str]]]:
    """All that a caller can see of the tree; and what git should show of it: (mode, object) by path."""
    tree: Tree = {}
    view: dict[str, tuple[str, str]] = {}
    waiting: list[tuple[str, Node]] = [("", life.tree.root)]
    while waiting:
        path, node = waiting.pop()
        sums = "", ""
        if isinstance(node, File):
            key = node.ino, node.modified, node.size
            found = None if known is None else known.get(key)
            if found is None:
                found = _sums(await life.fs.contents.read(node.content, 0, node.size))
                assert found[1] or not node.size
            if known is not None:
                known[key] = found
            sums = found
            view[path] = ("100755" if node.mode & 0o100 else "100644", sums[1])
        elif isinstance(node, Symlink):
            sums = _sums(await life.fs.readlink(node.ino))
            view[path] = "120000", sums[1]
        elif isinstance(node, Directory):
            for name, child in (await life.fs.children(node)).items():
                waiting.append((f"{path}/{name.decode()}".lstrip("/"), child))
        tree[path] = (
            node.ino, node.mode, node.uid, node.gid, node.nlink, node.atime, node.mtime, node.ctime,
            node.size, tuple(sorted((node.xattrs or {}).items())), sums[0],
        )  # fmt: skip
    return tree, view


def _sums(data: bytes) -> tuple[str, str]:
    return hashlib.sha1(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def digest(tree: Tree) -> str:
    return hashlib.sha1(repr(sorted(tree.items())).encode()).hexdigest()


HOW = ("some", "none", "some", "all")
"""What survives of what was not synced, by turns."""


class Loss(NamedTuple):
    """One power loss: during which call, what survives, by which seed. With *again* the power goes a
    second time, during every so-manieth call of the recovery."""

    calls: int
    how: str
    seed: int
    again: int = 0


class Violation(AssertionError):
    """A promise was broken; the text says at which call, with which seed, and how."""


class Outcome:
    """What was looked at."""

    def __init__(self) -> None:
        self.states = 0
        self.recoveries = 0
        self.newer_than_promised = 0
        self.commits = 0


class Prover:
    """Machines that start again: each state is built in a directory, mounted, compared and checked."""

    def __init__(self, recording: Recording, place: Path, outcome: Outcome, git: bool = True) -> None:
        self.recording = recording
        self.place = place
        self.outcome = outcome
        self.git = git
        self._known: dict[str, int] = {}  # commits that were looked at

    def sweep(self, losses: Iterable[Loss]) -> None:
        """Look at every one of *losses*, in the order of their calls."""
        calls = self.recording.recorder.calls
        platter, reached = scan_again(self.recording.recorder), 0
        for loss in sorted(losses):
            while reached < loss.calls:
                platter.play(calls[reached])
                reached += 1
            torn = calls[reached] if reached < len(calls) else None
            where = f"power lost at call {reached} ({torn.kind if torn else 'end'}), {loss.how}, {loss.seed}"
            with self.directory() as base:
                platter.write_survivor(str(base), random.Random(loss.seed), loss.how, torn)
                if loss.again:
                    self._lose_power_again(base, loss, where)
                else:
                    self.verify(base, self.recording.bounds(reached), where, reached)

    def _lose_power_again(self, base: Path, loss: Loss, where: str) -> None:
        """The recovery after the first loss is recorded as well, and the power goes at each of its calls.

        What the first recovery showed is on the platter, so every later one must show the same.
        """
        recorder = Recorder(str(base))
        with recorder:
            life = Life(base, memory=1 << 20)
            number = trio.run(self._compare, life, self.recording.bounds(loss.calls), where)
            trio.run(life.committer.reconcile)
            trio.run(life.committer.commit)
            life.close()
        recorder.assert_complete()
        self.outcome.recoveries += 1
        platter = recorder.origin
        dice = random.Random(loss.seed)
        for at, call in enumerate(recorder.calls):
            how, seed = dice.choice(HOW), dice.randrange(1 << 30)
            if at % loss.again == 0:
                there = f"{where}, and again at call {at} ({call.kind}) of the recovery, {how}, {seed}"
                with self.directory("again") as second:
                    platter.write_survivor(str(second), random.Random(seed), how, call)
                    self.verify(second, (number, number), there)
            platter.play(call)

    @contextlib.contextmanager
    def directory(self, name: str = "once") -> Iterator[Path]:
        path = self.place / name
        path.mkdir(mode=0o700, parents=True)
        yield path
        shutil.rmtree(path)

    def verify(self, base: Path, bounds: tuple[int, int], where: str, calls: int = 0) -> None:
        """Start again on *base*, and look at everything; what was pushed before *calls* is there, too."""
        self.outcome.states += 1
        try:
            self._fsck(base, "as it was found")
            life = Life(base, memory=1 << 20)
        except Exception as error:
            raise Violation(f"{where}: the machine does not start: {error!r}") from error
        try:
            number = trio.run(self._compare, life, bounds, where)
            trio.run(self._go_on, life, number, where)
        except Exception as error:
            if isinstance(error, Violation):
                raise
            raise Violation(f"{where}: {error!r}") from error
        finally:
            life.close()
        said: list[str] = []
        if run_check(str(base / "repo.git"), None, None, False, said.append) != 0:
            raise Violation(f"{where}: caiafs check: {said}")
        self._fsck(base, where)
        self._check_history(base, number, where)
        for commit in self.recording.pushed_by(calls):
            lost = run(
                "git", "-C", base / "repo.git", "merge-base", "--is-ancestor", commit, "main", status=None
            )
            if lost.returncode:
                raise Violation(f"{where}: {commit} was pushed and is not in the history")

    async def _compare(self, life: Life, bounds: tuple[int, int], where: str) -> int:
        tree, _ = await shown(life)
        kept, begun = bounds
        numbers = self.recording.by_tree.get(digest(tree), [])
        fitting = [number for number in numbers if kept <= number <= begun]
        if not fitting:
            nearest = min(
                range(kept, begun + 1), key=lambda n: len(_differences(self.recording.trees[n], tree))
            )
            raise Violation(
                f"{where}: the mount shows no tree between change {kept} and {begun} (but {numbers}); "
                f"against {nearest}: {_differences(self.recording.trees[nearest], tree)[:6]}"
            )
        self.outcome.newer_than_promised += fitting[-1] > kept
        return fitting[-1]

    async def _go_on(self, life: Life, number: int, where: str) -> None:
        """What was recovered is committed, and a change and its commit after it as well."""
        await life.committer.reconcile()
        await life.committer.commit()
        await life.put(b"after", b"the power came back")
        await life.committer.commit()
        tree, view = await shown(life)
        tip = life.store.read_ref(BRANCH)
        if tip is None or self._listed(Path(life.git_dir), tip.hex()) != view:
            raise Violation(f"{where}: the branch does not show what the mount shows")
        tree.pop("after")
        due = self.recording.trees[number]
        # The root's times, and what came from outside and was taken in only now: also where it took one of
        # several names from a file.
        outside = {seen[0] for path, seen in due.items() if path.startswith("o")}
        theirs = {path for path, seen in due.items() if seen[0] in outside} | {""}
        ours, found = ({path: one[path] for path in one if path not in theirs} for one in (due, tree))
        wrong = [line for line in _differences(ours, found) if not line.startswith("'o")]
        if wrong:
            raise Violation(f"{where}: the tree changed by being committed: {wrong[:5]}")

    # ---- git's view

    def _fsck(self, base: Path, where: str) -> None:
        repository = base / "repo.git"
        if not self.git or not (repository / "HEAD").exists():
            return
        done = run("git", "-C", repository, "fsck", "--strict", "--full", "--no-dangling", status=None)
        said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("notice: ")]
        if done.returncode or said:
            raise Violation(f"{where}: git fsck: {said[:5]}")

    def _listed(self, repository: Path, commit: str) -> dict[str, tuple[str, str]]:
        found = {}
        for entry in run("git", "-C", repository, "ls-tree", "-r", "-z", commit).stdout.split("\0"):
            if entry:
                words, _, path = entry.partition("\t")
                mode, _, blob = words.split(" ")
                found[path] = mode, blob
        return found

    def _check_history(self, base: Path, number: int, where: str) -> None:
        """Each commit is a tree that was, and they are in order; the last is of after the power came back."""
        repository = base / "repo.git"
        listed = run("git", "-C", repository, "rev-list", "--reverse", "refs/heads/main").stdout.split()
        latest = 0
        for commit in listed[:-1]:
            if self.recording.outside and commit not in self.recording.own:
                continue  # somebody else's, or with it: of a moment that came after the power was back
            shown_at = self._known.get(commit)
            if shown_at is None:
                view = self._listed(repository, commit)
                views = self.recording.views
                shown_at = next((n for n in range(latest, number + 1) if views[n] == view), None)
                if shown_at is None:
                    raise Violation(f"{where}: commit {commit} is no tree between {latest} and {number}")
                self._known[commit] = shown_at
                self.outcome.commits += 1
            if shown_at < latest:
                raise Violation(f"{where}: commit {commit} goes back from {latest} to {shown_at}")
            latest = shown_at


def _differences(due: Tree, found: Tree) -> list[str]:
    lines = [f"{path!r}: gone" for path in due.keys() - found.keys()]
    lines += [f"{path!r}: new" for path in found.keys() - due.keys()]
    lines += [
        f"{path!r}: {due[path]} -> {found[path]}"
        for path in due.keys() & found.keys()
        if due[path] != found[path]
    ]
    return sorted(lines)


def scan_again(recorder: Recorder) -> Platter:
    """The platter as it was when the recording began, to be played on."""
    return copy.deepcopy(recorder.origin)


def at_every_write(recording: Recording, seed: int, more: int = 0, again: int = 0) -> list[Loss]:
    """A loss at every write, torn, with what else survives by turns; *more* at any call; *again* twice."""
    dice = random.Random(seed)
    calls = recording.recorder.calls
    losses = [
        Loss(number, HOW[number % len(HOW)], dice.randrange(1 << 30))
        for number, call in enumerate(calls)
        if call.kind == "write"
    ]
    losses += [Loss(dice.randrange(len(calls) + 1), "some", dice.randrange(1 << 30)) for _ in range(more)]
    losses += [
        Loss(dice.randrange(len(calls) + 1), dice.choice(HOW), dice.randrange(1 << 30), again=1)
        for _ in range(again)
    ]
    return losses
