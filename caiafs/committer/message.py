"""What a commit is called: in git's own manner, from what changed. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ..store import show

LISTED = 200
"""So many paths are named in the body; the rest are counted."""
SUBJECT = 72


class PathChange(NamedTuple):
    """One entry of the user's tree: (mode, object id) before and after; None: not there."""

    path: bytes
    old: tuple[int, bytes] | None
    new: tuple[int, bytes] | None


class Line(NamedTuple):
    """A change as `git log --name-status` would show it."""

    status: str
    path: bytes
    target: bytes = b""


VERBS = {"A": "Add", "M": "Update", "D": "Remove", "R": "Rename"}


def lines_of(changes: list[PathChange]) -> list[Line]:
    """The changes with renames recognised: what went and came with the same object is one line."""
    gone = {change.old: change.path for change in changes if change.old and not change.new}
    lines: list[Line] = []
    renamed: set[bytes] = set()
    for change in changes:
        if change.new and not change.old and change.new in gone:
            source = gone.pop(change.new)
            renamed.add(source)
            lines.append(Line("R", source, change.path))
        elif change.new and not change.old:
            lines.append(Line("A", change.path))
        elif change.new and change.old:
            lines.append(Line("M", change.path))
    lines += [Line("D", change.path) for change in changes if not change.new and change.path not in renamed]
    return sorted(lines, key=lambda line: line.target or line.path)


def subject(lines: list[Line]) -> str:
    """One line of at most 72 characters."""
    if len(lines) == 1:
        line = lines[0]
        text = f"{VERBS[line.status]} {show(line.path)}"
        if line.target:
            text += f" to {show(line.target)}"
        if len(text) <= SUBJECT:
            return text
        return f"{VERBS[line.status]} {_shortened(line.target or line.path)}"
    verbs = {line.status for line in lines}
    verb = VERBS[verbs.pop()] if len(verbs) == 1 else "Change"
    text = f"{verb} {len(lines)} files"
    folder = _common_folder([line.path for line in lines] + [line.target for line in lines if line.target])
    if folder and len(text) + len(" under ") + len(show(folder)) + 1 <= SUBJECT:
        text += f" under {show(folder)}/"
    return text


def body(lines: list[Line]) -> str:
    """One line for each path."""
    shown = []
    for line in lines[:LISTED]:
        to = f" -> {show(line.target)}" if line.target else ""
        shown.append(f"{line.status} {show(line.path)}{to}")
    if len(lines) > LISTED:
        shown.append(f"... and {len(lines) - LISTED} more")
    return "\n".join(shown)


def compose(changes: list[PathChange], asked: str | None, outside: str | None, notes: list[str]) -> bytes:
    """The whole message: *asked* for by a person, or made from the changes.

    *outside* names the commit whose changes are merged, *notes* what the merge had to decide.
    """
    lines = lines_of(changes)
    if asked:
        text = asked
    elif outside:
        text = f"Merge changes from outside ({outside[:12]})"
    elif lines:
        text = subject(lines)
    else:
        text = "Record the state of the directory"
    parts = [text.rstrip("\n")]
    if notes:
        parts.append("\n".join(notes))
    if lines and not asked and (len(lines) > 1 or notes or outside):
        parts.append(body(lines))
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace")


def _shortened(path: bytes) -> str:
    text = show(path)
    room = SUBJECT - len("Rename ") - 1
    return text if len(text) <= room else "…" + text[-(room - 1) :]


def _common_folder(paths: list[bytes]) -> bytes:
    folders = [path.split(b"/")[:-1] for path in paths]
    common = folders[0]
    for folder in folders[1:]:
        length = 0
        while length < min(len(common), len(folder)) and common[length] == folder[length]:
            length += 1
        common = common[:length]
    return b"/".join(common)
