"""Reading the store while git repacks it, and the descriptors that packs and readers hold."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from test_store_support import fsck, git, new_store, to_loose, versions, write

from caiafs.errors import StoreError
from caiafs.store import BLOB, Store


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_do_not_grow_with_packs_and_reads(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    oids = [write(store, [(BLOB, b"%d" % n)])[0] for n in range(150)]
    before = descriptors()
    for _ in range(2):
        for n, oid in enumerate(oids):
            assert store.blob(oid) == b"%d" % n
            store.open_blob(oid, str(tmp_path)).close()
    assert descriptors() - before <= 60
    to_loose(store)
    for n, oid in enumerate(oids):
        assert store.blob(oid) == b"%d" % n
    store.refresh()
    assert descriptors() - before <= 2
    store.close()
    with pytest.raises(StoreError):
        store.blob(oids[0])
    assert descriptors() <= before


def test_a_pack_that_is_gone_frees_its_space_soon(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 2)
    oid = next(iter(contents))
    store.blob(oid)
    git(store.git_dir, "repack", "-adq")
    store.refresh()
    links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [link for link in links if link.startswith(store.git_dir) and link.endswith("(deleted)")]
    assert store.blob(oid) == contents[oid]


def test_reads_go_on_while_git_repacks_in_a_loop(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    contents = versions(store, 12, size=300)
    oids = list(contents)
    stop = threading.Event()
    errors: list[BaseException] = []
    reads = [0]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                oid = rng.choice(oids)
                way = rng.randrange(5)
                if way == 0:
                    assert b"".join(store.stream_blob(oid, str(tmp_path))) == contents[oid]
                elif way == 1:
                    reader = store.open_blob(oid, str(tmp_path))
                    assert reader.read(10, 100) == contents[oid][10:110]
                elif way == 2:
                    assert store.blob_sizes([oid]) == [len(contents[oid])]
                elif way == 3:
                    assert store.has(oid)
                else:
                    assert store.blob(oid) == contents[oid]
                tip = store.read_ref(b"refs/heads/main")
                assert tip is not None
                assert store.commit(tip).message.startswith(b"Version")
                reads[0] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    latest = time.monotonic() + 60
    rounds = 0
    while (rounds < 4 or reads[0] < 500) and time.monotonic() < latest and not errors:
        git(store.git_dir, "repack", "-adq")
        git(store.git_dir, "pack-refs", "--all")
        git(store.git_dir, "repack", "-Adq", "--unpack-unreachable=now")
        to_loose_carefully(store)
        git(store.git_dir, "repack", "-dq")
        git(store.git_dir, "multi-pack-index", "write")
        git(store.git_dir, "gc", "-q", "--prune=now")
        rounds += 1
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert rounds >= 4
    assert reads[0] >= 500
    assert fsck(store.git_dir) == ""


def to_loose_carefully(store: Store) -> None:
    """Explode every pack: the loose copies are there before the packs go."""
    folder = Path(store.git_dir, "objects/pack")
    found = sorted(folder.glob("*.pack"))
    aside = Path(store.git_dir, "aside")
    git(store.git_dir, "init", "-q", "--bare", str(aside))
    for pack in found:
        git(aside, "unpack-objects", "-q", stdin=pack.read_bytes())
    for path in (aside / "objects").glob("??/*"):
        target = Path(store.git_dir, "objects", path.parent.name, path.name)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    shutil.rmtree(aside)
    for path in [folder / "multi-pack-index", *folder.glob("*.idx"), *found, *folder.glob("*.[rb]*")]:
        path.unlink(missing_ok=True)
