"""What a run found: figures of every round, and JSON small enough to keep one for each release."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .measure import Figures, quantile, spread

FORMAT = 1
FOLDER = Path(__file__).parent / "results"
SAID = "requests"


@dataclass
class Results:
    """Figures by case, peer and metric; the order of rounds is kept."""

    version: str
    form: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    machine: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    rounds: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    requests: dict[str, dict[str, float]] = field(default_factory=dict)
    """FUSE requests per operation, by case and kind, as the last round counted them."""
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    profiles: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, case: Case, key: str, figures: dict[str, Any]) -> None:
        """One round's figures. A case that compares for itself gives "peers": {name: figures}."""
        counted = figures.pop(SAID, None)
        if counted is not None:
            self.requests[case.key] = counted
        for name, own in figures.get("peers", {key: figures}).items():
            self._add(case.key, name, own)

    def _add(self, case: str, key: str, figures: dict[str, float]) -> None:
        place = self.rounds.setdefault(case, {}).setdefault(key, {})
        for metric, value in figures.items():
            place.setdefault(metric, []).append(_short(value))

    def fail(self, case: Case, key: str, why: str) -> None:
        self.failures.setdefault(case.key, {})[key] = why

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def note_speed(self, seconds: float) -> None:
        self.speeds.append(round(seconds, 4))

    # ---- asking

    @property
    def busy(self) -> bool:
        """Whether other work was going on, when the run began and still when it ended: then its ratios judge
        nothing. A load before alone is of a minute that may have ended with what made it."""
        before = float(self.machine.get("load_before", 0))
        after = float(self.machine.get("load_after", before))
        return min(before, after) > float(self.machine.get("cores", 1))

    def value(self, case: str, key: str, metric: str) -> float | None:
        """Median over the rounds, or None if there is none."""
        values = self.rounds.get(case, {}).get(key, {}).get(metric)
        return quantile(values, 0.5) if values else None

    def spread(self, case: str, key: str, metric: str) -> Figures | None:
        values = self.rounds.get(case, {}).get(key, {}).get(metric)
        return spread(values) if values else None

    # ---- keeping

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **vars(self)}, indent=None, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        found = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            raise ValueError(f"{path} is in a format that this version does not read")
        return cls(**found)

    def merge(self, newer: Results) -> None:
        """Take the cases of *newer* instead of the own ones."""
        self.rounds.update(newer.rounds)
        self.requests.update(newer.requests)
        self.peers.update(newer.peers)
        self.profiles.update(newer.profiles)
        for case in newer.rounds:
            self.failures.pop(case, None)
        self.failures.update(newer.failures)
        for text in newer.notes:
            self.note(text)


def _short(value: float) -> float:
    """Four significant digits are more than the spread leaves of any of them."""
    return float(f"{value:.4g}")
