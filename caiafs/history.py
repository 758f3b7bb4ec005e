"""The latest commits of a branch with the files that each changed, for people to look at.

Read from the repository alone, so whoever reads needs no mount: the HTTP server's process, and
`caiafs status --watch`. Only first parents are followed: what a merge brought in is told by the merge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caiafs.errors import ObjectMissing, StoreError
from caiafs.store import DIRECTORY, Change, Commit, Oid, Store, TreeEntry

MAX_COMMITS = 100
MAX_FILES = 20
"""Files told of one commit."""


class History:
    """Reads the branch *ref* (a full name) of the repository at *git_dir*."""

    def __init__(self, git_dir: str, ref: bytes) -> None:
        self._store = Store.open(git_dir)
        self._ref = ref
        self._told: dict[Oid, dict[str, Any]] = {}

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The *limit* latest commits, the last one first, ready for JSON.

        Blocks; not from two threads at once. Raises StoreError.
        """
        found: list[dict[str, Any]] = []
        told: dict[Oid, dict[str, Any]] = {}
        oid = self._store.read_ref(self._ref)
        while oid is not None and len(found) < limit:
            one = self._told.get(oid)
            if one is None:
                one = self._tell(oid)
                if one is None:
                    break
            told[oid] = one
            found.append(one)
            oid = bytes.fromhex(one["parents"][0]) if one["parents"] else None
        # Commits do not change, and what is asked for now is mostly what is asked for next.
        self._told = self._told | told if len(self._told) < 4 * MAX_COMMITS else told
        return found

    def close(self) -> None:
        """Let go of the repository."""
        self._store.close()

    def _tell(self, oid: Oid) -> dict[str, Any] | None:
        try:
            commit = self._store.commit(oid)
        except ObjectMissing:
            return None  # a shallow clone ends somewhere
        files, more = self._files(commit)
        subject = commit.message.partition(b"\n")[0]
        return {
            "commit": oid.hex(),
            "time": commit.time,
            "author": _shown(commit.author),
            "subject": _shown(subject),
            "parents": [parent.hex() for parent in commit.parents],
            "files": files,
            "more_files": more,
        }

    def _files(self, commit: Commit) -> tuple[list[dict[str, str]], bool]:
        """What differs from the first parent, and whether there is more than is told."""
        files: list[dict[str, str]] = []
        try:
            before = self._store.commit(commit.parents[0]).tree if commit.parents else None
            for change in self._store.diff(before, commit.tree):
                for path, what in self._single(change):
                    if len(files) == MAX_FILES:
                        return files, True
                    files.append({"path": _shown(b"/".join(path)), "change": what})
        except ObjectMissing:
            return files, True  # a shallow or partial clone
        except StoreError as error:
            return [*files[: MAX_FILES - 1], {"path": str(error), "change": "unreadable"}], True
        return files, False

    def _single(self, change: Change) -> Iterator[tuple[tuple[bytes, ...], str]]:
        """The files of one change; a directory that came or went is all that is in it."""
        path, old, new, unfit = change
        if unfit:  # names in the directory *path* that no directory can show
            yield path, "changed"
            return
        if old is not None and new is not None and DIRECTORY not in (old.mode, new.mode):
            yield path, "changed"
            return
        for entry, what in ((old, "removed"), (new, "added")):
            if entry is not None:
                yield from ((below, what) for below in self._below(path, entry))

    def _below(self, path: tuple[bytes, ...], entry: TreeEntry) -> Iterator[tuple[bytes, ...]]:
        waiting = [(path, entry)]  # and no recursion: whoever makes a repository decides how deep it is
        while waiting:
            path, entry = waiting.pop()
            if entry.mode == DIRECTORY:
                entries = self._store.tree(entry.oid)
                waiting += [((*path, inner.name), inner) for inner in reversed(entries)]
            else:
                yield path


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")
