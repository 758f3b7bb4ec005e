"""Journals in a directory: what their files hold, and what a replay gives."""

from __future__ import annotations

from pathlib import Path

from caiafs.journal import Journal
from caiafs.records import Record, Remove, Write


def remove(name: bytes) -> Remove:
    return Remove(1, 0, name)


def replayed(journal: Journal, position: int = 0) -> list[Record]:
    return [plain(record) for record, _ in journal.replay(position)]


def plain(record: Record) -> Record:
    """With bytes of its own, where a replay gives a view."""
    return record._replace(data=bytes(record.data)) if isinstance(record, Write) else record


def reopened(directory: Path, position: int = 0) -> list[Record]:
    journal = Journal(str(directory))
    found = replayed(journal, position)
    journal.close()
    return found


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
