"""The commits of a repository against what was done: none missing, doubled or torn.

Each writer counts before and after each of its operations (see model.COUNTERS). So a commit says
itself between which two operations of each writer it was taken, and must show exactly what was
there then. Read with git's own commands, once for each commit.
"""

from __future__ import annotations

from pathlib import Path

from support.drill.writers import View, Writer
from support.mounts import run


class History:
    """What is known of one repository's branch, and what was wrong with it."""

    def __init__(self, repository: Path, branch: str = "main") -> None:
        self.repository = repository
        self.branch = branch
        self.tip: str | None = None
        self.commits = 0
        self.exact = 0
        self._counts: dict[str, tuple[int, int]] = {}
        self._tree = ""
        self.is_deleted = False  # by somebody else, until the next commit makes it again

    def _git(self, *words: str, status: int | None = 0) -> str:
        return run("git", "-C", self.repository, *words, status=status).stdout

    def begin_anew(self) -> None:
        """Somebody rewrote the history: what is on the branch now is where the next look begins."""
        self.tip = self._git("rev-parse", f"refs/heads/{self.branch}").strip()
        self._tree = ""

    def check(self, writers: list[Writer]) -> list[str]:
        """Look at every commit that is new since the last look; what is wrong, one line each."""
        ref = f"refs/heads/{self.branch}"
        tip = self._git("for-each-ref", "--format=%(objectname)", ref).strip()
        if not tip:
            gone = self.tip is not None and not self.is_deleted
            return [f"the branch that was at {self.tip} is gone"] if gone else []
        self.is_deleted = False
        if tip == self.tip:
            return []
        lines = []
        if self.tip is not None and self._git("merge-base", self.tip, tip, status=None).strip() != self.tip:
            lines.append(f"{self.tip} was on the branch and is not in the history of {tip}")
        span = [tip] if self.tip is None else [f"{self.tip}..{tip}"]
        listed = self._git("log", "--first-parent", "--reverse", "--format=%H %T %P", *span)
        for line in listed.splitlines():
            commit, tree, *parents = line.split()
            lines += self._check_one(commit, tree, len(parents), writers)
        self.tip = tip
        for writer in writers:
            self._forget(writer)
        return lines

    def _check_one(self, commit: str, tree: str, parents: int, writers: list[Writer]) -> list[str]:
        self.commits += 1
        lines = []
        if tree == self._tree and parents < 2:
            lines.append(f"{commit}: has the same tree as the commit before it")
        self._tree = tree
        folders: dict[str, View] = {writer.name: {} for writer in writers}
        for entry in self._git("ls-tree", "-r", "-z", commit).split("\0"):
            if entry:
                words, _, path = entry.partition("\t")
                mode, _, blob = words.split(" ")
                folder, _, name = path.partition("/")
                if folder in folders:
                    folders[folder][name] = mode, blob
        for writer in writers:
            if folders[writer.name]:
                lines += self._check_folder(commit, writer, folders[writer.name])
        return lines

    def _check_folder(self, commit: str, writer: Writer, view: View) -> list[str]:
        where = f"{commit[:12]}: {writer.name}"
        counted = []
        for name in ("a", "z"):
            _, blob = view.pop(name, ("", ""))
            text = self._git("cat-file", "blob", blob) if blob else "00000000"
            if len(text) not in (0, 8):
                return [f"{where}/{name}: {text!r}"]
            counted.append(int(text or 0))
        begun, done = counted
        lines = []
        if done not in (begun, begun - 1):
            return [f"{where}: begun {begun}, done {done}: a mix of two moments"]
        before = self._counts.get(writer.name, (0, 0))
        if (begun, done) < before:
            lines.append(f"{where}: goes back from {before} to {(begun, done)}")
        self._counts[writer.name] = begun, done
        step = writer.steps.get(done)
        if step is None:
            return [*lines, f"{where}: shows operation {done}, which nobody did"]
        ignore: frozenset[str] = frozenset()
        if begun != done:
            following = writer.steps.get(begun)
            ignore = following.touched if following is not None else frozenset()
            if following is None:
                return [*lines, f"{where}: shows operation {begun}, which nobody began"]
        else:
            self.exact += 1
        wrong = [
            name
            for name in sorted(view.keys() | step.view.keys())
            if name not in ignore and view.get(name) != step.view.get(name)
        ]
        return lines + [
            f"{where}/{name}: {view.get(name)} instead of {step.view.get(name)} after operation {done}"
            for name in wrong[:5]
        ]

    def _forget(self, writer: Writer) -> None:
        """Steps before what the branch shows are not asked for again."""
        _, done = self._counts.get(writer.name, (0, 0))
        for number in [number for number in writer.steps if number < done - 1]:
            del writer.steps[number]
