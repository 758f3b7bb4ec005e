"""One branch, looked at from every side: journal, side ref, objects, and how they stand to each other.

Nothing here writes. What was found is kept in an `Examined`, which repair.py works from.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import CaiafsError, FormatNewer, StoreError
from ..filesystem.loader import SideState, read_side
from ..records import WRITE_DATA, Committed, Name, Record, Synced, Write
from ..records.side import side_ref
from ..store import Store, show
from .names import Names, subjects
from .replay import Misfit, Recovered, play
from .report import Findings, Progress, several, silent
from .scan import Damage, Scan, Segment, guess, look, read_stretches
from .walk import BACK, Walk

JOURNAL, SIDE, BRANCH = "journal", "side ref", "branch"
LOST_AND_FOUND = b"refs/heads/caiafs-lost+found/"
_NAMED = 4


class Branch(NamedTuple):
    """What is checked: the branch's short name, and where its mounts keep their state."""

    name: bytes
    state_dir: str

    @property
    def ref(self) -> bytes:
        return b"refs/heads/" + self.name

    @property
    def side_ref(self) -> bytes:
        return side_ref(self.name)

    def __str__(self) -> str:
        return show(self.name)


@dataclass
class Examined:
    """What is known of a branch after a check."""

    branch: Branch
    findings: Findings
    walk: Walk
    tip: bytes | None = None
    side_oid: bytes | None = None
    side: SideState | None = None
    ref_is_broken: bool = False
    side_ref_is_broken: bool = False
    """The ref's own file holds no ref."""
    is_newer: bool = False
    """A newer caiafs wrote the metadata: it is left alone."""
    scan: Scan | None = None
    floor: int = 0
    """Git has all of the journal before this position."""
    uncommitted: int = 0
    cut_at: int | None = None
    """Replay ends here, though whole records follow or a mount would refuse: None if it goes to the end."""
    starts_too_late: bool = False
    """Records that git does not have are missing before the first ones that are there."""
    lost_side: bytes | None = None
    """Where the journal says the side ref was, if there is none now."""
    recovered: Recovered | None = None

    @property
    def leftovers(self) -> bool:
        """Whether a mount set something aside that --repair would save."""
        return self.scan is not None and bool(self.scan.cut)

    def summary(self) -> str:
        """The figures of a clean branch."""
        parts = []
        if self.scan is not None:
            parts.append(
                f"{several(len(self.scan.segments), 'segment')} with {several(self.scan.records, 'record')}, "
                f"{self.uncommitted:,} of them not in git yet"
            )
        if self.side is not None:
            parts.append(f"metadata of {several(self.walk.directories, 'directory', 'directories')}")
        parts.append(f"{several(self.walk.objects, 'object')} read back")
        return ", ".join(parts)


def examine(
    store: Store, branch: Branch, spool: str, *, with_journal: bool, progress: Progress = silent
) -> Examined:
    """Check *branch*. Without the journal where a mount is busy with it."""
    findings = Findings()
    seen = Examined(branch, findings, Walk(store, findings, spool, progress))
    _read_refs(store, seen)
    if seen.side is not None:
        seen.walk.metadata(seen.side)
    if seen.tip is not None and (seen.side is None or seen.tip != seen.side.commit):
        seen.walk.commit(seen.tip)
    _relation(store, seen)
    if with_journal:
        progress(0, 0, "replaying the journal")
        _journal(store, seen)
    return seen


# ---- refs


def _read_refs(store: Store, seen: Examined) -> None:
    branch, findings = seen.branch, seen.findings
    try:
        seen.side_oid = store.read_ref(branch.side_ref)
    except StoreError as error:
        seen.side_ref_is_broken = is_loose(store, branch.side_ref)
        findings.problem(
            SIDE,
            f"{error}; the branch does not mount",
            "puts it where the journal says that it was, or sets it aside" if seen.side_ref_is_broken else "",
        )
    try:
        if seen.side_oid is not None:
            seen.side = read_side(store, seen.side_oid)
    except FormatNewer as error:
        seen.is_newer = True
        findings.problem(SIDE, str(error))
    except StoreError as error:
        findings.problem(SIDE, f"{error}; the branch does not mount", BACK)
    try:
        seen.tip = store.read_ref(branch.ref)
    except StoreError as error:
        seen.ref_is_broken = is_loose(store, branch.ref)
        known = seen.ref_is_broken and seen.side is not None and seen.side.commit is not None
        remedy = "puts it at the last commit of the mount" if known else ""
        findings.problem(BRANCH, f"{error}; the branch does not mount", remedy)


def is_loose(store: Store, ref: bytes) -> bool:
    """Whether *ref* has a file of its own, whatever that is."""
    return os.path.lexists(os.path.join(store.git_dir, os.fsdecode(ref)))


def _relation(store: Store, seen: Examined) -> None:
    side, tip, note = seen.side, seen.tip, seen.findings.note
    if side is None or side.commit == tip or seen.ref_is_broken:
        return
    if side.commit is None:
        note(
            BRANCH,
            "it has commits, but the metadata is of a time before the first: the next mount takes them in",
        )
        return
    if tip is None:
        note(
            BRANCH, f"there is none, but metadata of {side.commit.hex()[:12]}: the next commit makes it again"
        )
        return
    try:
        if store.is_ancestor(side.commit, tip):
            text = "the branch has commits from outside: the next mount takes them in"
        elif store.is_ancestor(tip, side.commit):
            text = "a commit is written that the branch does not show yet: the next mount finishes it"
        elif store.merge_base(tip, side.commit) is not None:
            text = "the branch and the last commit of the mount have parted: the next mount merges them"
        else:
            text = "the branch was replaced by an unrelated history: the next mount takes it in"
    except StoreError as error:
        seen.findings.problem(BRANCH, f"its history cannot be read: {error}")
        return
    note(BRANCH, f"at {tip.hex()[:12]}, metadata of {side.commit.hex()[:12]}: {text}")


# ---- the journal


def _journal(store: Store, seen: Examined) -> None:
    directory = seen.branch.state_dir
    side, findings = seen.side, seen.findings
    try:
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode):
            findings.problem(JOURNAL, f"{directory} is not a directory, and no mount will follow it")
            return
        if status.st_mode & 0o077:
            findings.problem(
                JOURNAL, f"{directory} is open to other users (mode {stat.S_IMODE(status.st_mode):o})",
                "closes it",
            )  # fmt: skip
        scan = seen.scan = look(directory, side.is_about) if side is not None else look(directory)
    except FileNotFoundError:
        if side is not None:
            findings.note(
                JOURNAL, f"there is none at {directory}; if the mount used state_dir=, give it as --state-dir"
            )
        return
    except OSError as error:
        raise CaiafsError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    _files(scan, findings)
    _position(store, seen, scan)
    _replay(store, seen, scan)
    names = Names(seen.recovered.tree if seen.recovered is not None else None)
    for damage in scan.damages(seen.floor):
        _damage(seen, scan, damage, names)
    if seen.recovered is not None and seen.recovered.misfit is not None:
        _misfit(seen, seen.recovered.misfit, names)


def _files(scan: Scan, findings: Findings) -> None:
    for path, mode in scan.open_to_others:
        findings.problem(JOURNAL, f"{path} is open to other users (mode {mode:o})", "closes it")
    for path, why in scan.unreadable:
        findings.problem(JOURNAL, f"{path}: {why}", "moves it into the backup")
    for segment in scan.alien:
        if segment.is_newer:
            findings.problem(
                JOURNAL, f"{segment.path}: {segment.header}; a newer caiafs wrote it and can read it"
            )
        else:
            why = segment.header or "belongs to another journal"
            findings.problem(
                JOURNAL, f"{segment.path}: {why}", "moves it into the backup and saves the data it holds"
            )
    if scan.newer_at is not None:
        findings.problem(
            JOURNAL, f"{scan.newer_at}: a newer caiafs wrote records of it; mount with that version"
        )
    for segment in scan.segments:
        if segment.header:
            findings.problem(JOURNAL, f"{segment.path}: {segment.header}", "writes the header again")
        if segment.limit < segment.size:
            size = several(segment.size - segment.limit, "byte")
            findings.note(JOURNAL, f"{segment.path}: its last {size} are of a write that failed")
    for segment in scan.unborn:
        findings.note(JOURNAL, f"{segment.name} was only begun when a crash came; the next mount removes it")
    for path in scan.cut:
        findings.note(
            JOURNAL,
            f"{path} holds what was cut off after a crash: written, but not yet synced; --repair saves its "
            "data under lost+found",
        )
    for name in scan.foreign:
        findings.note(
            JOURNAL, f"{show(os.fsencode(os.path.join(scan.directory, name)))} is not a file of caiafs"
        )


def _position(store: Store, seen: Examined, scan: Scan) -> None:
    """How the journal and the side ref fit together."""
    side, findings = seen.side, seen.findings
    if side is None and seen.side_oid is not None:
        seen.uncommitted = _changes(scan, 0)
        return  # what git has cannot be told before the side ref reads well
    if not scan.segments:
        if side is not None and not scan.alien:
            findings.note(
                JOURNAL,
                f"it is empty, though the metadata speaks of journal {side.journal.hex()[:8]}; if the mount "
                "used state_dir=, give it as --state-dir",
            )
        return
    is_same = side is not None and (not scan.id or side.is_about(scan.id))
    start = side.position if side is not None and is_same else scan.begin
    seen.floor = max(start, scan.base)
    seen.uncommitted = _changes(scan, seen.floor)
    if seen.floor > scan.end:
        findings.note(
            JOURNAL,
            f"it ends at position {scan.end}, and git has all before {seen.floor}: the machine lost power",
        )
    if seen.side_oid is None and _reads_well(store, scan.committed) and _leads_to(store, seen, scan):
        assert scan.committed is not None
        seen.lost_side = scan.committed.side
        if seen.side_ref_is_broken:
            return  # which was said
        findings.problem(
            SIDE,
            f"{os.fsdecode(seen.branch.side_ref)} is gone, though the journal says that it was at "
            f"{seen.lost_side.hex()[:12]}",
            "puts it back",
        )
    first = next((segment.follows for segment in scan.segments if segment.end > seen.floor), seen.floor)
    if first <= seen.floor or not seen.uncommitted:
        return
    seen.starts_too_late = True
    findings.problem(
        JOURNAL,
        f"its records from position {seen.floor} to {first} are missing",
        f"saves the data of the {several(seen.uncommitted, 'record')} after them under lost+found",
    )


def _leads_to(store: Store, seen: Examined, scan: Scan) -> bool:
    """Whether the last commit of the mount is still in the history of the branch."""
    if seen.tip is None or scan.committed is None:
        return False
    try:
        return store.is_ancestor(scan.committed.commit, seen.tip)
    except StoreError:
        return False


def _reads_well(store: Store, committed: Committed | None) -> bool:
    if committed is None:
        return False
    try:
        read_side(store, committed.side)
    except StoreError:
        return False
    return True


def _changes(scan: Scan, floor: int) -> int:
    """How many whole records git does not have."""
    return sum(
        segment.start + at >= floor and is_change(record)
        for segment in scan.segments
        if segment.end > floor
        for record, at, _ in read_stretches(segment, beyond=True)
    )


def is_change(record: Record) -> bool:
    """True unless *record* only says something about the journal itself."""
    return not isinstance(record, Synced | Committed | Name)


def _replay(store: Store, seen: Examined, scan: Scan) -> None:
    """Play the next mount's recovery. Where nothing says what the tree was, try what a mount would."""
    if seen.starts_too_late or seen.lost_side or (seen.side is None and seen.side_oid is not None):
        return
    heads = [seen.side.commit] if seen.side is not None else [seen.tip, *_starting_points(store, seen)]
    for head in heads:
        try:
            seen.recovered = play(store, head, seen.side, scan.directory, scan.read(seen.floor))
        except CaiafsError as error:
            seen.findings.problem(JOURNAL, f"it cannot be replayed: {error}")
            return
        if seen.recovered.misfit is None:
            return


def _starting_points(store: Store, seen: Examined) -> Iterable[bytes | None]:
    """A branch without a commit may have begun where HEAD is, as mount has it."""
    current = store.head_branch()
    if seen.tip is None and current is not None and current != seen.branch.name:
        head = store.read_ref(b"refs/heads/" + current)
        if head is not None:
            return (head,)
    return ()


def _damage(seen: Examined, scan: Scan, damage: Damage, names: Names) -> None:
    size = several(damage.size, "byte")
    where = f"before {_following(scan, damage)}" if damage.segment is None else damage.segment.path
    at = f"position {damage.position}" if damage.segment is None else f"byte {damage.offset}"
    was = None if damage.segment is None else guess(damage.segment, damage.offset)
    about = "" if was is None else f"; the first of them seem to be {names.describe(was)}"
    if damage.position + damage.size <= seen.floor:
        seen.findings.note(
            JOURNAL, f"{where}: {size} damaged at {at} ({damage.reason}); git has what was there"
        )
        return
    if not damage.followed and damage.position >= max(scan.synced, seen.floor):
        seen.findings.note(
            JOURNAL, f"{where}: its end is torn at {at} ({size}: {damage.reason}): normal after a crash"
        )
        return
    promised = min(damage.size, max(0, scan.synced - damage.position))
    if promised:
        text = f"{size} lost at {at}, {promised:,} of which were on disk ({damage.reason}){about}"
        remedy = _cut_remedy(seen, scan, damage.position, names)
        _cut(seen, damage.position)
    else:
        text = f"{size} lost at {at} ({damage.reason}){about}; not yet synced, but whole records follow"
        remedy = _cut_remedy(seen, scan, damage.position, names)
        _cut(seen, damage.position)
    seen.findings.problem(JOURNAL, f"{where}: {text}", remedy)


def _misfit(seen: Examined, misfit: Misfit, names: Names) -> None:
    names.feed(misfit.record)
    position = misfit.position - (WRITE_DATA if isinstance(misfit.record, Write) else 0)
    _cut(seen, position)
    assert seen.scan is not None
    seen.findings.problem(
        JOURNAL,
        f"{names.describe(misfit.record)}, at position {position}, does not fit the tree it was "
        f"written for ({misfit.reason}); the branch does not mount",
        _cut_remedy(seen, seen.scan, position, names),
    )


def _cut(seen: Examined, position: int) -> None:
    seen.cut_at = position if seen.cut_at is None else min(seen.cut_at, position)


def _cut_remedy(seen: Examined, scan: Scan, position: int, names: Names) -> str:
    """What happens to the records from *position* on, and which files they are about."""
    inos: dict[int, None] = {}
    count = 0
    for segment in scan.segments:
        for record, at, _ in read_stretches(segment, beyond=True):
            if segment.start + at >= position and is_change(record):
                names.feed(record)
                count += 1
                if len(inos) <= _NAMED:
                    inos.update(dict.fromkeys(subjects(record)))
    keeps = f"keeps the journal up to position {max(position, seen.floor)}"
    if not count:
        return keeps
    listed = ", ".join(names.label(ino) for ino in list(inos)[:_NAMED])
    more = " and others" if len(inos) > _NAMED else ""
    place = os.fsdecode(LOST_AND_FOUND.removeprefix(b"refs/heads/")) + str(seen.branch)
    return f"{keeps} and saves the data of {several(count, 'record')} after it on {place} ({listed}{more})"


def _following(scan: Scan, damage: Damage) -> str:
    found: Segment = next(s for s in scan.segments if s.start >= damage.position + damage.size)
    return found.path
