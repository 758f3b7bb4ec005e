"""Changes held back: git cannot take them, since the blob that they rest on does not read back.

A file that was changed in part goes to git as its old blob with the changes over it. Where that
blob is damaged, the commit is made without them: it has the file as git has it, and everything else
as it is. Yet a commit says that git has all of the journal up to its freeze, and the segments before
that are dropped. So what is held back is *carried*: appended again behind the freeze, and synced,
before git is asked. To recovery it looks like any other change, and the next commit tries it again.

It is let go when the blob reads back (committer/probes looks), or when nothing of the blob is needed
any more: the file was written whole, emptied or removed.

Weighed and not chosen: to keep the old segments (one change would keep 64 MiB of others' from being
dropped, and a journal with gaps in it is one that was damaged), and to keep the changes on the side
ref (an extent would need a second kind of address).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Any

import trio

from ..errors import FSError, JournalDamaged, JournalError, StoreError
from ..records import SET_SIZE, Record, SetAttr, Write
from ..tree import Batch, Directory, Extent, File, Node
from .directories import shown
from .recording import Recording

log = logging.getLogger(__name__)

STEP = 1024 * 1024
"""Bytes that are carried before other tasks get their turn."""
SHARE = 8
"""One part in so many of `journal_max` may be held back: each commit appends it again."""


class HeldBack(Recording):
    """Commits without the files that git cannot take, and their changes without a loss."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.held: dict[File, str] = {}
        """What is held back, each with the reason."""
        self.held_since: float | None = None

    @property
    def is_dirty(self) -> bool:
        """True if git is to be told something; what is held back is told with whatever comes next."""
        return self.tree.is_dirty and not (self.held and self.first_change is None)

    def hold(self, damaged: Mapping[int, str]) -> None:
        """Leave these files (inode numbers with reasons) out of commits from now on.

        Raises StoreError, with nothing held, where that is too much to be carried along.
        """
        found = {self.tree.get(ino): reason for ino, reason in damaged.items()}
        files = {node: reason for node, reason in found.items() if isinstance(node, File) and node.nlink}
        most = self.config.journal_max // SHARE
        if self.carried + sum(_size(node) for node in files) > most:
            raise StoreError(
                f"{next(iter(files.values()))}; what was changed in such files is more than could be held "
                f"back ({most:,} bytes), so all changes wait for that to be mended"
            )
        for node, reason in files.items():
            path = shown(self.tree.path(node))
            text = f"changes of {path} are not in git, but safe in the journal: {reason}"
            node.is_held = True
            self.held[node] = reason
            self.health.git.note(("held", node.ino), text)
            log.warning("%s", text, extra={"fields": {"event": "held-back", "path": path}})
        if self.held and self.held_since is None:
            self.held_since = trio.current_time()

    def rewrite(self, unreadable: Mapping[int, str]) -> bool:
        """Have the next commit write these directories (inode numbers with reasons) as memory has them, since
        what git has of them does not read back. False if that does not help."""
        for ino, reason in unreadable.items():
            node = self.tree.get(ino)
            if not isinstance(node, Directory) or not self.tree.rewrite(node):
                return False
            path = shown(self.tree.path(node)) if node.parent is not None else "the root directory"
            log.warning("%s is written anew, since git cannot read what it has of it: %s", path, reason)
        return True

    @property
    def carried(self) -> int:
        """Bytes that each commit appends to the journal again."""
        return sum(_size(node) for node in self.held)

    def refuse_held(self) -> None:
        """Raises StoreError if git does not have everything that it was to be given."""
        if self.held:
            names = ", ".join(shown(self.tree.path(node)) for node in list(self.held)[:3])
            more = f" and {len(self.held) - 3} more" if len(self.held) > 3 else ""
            raise StoreError(
                f"all else is committed, but changes of {names}{more} are only safe in the journal: "
                f"{next(iter(self.held.values()))}. Mend the repository, or write the file anew"
            )

    def let_go(self, node: File) -> None:
        """Git can take *node*: the next commit has it."""
        if self.held.pop(node, None) is None:
            return
        node.is_held = False
        self.held_since = self.held_since if self.held else None
        self.health.git.forget(("held", node.ino))
        self._note_change()

    def freeze(self) -> Batch:
        """As ever; but what is held back is in the batch as git has it, and counts as changed still.

        `carry` follows, in the same step.
        """
        for node in list(self.held):
            if not (node.nlink and self.tree.get(node.ino) is node and node.content.needs_base):
                self.let_go(node)
        batch = super().freeze()
        for node in self.held:
            self.tree.mark_attributes(node)
        return batch

    async def carry(self, batch: Batch) -> None:
        """Append what is held back again behind *batch*, durably. Raises StoreError: git must not be asked.

        Beginning at a blob that is as long as it ever was, recovery comes to what there is now: it is
        cut where it was cut, and of what others write meanwhile only the newest is carried.
        """
        if not self.held:
            return
        try:
            for node in self._alive():
                size = node.content.size
                self._append_again(node, [_resized(node, node.content.base_limit), _resized(node, size)])
            for node in self._alive():
                while node.nlink and (extents := _before(node, batch.position)):
                    records: list[Record] = [
                        Write(node.ino, one.offset, 0, self._bytes_of(one)) for one in extents
                    ]
                    places = self._append_again(node, records)
                    for extent, position in zip(extents, places, strict=True):
                        extent.position = position
                    await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(self.journal.sync)
        except (JournalError, JournalDamaged) as error:
            raise StoreError(f"what git cannot take now cannot be kept either: {error}") from error

    def _compact(self) -> None:
        if self.held:
            raise FSError(errno.ENOSPC, "the journal is full of what git cannot take")
        super()._compact()

    def _alive(self) -> list[File]:
        """What is held back and has a name: recovery would not find anything else."""
        return [node for node in self.held if node.nlink]

    def _bytes_of(self, extent: Extent) -> bytes:
        if extent.data is not None:
            return bytes(extent.data)
        return self.journal.read(extent.position, extent.length)

    def _append_again(self, node: File, records: list[Record]) -> list[int]:
        """Records that say again what is true already, so that nothing is applied; their positions."""
        if self.journal.is_volatile or self._refused() is not None:
            raise JournalError(self.health.journal.reason or "the journal takes nothing")
        names: list[Record] = []
        anchored: list[Node] = []
        self._anchor(node, names, anchored)
        where = self.journal.end
        try:
            positions = self.journal.append_all([*names, *records])
        except JournalError as error:
            self.health.journal.trouble(str(error), error.errno, takes_nothing=True)
            raise
        for one in anchored:
            one.anchor = where
        return positions[len(names) :]


def _resized(node: File, size: int) -> SetAttr:
    return SetAttr(node.ino, SET_SIZE, 0, 0, 0, size, 0, 0, 0)


def _before(node: File, position: int) -> list[Extent]:
    """The first of its extents that the journal has only before *position*, about STEP bytes of them."""
    found = []
    size = 0
    for extent in node.content.extents:
        if extent.position < position and size < STEP:
            found.append(extent)
            size += extent.length
    return found


def _size(node: File) -> int:
    return sum(extent.length for extent in node.content.extents)
