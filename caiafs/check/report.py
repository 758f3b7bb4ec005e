"""What a check found, in plain sentences, and how much of it is shown.

Filled by the other modules of this package, printed by `run_check`. A problem is something
that loses data, metadata or the mount; a note is worth knowing and harmless. Only problems
make the exit code 1. Findings of one area beyond SHOWN are counted, not listed: a broken
disk must not bury its own first line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ..store import show

SHOWN = 100

Progress = Callable[[int, int, str], None]
"""Told how much is done, of how much (0: nobody knows), and what."""


def silent(done: int, total: int, text: str) -> None:
    """The progress of a check that nobody watches."""


class Finding(NamedTuple):
    """One sentence. *remedy* is what --repair would do about it; "" where it can do nothing."""

    area: str
    text: str
    is_problem: bool
    remedy: str = ""


class Findings:
    """The findings of one branch."""

    def __init__(self) -> None:
        self.shown: list[Finding] = []
        self.problems = 0
        self.mendable = 0
        self._counts: Counter[tuple[str, bool]] = Counter()

    def problem(self, area: str, text: str, remedy: str = "") -> None:
        """Something is wrong."""
        self.problems += 1
        self.mendable += bool(remedy)
        self._add(Finding(area, text, True, remedy))

    def note(self, area: str, text: str) -> None:
        """Nothing is wrong, but a person may want to know."""
        self._add(Finding(area, text, False))

    def _add(self, finding: Finding) -> None:
        key = finding.area, finding.is_problem
        self._counts[key] += 1
        if self._counts[key] <= SHOWN:
            self.shown.append(finding)

    def say(self, branch: str, out: Callable[[str], None], *, repairing: bool) -> None:
        """Print one line for each finding. Unless *repairing*, problems say what --repair would do."""
        for finding in self.shown:
            kind = "problem" if finding.is_problem else "note"
            way_out = f"; --repair {finding.remedy}" if finding.remedy and not repairing else ""
            out(f"{branch}: {finding.area}: {kind}: {finding.text}{way_out}")
        for (area, is_problem), count in self._counts.items():
            if count > SHOWN:
                kind = "problems" if is_problem else "notes"
                out(f"{branch}: {area}: and {count - SHOWN} more {kind}")


class Where:
    """A place in a tree, as a chain of names: cheap to make, a path only when it is shown."""

    __slots__ = ("name", "parent")

    def __init__(self, parent: Where | None = None, name: bytes = b"") -> None:
        self.parent = parent
        self.name = name

    def parts(self) -> list[bytes]:
        """The names from the root down."""
        names = []
        step: Where | None = self
        while step is not None and step.parent is not None:
            names.append(step.name)
            step = step.parent
        return names[::-1]

    def path(self) -> bytes:
        """The names joined; b"" for the root."""
        return b"/".join(self.parts())

    def __str__(self) -> str:
        return show(self.path()) if self.parent is not None else "the root directory"


def several(count: int, one: str, many: str = "") -> str:
    """`1 record`, `3 records`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
