"""Settings that change while the mount serves: which can, and what is said of those that cannot.

SIGHUP, `caiafs reload` and `mount -o remount` all come here. What cannot change without a new
mount is kept as it is and named; a file that does not hold is refused as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..config import Config

LIVE = frozenset(
    {
        "author",
        "commit_interval",
        "commit_quiet",
        "enable_fallback",
        "file_max",
        "journal_max",
        "log_level",
        "memory",
        "operation_timeout",
        "retry_ceiling",
        "retry_pause",
        "worker_timeout",
    }
)
"""Settings that every part reads anew each time it needs them."""
_NOT_SETTINGS = {"origins", "notes", "given"}


@dataclass(frozen=True, slots=True)
class Change:
    """What a reload came to: the settings in force, and the names that changed or could not."""

    config: Config
    changed: tuple[str, ...]
    kept: tuple[str, ...]

    def describe(self) -> str:
        """One line for the log and for whoever asked."""
        old_and_new = ", ".join(f"{name} = {_shown(getattr(self.config, name))}" for name in self.changed)
        said = f"reloaded: {old_and_new}" if self.changed else "reloaded: nothing has changed"
        if self.kept:
            said += f"; only a new mount changes {', '.join(self.kept)}"
        return said


def compare(current: Config, wanted: Config) -> Change:
    """Take from *wanted* what can change in a running mount."""
    changed, kept, values = [], [], {}
    origins = dict(current.origins)
    for each in fields(Config):
        name = each.name
        if name in _NOT_SETTINGS:
            continue
        if name in LIVE:
            values[name] = getattr(wanted, name)
            origins.pop(name, None)
            if name in wanted.origins:
                origins[name] = wanted.origins[name]
            if values[name] != getattr(current, name):
                changed.append(name)
        elif getattr(wanted, name) != getattr(current, name):
            kept.append(name)
    config = current.with_(**values, origins=origins, given=wanted.given)
    return Change(config, tuple(changed), tuple(kept))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
