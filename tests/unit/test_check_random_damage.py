"""`caiafs check` after anything at all: random damage is explained, mended, and costs nothing else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from support.lab import Lab, Result, Session, filled, flip

from caiafs.check import run_check
from caiafs.check.scan import look, read_stretches
from caiafs.errors import CaiafsError
from caiafs.filesystem.loader import read_side
from caiafs.records import Write
from caiafs.store import Store
from caiafs.tree import Directory, File

# ---- to the journal


@pytest.mark.parametrize("seed", range(8))
def test_whatever_befalls_a_journal_it_is_mended_and_mounts(tmp_path: Path, seed: int) -> None:
    """Flips, cuts, holes and lost files, at random: check never fails, repair always ends in a mount."""
    random = Random(seed)
    lab = Lab(tmp_path, segment_size=random.choice([300, 2000, 1 << 20]))
    session = filled(lab)
    written = {}
    for _ in range(40):
        name = f"d/f{random.randrange(12)}"
        written[name] = random.randbytes(random.randrange(1, 200))
        session.write(name, written[name])
        if random.random() < 0.1:
            session.sync()
        if random.random() < 0.05:
            session.commit(release=random.random() < 0.5)
    lab.end()
    for _ in range(random.randrange(1, 4)):
        segment = random.choice(lab.segments())
        size = segment.stat().st_size
        kind = random.randrange(5)
        if kind == 0:
            segment.unlink()
        elif kind == 1:
            os.truncate(segment, random.randrange(size))
        elif kind == 2 and size:
            data = bytearray(segment.read_bytes())
            start = random.randrange(size)
            data[start : start + random.randrange(1, 100)] = bytes(random.randrange(1, 100))
            segment.write_bytes(data)
        elif size:
            flip(segment, random.randrange(size), 1 << random.randrange(8))
        if not lab.segments():
            break
    lab.check()
    readable = whole_writes(lab)
    result = lab.check(repair=True)
    assert result.code == 0, result.text
    kept = whole_writes(lab)
    if readable - kept:
        saved = b"\0".join(lab.lost_and_found().values())
        assert all(data in saved for data in readable - kept), "data was thrown away"
    session = lab.mounts()
    for name in [name for name in written if name.removeprefix("d/").encode() in _children(session, "d")]:
        session.read(name)
    session.write("after", b"after")
    session.commit()
    lab.end()
    assert lab.check().problems == []


def whole_writes(lab: Lab) -> set[bytes]:
    """The data of every write that can still be read and that git does not have."""
    store = Store.open(str(lab.repo))
    oid = store.read_ref(lab.side)
    side = read_side(store, oid) if oid is not None else None
    store.close()
    assert side is not None
    scan = look(lab.state, side.is_about)
    floor = max(side.position if side.is_about(scan.id) else scan.begin, scan.base)
    return {
        bytes(record.data)
        for segment in scan.segments
        for record, at, _ in read_stretches(segment, beyond=True)
        if isinstance(record, Write) and segment.start + at >= floor
    }


# ---- to the objects


@pytest.mark.parametrize("seed", range(8))
def test_whatever_befalls_the_objects_nothing_else_is_lost(lab: Lab, seed: int) -> None:
    random = Random(seed)
    session = filled(lab)
    session.write("d/later", b"later")
    session.commit()
    session.write("pending", b"pending")
    lab.end()
    lab.explode()
    objects = sorted(path for path in (lab.repo / "objects").glob("??/*"))
    for path in random.sample(objects, random.randrange(1, 4)):
        if random.random() < 0.3:
            path.unlink()
        else:
            flip(path, random.randrange(path.stat().st_size), 1 << random.randrange(8))
    problems = lab.check().problems
    result = lab.check(repair=True)
    if not problems:
        assert result.code == 0
    if result.code == 0:
        session = lab.mounts()
        waiting = [""]
        while waiting:
            path = waiting.pop()
            for name in _children(session, path):
                below = f"{path}/{name.decode()}".lstrip("/")
                if isinstance(session.node(below), Directory):
                    waiting.append(below)
                elif isinstance(session.node(below), File):
                    session.read(below)
        session.write("after", b"after")
        session.commit()
        lab.end()
        assert lab.check().problems == []


def _children(session: Session, path: str) -> set[bytes]:
    directory = session.node(path)
    assert isinstance(directory, Directory)
    return set(session.run(session.fs.children, directory))


# ---- to any file


def maul(random: Random, lab: Lab) -> str:
    """One thing that befalls any file of the repository or of the mount's state; what it was."""
    files = sorted(path for path in lab.repo.rglob("*") if path.is_file() and path.name != "HEAD")
    path = random.choice(files)
    os.chmod(path, 0o600)
    data = path.read_bytes()
    kind = random.choice(["flip", "cut", "zeros", "gone", "folder", "link", "pipe", "junk", "empty", "newer"])
    if kind == "flip" and data:
        flip(path, random.randrange(len(data)), 1 << random.randrange(8))
    elif kind == "cut":
        os.truncate(path, random.randrange(len(data) + 1))
    elif kind == "zeros":
        start = random.randrange(len(data) + 1)
        path.write_bytes(data[:start] + bytes(random.randrange(60)) + data[start + random.randrange(60) :])
    elif kind in ("junk", "empty"):
        path.write_bytes(random.randbytes(random.randrange(200)) if kind == "junk" else b"")
    elif kind == "newer" and path.suffix == ".seg":
        path.write_bytes(data[:7] + b"2" + data[8:48] + b"????" + data[52:])
    elif kind in ("gone", "folder", "link", "pipe"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(random.choice(["/etc/passwd", "/nowhere", ".", str(path)]))
        elif kind == "pipe":
            os.mkfifo(path)
    return f"{kind} {path.relative_to(lab.repo)}"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_befalls_any_file_a_check_explains_and_a_repair_ends(tmp_path: Path, seed: int) -> None:
    """No traceback, no hang; what could be repaired stays so, and a second repair has nothing to do."""
    mauled(tmp_path, seed)


def mauled(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    lab = Lab(tmp_path, segment_size=random.choice([300, 2000, 1 << 20]))
    session = filled(lab)
    for number in range(random.randrange(12)):
        session.write(f"d/f{number}", random.randbytes(random.randrange(1, 300)))
        if random.random() < 0.2:
            session.sync()
    lab.end()
    if random.random() < 0.5:
        lab.explode()
    if random.random() < 0.3:
        lab.git("pack-refs", "--all")
    done = [maul(random, lab) for _ in range(random.randrange(1, 4))]
    try:
        found = attempt(lab, repair=False)
        first = attempt(lab, repair=True)
        assert (first is None) == (found is None)
        second = attempt(lab, repair=True)
        before = lab.snapshot() if second is not None and second.code == 0 else None
        third = attempt(lab, repair=True)
        if first is not None and first.code == 0:
            assert second is not None
            assert second.code == 0
            assert second.problems == []
        if before is not None:
            assert third is not None
            assert lab.snapshot() == before, "a repair with nothing to do did something"
        if found is not None and found.code == 0 and not found.problems:
            with contextlib.suppress(CaiafsError):
                lab.mounts()
    except BaseException as error:
        error.add_note("; ".join(done))
        raise
    finally:
        lab.end()


def attempt(lab: Lab, *, repair: bool) -> Result | None:
    """A check; None where it says that nothing can be checked."""
    lines: list[str] = []
    try:
        code = run_check(str(lab.repo), None, None, repair, lines.append)
    except CaiafsError:
        return None
    assert all("\n" not in line for line in lines)
    return Result(code, lines)
