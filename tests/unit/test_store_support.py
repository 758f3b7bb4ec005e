"""What the store's tests share: real git in a clean environment, and small makers. Holds no tests."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path

from caiafs.store import BLOB, COMMIT, REGULAR, TREE, Oid, Store, TreeEntry, encode_commit, encode_tree

MIB = 1 << 20
MAIN = b"refs/heads/main"
WHO = b"Ann Tester <ann@example.org>"
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}


def git(where: str | Path, *words: str, stdin: bytes = b"", check: bool = True, **extra: str) -> bytes:
    """Run git in *where*; its output. *extra* goes into the environment."""
    done = subprocess.run(
        ["git", "-c", "gc.auto=0", "-c", "protocol.file.allow=always", *words],
        cwd=where,
        input=stdin,
        capture_output=True,
        env=ENVIRONMENT | extra,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def fsck(where: str | Path) -> str:
    """What `git fsck --strict --full` complains about; empty when all is well."""
    done = subprocess.run(
        ["git", "fsck", "--strict", "--full", "--no-dangling", "--no-progress"],
        cwd=where,
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    text = (done.stdout + done.stderr).decode(errors="replace").strip()
    lines = [line for line in text.splitlines() if not line.startswith("notice:")]
    return "\n".join(lines) or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def new_store(base: Path, name: str = "repo.git") -> Store:
    """An empty bare repository, and `tmp` beside its objects for the writer."""
    store = Store.create(str(base / name))
    (base / name / "caiafs").mkdir()
    return store


def ordinary(base: Path, name: str = "work") -> Path:
    """A repository with a work tree and one commit, made by git."""
    git(base, "init", "-q", "-b", "main", name)
    (base / name / "a.txt").write_text("a\n")
    git(base / name, "add", ".")
    git(base / name, "commit", "-q", "-m", "First")
    return base / name


def tmp_of(store: Store) -> str:
    return os.path.join(store.git_dir, "caiafs")


def write(store: Store, objects: Iterable[tuple[int, bytes]]) -> list[Oid]:
    """One pack with *objects*, released at once."""
    with store.pack_writer(tmp_of(store)) as writer:
        oids = [writer.add(kind, data) for kind, data in objects]
        kept = writer.finish()
    if kept is not None:
        kept.release()
    return oids


def commit_files(
    store: Store,
    files: dict[bytes, bytes],
    parents: tuple[Oid, ...] = (),
    message: bytes = b"A commit",
    ref: bytes | None = MAIN,
    time: int = 1700000000,
) -> Oid:
    """A flat commit with *files* in one pack; moves *ref* there."""
    with store.pack_writer(tmp_of(store)) as writer:
        entries = [TreeEntry(name, REGULAR, writer.add(BLOB, data)) for name, data in files.items()]
        tree = writer.add(TREE, encode_tree(entries))
        commit = writer.add(COMMIT, encode_commit(tree, parents, WHO, WHO, time, time, 0, message))
        kept = writer.finish()
    assert kept is not None
    if ref is not None:
        assert store.swap_ref(ref, store.read_ref(ref), commit, message, WHO)
    kept.release()
    return commit


def oid_of(where: str | Path, name: str) -> Oid:
    return bytes.fromhex(git(where, "rev-parse", name).decode().strip())


def lines(count: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return b"".join(b"line %d %d\n" % (n, rng.getrandbits(40)) for n in range(count))


def versions(store: Store, count: int = 12, size: int = 3000) -> dict[Oid, bytes]:
    """Blobs that git stores as deltas of each other once it repacks; referenced by main."""
    contents: dict[Oid, bytes] = {}
    text = lines(size)
    tip = store.read_ref(MAIN)
    for n in range(count):
        at = n * len(text) // count
        text = text[:at] + b"<change %d>" % n + lines(5, n) + text[at + 37 :]
        files = {b"big.txt": text, b"small": b"%d" % n, b"empty": b""}
        tip = commit_files(store, files, (tip,) if tip else (), b"Version %d" % n)
        contents |= {e.oid: files[e.name] for e in store.tree(store.commit(tip).tree)}
    return contents


def to_loose(store: Store) -> None:
    """Every pack as loose objects."""
    folder = Path(store.git_dir, "objects/pack")
    found = [path.read_bytes() for path in folder.glob("*.pack")]
    for path in folder.iterdir():
        path.unlink()
    for data in found:
        git(store.git_dir, "unpack-objects", "-q", stdin=data)


def put_loose(store: Store, oid: Oid, raw: bytes) -> None:
    """*raw* as the loose object *oid*, whatever it is."""
    path = Path(store.git_dir, "objects", oid.hex()[:2], oid.hex()[2:])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
