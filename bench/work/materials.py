"""What is worked with, made once for a run and kept on tmpfs, so that reading it costs nobody anything.

A source distribution, a wheel and a repository are made of this Python's own standard library: thousands
of real files, without a network. Repositories of up to a million files are made by `git fast-import` and
kept between runs, since making a million takes a minute or two.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bench.peers.base import environment

SKIPPED = {"__pycache__", "site-packages", "dist-packages", "lib2to3", "idlelib"}


def scratch() -> Path:
    """The run's own place on tmpfs; the session names it."""
    place = Path(os.environ["BENCH_SCRATCH"])
    place.mkdir(exist_ok=True)
    return place


def cache() -> Path:
    """What is kept between runs; may be deleted at any time."""
    place = Path(os.environ.get("BENCH_CACHE", "/var/tmp/caiafs-bench-cache"))
    place.mkdir(exist_ok=True)
    return place


def run(*words: str | os.PathLike[str], cwd: str | os.PathLike[str] | None = None, limit: float = 300) -> str:
    """A program's output; raises with what it said if it fails."""
    done = subprocess.run(
        [os.fspath(word) for word in words], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", timeout=limit,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words[0]} exited {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def library(most: int) -> Iterator[tuple[Path, str]]:
    """Up to *most* files of the standard library: (where, path below it), in a fixed order."""
    top = Path(sysconfig.get_path("stdlib"))
    found = 0
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            if found == most:
                return
            path = Path(folder, name)
            if path.is_file() and path.stat().st_size < 1 << 20:
                found += 1
                yield path, os.path.relpath(path, top)


def sdist(files: int) -> Path:
    """A tar of *files* files in folders, as `pip download --no-binary` would bring it, not compressed."""
    path = scratch() / f"sdist{files}.tar"
    if not path.exists():
        with tarfile.open(path, "w") as archive:
            for where, name in library(files):
                archive.add(where, f"sample-1.0/{name}")
    return path


def wheel(files: int) -> Path:
    """A wheel of *files* modules, `sample`."""
    path = scratch() / str(files) / "sample-1.0-py3-none-any.whl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        names = [(where, f"sample/{name}") for where, name in library(files * 2) if name.endswith(".py")]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for where, name in names[:files]:
                archive.write(where, name)
            about = "sample-1.0.dist-info"
            archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
            archive.writestr(
                f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for _, name in names[:files]))
    return path


def upstream(files: int) -> Path:
    """A bare repository with one commit, of the same files."""
    path = scratch() / f"upstream{files}.git"
    if not path.exists():
        work = scratch() / f"upstream{files}"
        work.mkdir()
        run("tar", "-xf", sdist(files), "-C", work)
        run("git", "init", "-q", work)
        run("git", "add", "-A", cwd=work)
        run("git", "commit", "-q", "-m", "Begin", cwd=work)
        run("git", "clone", "-q", "--bare", work, path)
        shutil.rmtree(work)
    return path


def place_of(number: int, files: int, flat: bool) -> bytes:
    """The path of file *number* of `repository`: 1,000 a folder at a million, 100 below, or all in one."""
    if flat:
        return b"f%06d" % number
    if files > 100_000:
        return b"d%03d/f%06d" % (number // 1000, number)
    return b"d%03d/e%02d/f%06d" % (number // 1000, number // 100 % 10, number)


def repository(files: int, flat: bool, into: Path) -> Path:
    """A bare repository *into* with one commit of *files* small files."""
    kept = cache() / f"{files}{'flat' if flat else ''}.git"
    if not kept.exists():
        making = Path(f"{kept}.{os.getpid()}")
        run("git", "init", "-q", "--bare", making)
        _import(making, files, flat)
        making.rename(kept)
    # Packs never change, so they are linked; what changes in a repository is replaced by renaming.
    run("cp", "-al", kept, into)
    return into


def _import(repository: Path, files: int, flat: bool) -> None:
    variety = min(files, 1000)
    with subprocess.Popen(
        ["git", "-C", os.fspath(repository), "fast-import", "--quiet", "--depth=0"],
        stdin=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        stream = process.stdin
        assert stream is not None
        for number in range(variety):
            text = hashlib.sha256(b"%d" % number).hexdigest().encode() * 8 + b"\n"
            stream.write(b"blob\nmark :%d\ndata %d\n%s\n" % (number + 1, len(text), text))
        stream.write(b"commit refs/heads/main\nmark :%d\n" % (variety + 1))
        stream.write(b"committer A Person <person@example.org> 1700000000 +0000\ndata 5\nBegin\n")
        for number in range(files):
            stream.write(b"M 100644 :%d %s\n" % (number % variety + 1, place_of(number, files, flat)))
        stream.write(b"\ndone\n")
    if process.returncode:
        raise RuntimeError(f"git fast-import exited {process.returncode}")
