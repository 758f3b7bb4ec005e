"""The git backend: a document is a blob under its path on a branch, and each store a durable commit.

What the commit worker does for a batch, for one document: objects as one pack, synced; then the
branch by compare-and-swap. Whoever else commits meanwhile is built upon, not over.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from ..errors import CaiafsError, FSError, RefLocked, StoreError
from ..policy import Policy, Tier
from ..store import (
    COMMIT,
    DIRECTORY,
    REGULAR,
    TREE,
    Store,
    encode_commit,
    needs_content_check,
    patch_tree,
    storable_content,
    storable_entry,
)
from . import Backend, Names, merge_into, parts_of

BLOB = 3
GITLINK, SYMLINK = 0o160000, 0o120000


class GitBackend:
    """Documents on *branch* of *repository*; commits are by *identity*, git's "Name <mail>"."""

    name = "git"

    def __init__(
        self, repository: Store, branch: bytes = b"refs/heads/main",
        identity: bytes = b"caiafs <caiafs@localhost>", policy: Policy | None = None,
    ) -> None:  # fmt: skip
        self._store = repository
        self._branch = branch
        self._identity = identity
        self._policy = policy or Policy()
        self._health = Tier(self.name, self._policy)
        self._tmp = os.path.join(repository.git_dir, "caiafs", "tmp")
        self._stored = self._commits = 0
        os.makedirs(self._tmp, mode=0o700, exist_ok=True)

    # ---- the interface

    def store(self, path: bytes, data: bytes) -> None:
        *above, name = parts_of(path)
        for step, mode in [*((step, DIRECTORY) for step in above), (name, REGULAR)]:
            if not storable_entry(step, mode):
                raise FSError(errno.EINVAL, f"git does not take the name {step!r}")
        if needs_content_check(name) and not storable_content(name, data):
            raise FSError(errno.EINVAL, f"git calls such a {name!r} dangerous")
        deadline = time.monotonic() + self._policy.operation_timeout
        attempt = 0
        while True:
            try:
                if self._commit(path, above, name, data):
                    break
            except RefLocked as error:
                attempt += 1
                pause = self._policy.pause(attempt, self._policy.locked_ceiling)
                if time.monotonic() + pause > deadline:
                    raise self._failed(error) from error
                time.sleep(pause)
            except FSError:
                raise
            except (CaiafsError, OSError) as error:
                raise self._failed(error) from error
        self._health.worked()
        self._stored += 1

    def get(self, path: bytes) -> bytes:
        mode, oid = self._look(path)
        if mode in (DIRECTORY, GITLINK):
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        try:
            return self._store.blob(oid)
        except (CaiafsError, OSError) as error:
            raise self._failed(error) from error

    def list(self, path: bytes = b"") -> Names:
        mode, oid = self._look(path) if path else (DIRECTORY, self._root())
        if mode != DIRECTORY:
            raise FSError(errno.ENOTDIR, f"{path!r} is a document")
        entries = [] if oid is None else self._entries(oid).items()
        return sorted(name + b"/" * (below in (DIRECTORY, GITLINK)) for name, (below, _) in entries)

    def merge(self, other: Backend) -> Names:
        return merge_into(self, other)

    def health(self) -> dict[str, Any]:
        return self._health.describe()

    def statistics(self) -> dict[str, int]:
        return {"documents_stored": self._stored, "commits": self._commits}

    def close(self) -> None:
        self._store.close()

    # ---- reading

    def _failed(self, error: CaiafsError | OSError) -> FSError:
        self._health.trouble(str(error), error.errno or errno.EIO)
        return FSError(error.errno or errno.EIO, str(error))

    def _root(self) -> bytes | None:
        try:
            tip = self._store.read_ref(self._branch)
            return None if tip is None else self._store.commit(tip).tree
        except (CaiafsError, OSError) as error:
            raise self._failed(error) from error

    def _entries(self, tree: bytes) -> dict[bytes, tuple[int, bytes]]:
        try:
            return {entry.name: (entry.mode, entry.oid) for entry in self._store.tree(tree)}
        except (CaiafsError, OSError) as error:
            raise self._failed(error) from error

    def _look(self, path: bytes) -> tuple[int, bytes]:
        at: tuple[int, bytes] | None = None
        root = self._root()
        for name in parts_of(path):
            if at is not None and at[0] != DIRECTORY:
                raise FSError(errno.ENOTDIR, f"{path!r} is below a document")
            tree = root if at is None else at[1]
            at = None if tree is None else self._entries(tree).get(name)
            if at is None:
                raise FSError(errno.ENOENT, f"there is no {path!r}")
        assert at is not None
        return at

    # ---- writing

    def _commit(self, path: bytes, above: Names, name: bytes, data: bytes) -> bool:
        """One try; False if the branch moved meanwhile."""
        store = self._store
        tip = store.read_ref(self._branch)
        root = None if tip is None else store.commit(tip).tree
        trees = [root]
        for step in above:
            tree = trees[-1]
            found = None if tree is None else self._entries(tree).get(step)
            if found is not None and found[0] != DIRECTORY:
                raise FSError(errno.ENOTDIR, f"{path!r} is below a document")
            trees.append(None if found is None else found[1])
        last = trees[-1]
        old = None if last is None else self._entries(last).get(name)
        if old is not None and old[0] in (DIRECTORY, GITLINK):
            raise FSError(errno.EISDIR, f"{path!r} is a directory")
        with store.pack_writer(self._tmp) as packer:
            entry = (REGULAR if old is None or old[0] == SYMLINK else old[0], packer.add(BLOB, data))
            for tree, step in zip(reversed(trees), reversed([*above, name]), strict=True):
                before = b"" if tree is None else store.tree_bytes(tree)
                entry = (DIRECTORY, packer.add(TREE, patch_tree(before, {step: entry})))
            if entry[1] == root:
                return True  # it is there already, durably
            stamp = int(time.time())
            zone = time.localtime(stamp).tm_gmtoff // 60
            text = (b"Add " if old is None else b"Update ") + path.replace(b"\n", b"?")
            parents = () if tip is None else (tip,)
            commit = packer.add(
                COMMIT,
                encode_commit(entry[1], parents, self._identity, self._identity, stamp, stamp, zone, text),
            )
            pack = packer.finish()
        try:
            landed = store.swap_ref(self._branch, tip, commit, b"commit: " + text, self._identity)
        finally:
            if pack is not None:
                pack.release()
        self._commits += landed
        return landed

    def probe(self) -> None:
        """Find out whether the repository takes documents. Raises FSError."""
        try:
            self._store.probe(self._tmp, (self._branch,))
        except StoreError as error:
            raise self._failed(error) from error
        self._health.worked()
