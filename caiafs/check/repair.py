"""Mending: what can be saved is saved, and nothing is changed before a copy of it exists.

The order that nothing breaks: the backup directory and the backup refs, then the side ref,
then, judged anew, what the journal holds beyond its damage onto the lost+found branch, and
only then the journal itself. A repair that is interrupted can be run again.

A side ref that cannot be read at all goes back to the newest metadata that can, as long as
that belongs to something in the branch's history; the branch then counts as ahead, and the
next mount takes the rest in as it takes in any commit. If there is none, the ref is set
aside, and the branch mounts as plain git. What is damaged in one directory costs that
directory's records and no more.

A journal is cut before its first damage: what remains is the branch at one moment. Applying
later records over a hole was weighed and not chosen, since a file could then hold a mix
that it never had. They go onto the lost+found branch, as files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable

from ..errors import CaiafsError, StoreError
from ..filesystem.loader import HASHED_INO, SideState, read_side
from ..journal import HEADER_SIZE
from ..journal.segment import Header, encode_header
from ..records import NO_OID, Adopt, Create, Name
from ..records.side import (
    SIDE_NAME_MAX,
    SideRecord,
    bucket_count,
    bucket_name,
    decode_records,
    encode_meta,
    encode_record,
    join_records,
    quote_name,
    side_message,
)
from ..store import (
    BLOB,
    COMMIT,
    DIRECTORY,
    REGULAR,
    TREE,
    PackWriter,
    Store,
    encode_commit,
    patch_tree,
    valid_identity,
)
from . import refs
from .branch import Branch, Examined, examine
from .names import Names
from .report import Findings
from .salvage import IDENTITY, Salvage
from .scan import BACKUP_PREFIX, Scan, Segment, look_into_cut, read_stretches
from .walk import Mend, Walk

BACKUP_REFS = b"refs/caiafs-backup/"
_STEPS_BACK = 10_000
_PASSES = 5

TreeChanges = dict[bytes, tuple[int, bytes] | None]


class Repair:
    """One repair of one branch, whose lock is held. *say* is given one sentence for each thing done."""

    def __init__(self, store: Store, seen: Examined, spool: str, say: Callable[[str], None]) -> None:
        self._store = store
        self._branch = seen.branch
        self._spool = spool
        self._say = say
        self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._backup: str | None = None
        identity = store.configured_identity() or IDENTITY
        self._identity = identity if valid_identity(identity) else IDENTITY
        self._tmp = os.path.join(store.git_dir, "caiafs", "tmp")
        self._salvage = Salvage(Names())

    def run(self, seen: Examined) -> Examined:
        """Mend what *seen* has found; what a new look finds then. Raises CaiafsError, OSError."""
        os.makedirs(self._tmp, mode=0o700, exist_ok=True)
        for _ in range(_PASSES):  # a record that goes may leave a hard link alone, and so on
            if not self._mend_side(seen):
                break
            seen = self._look()
        if seen.scan is not None:
            self._mend_journal(seen, seen.scan)
        if self._backup is not None:
            self._say(f"what was changed is as it was in {self._backup}")
        return self._look()

    def _look(self) -> Examined:
        return examine(self._store, self._branch, self._spool, with_journal=True)

    # ---- the backup

    def _backup_dir(self) -> str:
        if self._backup is None:
            path = os.path.join(self._branch.state_dir, BACKUP_PREFIX + self._stamp)
            number = 1
            while os.path.lexists(path):
                number += 1
                path = os.path.join(self._branch.state_dir, f"{BACKUP_PREFIX}{self._stamp}-{number}")
            os.makedirs(path, mode=0o700)
            self._backup = path
            _sync(os.path.dirname(path))
        return self._backup

    def _copy(self, path: str) -> None:
        """A copy of *path* is on disk before *path* is changed."""
        copy = os.path.join(self._backup_dir(), os.path.basename(path))
        shutil.copyfile(path, copy, follow_symlinks=False)
        os.chmod(copy, 0o600)
        _sync(copy)
        _sync(self._backup_dir())

    def _move(self, path: str) -> None:
        os.rename(path, os.path.join(self._backup_dir(), os.path.basename(path)))
        _sync(self._backup_dir())
        _sync(os.path.dirname(path))

    def _keep_ref(self, name: bytes, oid: bytes) -> None:
        """Write down where *name* was: as a ref if the commit can be read, and in the backup in any case."""
        path = os.path.join(self._backup_dir(), "refs")
        with open(path, "ab") as file:
            file.write(oid.hex().encode() + b" " + name + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(StoreError):
            self._store.commit(oid)
            number = os.path.basename(self._backup_dir()).removeprefix(BACKUP_PREFIX)
            ref = BACKUP_REFS + number.encode() + b"/" + self._branch.name
            if self._store.swap_ref(ref, None, oid, b"caiafs check: backup", self._identity):
                self._say(
                    f"{os.fsdecode(name)} was at {oid.hex()[:12]}: kept as {os.fsdecode(ref)}, which can be "
                    "deleted once nothing is missed"
                )

    def _set_aside(self, name: bytes) -> None:
        """Take away what stands for the ref *name* and is none; the backup has it."""
        path = os.path.join(self._store.git_dir, os.fsdecode(name))
        kept = os.path.join(self._backup_dir(), os.fsdecode(name).replace("/", "%2F"))
        if os.path.isfile(path) and not os.path.islink(path):
            shutil.copyfile(path, kept)
            _sync(kept)
            _sync(self._backup_dir())
            refs.remove(self._store.git_dir, name)
        else:
            os.rename(path, kept)
            _sync(os.path.dirname(path))

    # ---- the side ref

    def _mend_side(self, seen: Examined) -> bool:
        """True if the side ref was moved."""
        name = self._branch.side_ref
        if seen.is_newer or seen.walk.is_newer:
            self._say("the metadata was left alone: a newer caiafs wrote it")
            return False
        if seen.side_ref_is_broken:
            self._set_aside(name)
            if seen.lost_side is None:
                self._say(
                    f"{os.fsdecode(name)} was broken, and is no more: the branch mounts as plain git; "
                    "owners, times, attributes, empty directories and the like are lost"
                )
                return True
        if seen.ref_is_broken and seen.side is not None and seen.side.commit is not None:
            self._set_aside(self._branch.ref)
            if not self._swap(self._branch.ref, None, seen.side.commit):
                raise StoreError(f"{os.fsdecode(self._branch.ref)} moved while it was mended; try again")
            shown = seen.side.commit.hex()[:12]
            self._say(
                f"{os.fsdecode(self._branch.ref)} was broken: it is at {shown}, the mount's last commit"
            )
            return True
        if seen.side_oid is not None and (seen.side is None or seen.walk.side_is_lost):
            return self._go_back(seen, name, seen.side_oid)
        if seen.lost_side is not None and self._swap(name, None, seen.lost_side):
            self._say(f"{os.fsdecode(name)} was gone: it is at {seen.lost_side.hex()[:12]} again")
            return True
        if seen.side is not None and (seen.walk.mends or seen.walk.meta_is_wrong):
            return self._prune(seen, seen.side, name)
        return False

    def _go_back(self, seen: Examined, name: bytes, oid: bytes) -> bool:
        if seen.tip is not None:
            try:
                self._store.commit(seen.tip)
            except StoreError:
                self._say("the branch's own commit cannot be read: bring it back first, from a clone")
                return False
        good = self._older(oid, seen.tip)
        self._keep_ref(name, oid)
        if good is None:
            refs.remove(self._store.git_dir, name)
            self._say(
                f"{os.fsdecode(name)} was set aside, since no older metadata can be read: the branch mounts "
                "as plain git; owners, times, attributes, empty directories and the like are lost"
            )
            return True
        if not self._swap(name, oid, good.oid):
            raise StoreError(f"{os.fsdecode(name)} moved while it was mended; try again")
        self._say(
            f"{os.fsdecode(name)} went back to {good.oid.hex()[:12]}, metadata of commit "
            f"{(good.commit or b'').hex()[:12]}: what changed since has git's modes and times"
        )
        return True

    def _older(self, oid: bytes, tip: bytes | None) -> SideState | None:
        """The newest metadata before *oid* that reads well and belongs to the history of *tip*."""
        for _ in range(_STEPS_BACK):
            try:
                parents = self._store.commit(oid).parents
            except StoreError:
                return None
            if not parents:
                return None
            oid = parents[0]
            side = self._reads_well(oid)
            if side is not None and (tip is None or self._is_behind(side.commit, tip)):
                return side
        return None

    def _reads_well(self, oid: bytes) -> SideState | None:
        findings = Findings()
        try:
            side = read_side(self._store, oid)
        except StoreError:
            return None
        Walk(self._store, findings, self._spool).metadata(side)
        return None if findings.problems else side

    def _is_behind(self, commit: bytes | None, tip: bytes) -> bool:
        try:
            return commit is None or self._store.is_ancestor(commit, tip)
        except StoreError:
            return False

    def _swap(self, name: bytes, old: bytes | None, new: bytes) -> bool:
        return self._store.swap_ref(name, old, new, b"caiafs check: repair", self._identity)

    def _prune(self, seen: Examined, side: SideState, name: bytes) -> bool:
        """Write the metadata again without what is broken in it."""
        for orphan in seen.walk.orphans:
            self._salvage.take_orphan(orphan)
        self._commit_salvage()
        self._keep_ref(name, side.oid)
        old = self._store.commit(side.oid)
        with self._store.pack_writer(self._tmp) as packer:
            free = max(seen.walk.next_ino, _next_in_journal(seen.scan))
            metadata = _Metadata(self._store, packer, side, free)
            root = metadata.mended(seen.walk.mends)
            meta = metadata.meta(seen.walk.links)
            entry = None if root is None else (DIRECTORY, root)
            top = patch_tree(self._store.tree_bytes(old.tree), {b"root": entry, b"meta": (REGULAR, meta)})
            # A parent that cannot be read would stop git gc for good; the backup ref has it.
            parents: tuple[bytes, ...] = () if seen.walk.has_bad_objects else (side.oid,)
            parents += () if side.commit is None else (side.commit,)
            message = side_message(side.commit, side.journal, side.position)
            now = int(time.time())
            data = encode_commit(
                packer.add(TREE, top), parents, self._identity, self._identity, now, now, 0, message
            )
            commit = packer.add(COMMIT, data)
            pack = packer.finish()
        try:
            if not self._swap(name, side.oid, commit):
                raise StoreError(f"{os.fsdecode(name)} moved while it was mended; try again")
        finally:
            if pack is not None:
                pack.release()
        self._say(f"{os.fsdecode(name)} was written anew, as {commit.hex()[:12]}")
        return True

    # ---- the journal

    def _mend_journal(self, seen: Examined, scan: Scan) -> None:
        if scan.newer_at is not None or any(segment.is_newer for segment in scan.alien):
            self._say("the journal was left alone: a newer caiafs wrote it")
            return
        cut, keep = self._plan(seen, scan)
        scan.id = scan.id or os.urandom(16)
        names = Names(seen.recovered.tree if seen.recovered is not None else None)
        self._salvage = Salvage(names)
        for segment in scan.segments:
            if segment.end > seen.floor and (segment not in keep or (cut is not None and segment.end > cut)):
                self._salvage.take(segment, seen.floor if cut is None else cut)
        cuts = [look_into_cut(path) for path in scan.cut]
        for other in (*scan.alien, *cuts):
            self._salvage.take(other)
        self._commit_salvage()
        for segment in reversed(scan.segments):
            if segment not in keep:
                self._move(segment.path)
                self._say(f"{segment.name} was moved into the backup")
            else:
                self._mend_segment(seen.floor, scan, segment, cut)
        for path in (*(s.path for s in (*scan.alien, *cuts)), *(path for path, _ in scan.unreadable)):
            self._move(path)
            self._say(f"{os.path.basename(path)} was moved into the backup")
        self._close(seen.branch, scan)

    def _plan(self, seen: Examined, scan: Scan) -> tuple[int | None, list[Segment]]:
        """Where the journal is cut (None: nowhere), and which segments stay."""
        cut = None if seen.cut_at is None else max(seen.cut_at, seen.floor)
        if seen.starts_too_late:
            return seen.floor, []
        keep = [segment for segment in scan.segments if cut is None or segment.start < cut]
        return cut, keep

    def _mend_segment(self, floor: int, scan: Scan, segment: Segment, cut: int | None) -> None:
        limit = segment.limit if cut is None else min(segment.limit, cut - segment.start)
        if limit == segment.size and not segment.header:
            return
        self._copy(segment.path)
        fd = os.open(segment.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if segment.header:
                header = Header(scan.id, segment.start, floor, segment.follows)
                os.pwrite(fd, encode_header(header), 0)
                self._say(f"{segment.name}: its header was written again")
            if limit < segment.size:
                os.ftruncate(fd, max(limit, HEADER_SIZE))
                self._say(f"{segment.name}: cut off after {limit} bytes of {segment.size}")
            os.fsync(fd)
        finally:
            os.close(fd)

    def _close(self, branch: Branch, scan: Scan) -> None:
        """Nobody else may read what a mount keeps."""
        for path, _ in (*scan.open_to_others, (branch.state_dir, 0)):
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if mode & 0o077 and not stat.S_ISLNK(mode):
                    os.chmod(path, 0o700 if stat.S_ISDIR(mode) else 0o600)
                    self._say(f"{path} was open to other users: it is not any more")

    def _commit_salvage(self) -> None:
        if self._salvage:
            ref = self._salvage.commit(self._store, self._branch.name, self._tmp)
            self._say(f"{self._salvage} saved on {os.fsdecode(ref.removeprefix(b'refs/heads/'))}")
            self._salvage = Salvage(Names())


class _Metadata:
    """The side tree of *side*, written again with changes; *next_ino* is free for new numbers."""

    def __init__(self, store: Store, packer: PackWriter, side: SideState, next_ino: int) -> None:
        self._store = store
        self._packer = packer
        self._side = side
        said = side.meta.next_ino
        self._next_ino = max(next_ino, said if said < HASHED_INO else 0)

    def meta(self, links: tuple[tuple[int, bytes], ...]) -> bytes:
        """The `meta` blob that goes with it."""
        meta = self._side.meta._replace(next_ino=self._next_ino, links=links)
        return self._packer.add(BLOB, encode_meta(meta))

    def mended(self, mends: list[Mend]) -> bytes | None:
        """The root's side tree with all *mends* made, the deepest directories first; None if it is empty."""
        by_place: dict[tuple[bytes, ...], list[Mend]] = {(): []}
        for mend in mends:
            by_place.setdefault(mend.parts, []).append(mend)
        above: dict[tuple[bytes, ...], TreeChanges] = {}
        new = self._side.root_side
        for parts in _deepest_first(by_place):
            old = _find(self._store, self._side.root_side, parts)
            if old is None:
                continue
            changes = above.pop(parts, {})
            changes.update(self._changes(old, by_place.get(parts, [])))
            tree = patch_tree(self._store.tree_bytes(old), changes)
            new = self._packer.add(TREE, tree) if tree else None
            if parts:
                entry = None if new is None else (DIRECTORY, new)
                above.setdefault(parts[:-1], {})[b"=" + quote_name(parts[-1])] = entry
        return new

    def _changes(self, tree: bytes, mends: list[Mend]) -> TreeChanges:
        changes: TreeChanges = {mend.entry: None for mend in mends if mend.entry}
        if all(mend.entry for mend in mends):
            return changes
        buckets = {e.name: e.oid for e in self._store.tree(tree) if e.name.startswith(b"@")}
        records: dict[bytes, SideRecord] = {}
        for bucket, oid in buckets.items():
            if bucket not in changes:
                records.update((r.name, r) for r in decode_records(self._store.blob(oid)))
                changes[bucket] = None
        for mend in mends:
            if mend.name and mend.fields is None:
                records.pop(mend.name, None)
            elif mend.name and mend.fields is not None:
                records[mend.name] = self._changed(records.get(mend.name), mend.name, dict(mend.fields))
        widths = {len(bucket) for bucket in buckets}
        count = bucket_count(len(records), 16 ** (widths.pop() - 1) if len(widths) == 1 else 1)
        grouped: dict[bytes, dict[bytes, bytes]] = {}
        for name, record in records.items():
            grouped.setdefault(bucket_name(name, count), {})[name] = encode_record(record)
        for bucket, members in grouped.items():
            changes[bucket] = REGULAR, self._packer.add(BLOB, join_records(members))
        return changes

    def _changed(self, record: SideRecord | None, name: bytes, fields: dict[str, int]) -> SideRecord:
        if fields.get("ino") == 0:
            fields["ino"] = self._next_ino
            self._next_ino += 1
        if record is None:
            root, time = self._side.meta.root, self._side.meta.epoch
            record = SideRecord(name, 0, 0, root.uid, root.gid, 1, 0, time, time, time, 0, 0, NO_OID)
        return record._replace(**fields)  # type: ignore[arg-type]  # all that is ever changed are numbers


def _next_in_journal(scan: Scan | None) -> int:
    """The first inode number that no record of the journal has."""
    highest = 0
    for segment in scan.segments if scan is not None else ():
        for record, _, _ in read_stretches(segment, beyond=True):
            if isinstance(record, Create | Name):
                found = record.ino
            else:
                found = max((e.ino for e in record.entries), default=0) if isinstance(record, Adopt) else 0
            if highest < found < HASHED_INO:
                highest = found
    return highest + 1


def _deepest_first(places: Iterable[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
    """*places* and everything above them."""
    found = {parts[:depth] for parts in places for depth in range(len(parts) + 1)}
    return sorted(found, key=len, reverse=True)


def _find(store: Store, root: bytes | None, parts: tuple[bytes, ...]) -> bytes | None:
    """The side tree of the directory *parts*."""
    oid = root
    for name in parts:
        if oid is None:
            return None
        try:
            oid = {entry.name: entry.oid for entry in store.tree(oid, SIDE_NAME_MAX)}.get(
                b"=" + quote_name(name)
            )
        except CaiafsError:
            return None
    return oid


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
