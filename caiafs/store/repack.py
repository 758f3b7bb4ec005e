"""Consolidation: a few packs instead of one per commit.

Run by the commit worker when nothing else is to do. With git at hand, a geometric repack: it
rolls only small packs together, and leaves `.keep` packs alone. Without git, packs that hold no
deltas, as caiafs writes them, are copied entry by entry into one. Neither prunes anything.

Old packs go when the new one's name is on disk, and not before. `git repack -d` syncs its files but
no directory: after a power loss the removals may have happened, and the new name not. So git only
writes, and what it copied is removed here.

A lock on the pack directory keeps two workers of one repository from doing it at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator

from caiafs.errors import ObjectCorrupt, StoreError
from caiafs.store.disk import fsync_dir
from caiafs.store.odb import OFS_DELTA, REF_DELTA, GoneError, ObjectDatabase, Pack, entry_header
from caiafs.store.pack import PackWriter

PACKS_BEFORE = 20
_GC_LOCK_AGE = 12 * 3600  # git's own rule for a gc.pid left behind
_LOOK_EVERY = 0.5  # s between looks at whether git gets on
_OWN_LIMIT = 256 * 1024 * 1024  # larger packs are not worth copying again

# Memory stays small whatever is in the packs: no deltas for large files, one thread, a bounded window.
# And nothing that the repository's own configuration names is run: who may write it need not be who mounts.
_GIT_SETTINGS = (
    "gc.auto=0",
    "pack.threads=1",  # the other processors are for those who wait
    "core.bigFileThreshold=4m",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.sshCommand=false",
    "core.gitProxy=false",
    "core.askPass=false",
    "core.editor=false",
    "core.pager=cat",
    "core.alternateRefsCommand=false",
    "core.attributesFile=/dev/null",
    "credential.helper=",
    "diff.external=false",
    "gpg.program=false",
    "gpg.ssh.program=false",
    "gpg.x509.program=false",
    "protocol.allow=never",
    "trace2.normalTarget=0",
    "trace2.perfTarget=0",
    "trace2.eventTarget=0",
    "uploadpack.packObjectsHook=false",
    "pack.threads=1",
    "pack.windowMemory=32m",
    "pack.deltaCacheSize=16m",
    "repack.writeBitmaps=false",
    "core.fsync=committed",
    "core.fsyncMethod=fsync",
)


def unkept_packs(objects_dir: str) -> int:
    """Packs that a repack may touch."""
    try:
        names = set(os.listdir(os.path.join(objects_dir, "pack")))
    except FileNotFoundError:
        return 0
    packs = [name.removesuffix(".pack") for name in names if name.endswith(".pack")]
    return sum(1 for pack in packs if pack + ".idx" in names and pack + ".keep" not in names)


def consolidate(
    odb: ObjectDatabase,
    git_dir: str,
    tmp_dir: str,
    *,
    more_than: int = PACKS_BEFORE,
    git: str | None = "git",
    timeout: float = 900,
    alive: Callable[[], None] = lambda: None,
) -> bool:
    """Bring the number of packs down if there are more than *more_than*; True when packs were joined.
    *alive* is told of progress.

    StoreError when it failed: nothing is lost then, and trying again later is fine.
    """
    if unkept_packs(odb.path) <= more_than or _gc_running(git_dir):
        return False
    with _only_one(os.path.join(odb.path, "pack")) as alone:
        if not alone:
            return False
        program = shutil.which(git) if git else None
        before = unkept_packs(odb.path)
        if program is not None and not _is_partial(odb.path):
            _join_by_git(odb, program, git_dir, timeout, alive)
        else:
            _join_own(odb, tmp_dir, alive)
        odb.rescan()
        return unkept_packs(odb.path) < before


def _gc_running(git_dir: str) -> bool:
    try:
        return time.time() - os.stat(os.path.join(git_dir, "gc.pid")).st_mtime < _GC_LOCK_AGE
    except FileNotFoundError:
        return False


def _is_partial(objects_dir: str) -> bool:
    """A partial clone: its promisor packs must not be mixed with others."""
    return any(name.endswith(".promisor") for name in os.listdir(os.path.join(objects_dir, "pack")))


@contextlib.contextmanager
def _only_one(pack_dir: str) -> Iterator[bool]:
    fd = os.open(pack_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        alone = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            pass  # a filesystem that does not lock directories; git copes with two repacks, too
        yield alone
    finally:
        os.close(fd)


def _join_by_git(
    odb: ObjectDatabase, program: str, git_dir: str, timeout: float, alive: Callable[[], None]
) -> None:
    odb.rescan()
    present = [pack.name for pack in odb.local_packs()]
    _run_git(program, git_dir, timeout, alive, "repack", "-l", "--geometric=2", "--write-midx", "-n", "-q")
    fsync_dir(os.path.join(odb.path, "pack"))
    odb.rescan()
    remaining = set(odb.local_midx_packs())
    if remaining:
        packs = {pack.name: pack for pack in odb.local_packs()}
        covering = [pack for name, pack in packs.items() if name in remaining]
        replaced = [packs[name] for name in present if name in packs and name not in remaining]
        _remove(odb, [pack for pack in replaced if odb.has_alternates or _is_covered(pack, covering)])
    _run_git(program, git_dir, timeout, alive, "prune-packed", "-q")


def _is_covered(pack: Pack, covering: list[Pack]) -> bool:
    """Whether each object of *pack* is in one of the others; a `.keep` that appeared meanwhile says no."""
    if os.path.exists(pack.base + ".keep"):
        return False
    try:
        indexes = [other.index() for other in covering]
        return all(any(index.find(oid) >= 0 for index in indexes) for oid, _, _ in pack.index().entries())
    except GoneError:
        return False


def _remove(odb: ObjectDatabase, packs: list[Pack]) -> None:
    """Remove packs whose objects are elsewhere, on disk, name and all."""
    for pack in packs:
        # The index goes first: without it nobody new looks into the pack, and those who did have it open.
        for suffix in (".idx", ".pack", ".rev"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pack.base + suffix)
    fsync_dir(os.path.join(odb.path, "pack"))


def _run_git(program: str, git_dir: str, timeout: float, alive: Callable[[], None], *words: str) -> None:
    settings = [word for setting in _GIT_SETTINGS for word in ("-c", setting)]
    command = [program, *settings, *words]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_DIR": git_dir,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_PAGER": "cat",
        "GIT_EDITOR": "false",
        "GIT_SSH_COMMAND": "false",
        "GIT_ASKPASS": "false",
        "GIT_EXTERNAL_DIFF": "false",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
    }
    try:
        process = subprocess.Popen(
            command,
            cwd=git_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise StoreError(f"cannot start {program}: {error}") from error
    with process:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        try:
            errors = _wait(process, timeout, alive)
        except BaseException as error:
            process.terminate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise StoreError(f"git {words[0]} took longer than {timeout:.0f} s and was stopped") from None
            raise
    if process.returncode:
        text = errors.decode(errors="replace").strip()
        raise StoreError(f"git {words[0]} failed with exit code {process.returncode}: {text[-500:]}")


def _wait(process: subprocess.Popen[bytes], timeout: float, alive: Callable[[], None]) -> bytes:
    """What it says to its end; *alive* as long as it works. Raises TimeoutExpired after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    before = 0
    while True:
        try:
            return process.communicate(timeout=_LOOK_EVERY)[1]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
            ticks = _ticks(process.pid)
            if ticks != before:
                before = ticks
                alive()


def _ticks(session: int) -> int:
    """The processor time of all processes of a session: git has others work for it."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if int(fields[3]) == session:
                    ticks += sum(map(int, fields[11:15]))  # its own, and that of children which ended
    return ticks


def _join_own(odb: ObjectDatabase, tmp_dir: str, alive: Callable[[], None]) -> None:
    """Copy small packs without deltas into one, then remove them."""
    odb.rescan()
    in_midx = set(odb.local_midx_packs())
    candidates: list[tuple[int, Pack]] = []
    for pack in odb.local_packs():
        if pack.name in in_midx or any(
            os.path.exists(pack.base + suffix) for suffix in (".keep", ".promisor", ".bitmap", ".mtimes")
        ):
            continue
        with contextlib.suppress(OSError, StoreError):
            size = os.stat(pack.base + ".pack").st_size
            if size <= _OWN_LIMIT:
                candidates.append((size, pack))
    with PackWriter(odb.path, tmp_dir, alive) as writer:
        joined: list[Pack] = []
        for _, pack in sorted(candidates, key=lambda item: item[0]):
            with contextlib.suppress(GoneError, ObjectCorrupt):
                alive()
                if _copy_pack(pack, writer):
                    joined.append(pack)
        if len(joined) < 2:
            return
        kept = writer.finish()
    if kept is None:
        return
    try:
        _remove(odb, [pack for pack in joined if pack.base + ".pack" != kept.path])
    finally:
        kept.release()


def _copy_pack(pack: Pack, writer: PackWriter) -> bool:
    """Copy every entry, after checking all: False, and nothing copied, when one is a delta or damaged."""
    index, file = pack.index(), pack.file()
    entries = sorted(index.entries(), key=lambda entry: entry[1])
    ends = [offset for _, offset, _ in entries[1:]] + [file.size - 20]
    for (oid, offset, crc), end in zip(entries, ends, strict=True):
        header = entry_header(oid, file.read_at(64, offset), offset)
        if header.kind in (OFS_DELTA, REF_DELTA) or crc is None or not _crc_matches(pack, offset, end, crc):
            return False
    for (oid, offset, _), end in zip(entries, ends, strict=True):
        writer.add_raw(oid, file.read_at(end - offset, offset))
    return True


def _crc_matches(pack: Pack, start: int, end: int, crc: int) -> bool:
    file = pack.file()
    value = 0
    while start < end:
        piece = file.read_at(min(1 << 20, end - start), start)
        if not piece:
            return False
        value = zlib.crc32(piece, value)
        start += len(piece)
    return value == crc
