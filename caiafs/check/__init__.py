"""The offline check: what caiafs keeps in a repository, verified, and with --repair mended.

    run_check   which branches, which are mounted, what is printed
    branch      one branch: journal, side ref, objects, and how they stand to each other
    scan        the journal's files, read without changing them
    replay      the next mount's recovery, played in memory
    walk        every object, and every side record beside its entry
    names       which file a record is about
    repair      saves what can be saved, after a backup
    salvage     what no tree takes any more, as files on a branch
    refs        a listing and a removal of refs
    report      findings, in plain sentences

Called by the command line, and by the tests after every mount. Blocking, and without trio's
event loop. A branch that is mounted has a live journal, which nobody may read for damage while
its last record is being written: without --repair its git side is checked and the journal is
skipped, which a note says; with --repair it is refused. The branch's lock is held meanwhile, so
that no mount begins under the check.

Memory: some words for each object and inode, and one delta chain. Journals are mapped, blobs
streamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator

from ..config import state_directory
from ..errors import CaiafsError, UsageError
from ..journal.segment import start_in_name
from ..store import Store
from .branch import JOURNAL, Branch, examine
from .refs import names_under
from .repair import Repair
from .report import Progress, several, silent

_ESCAPE = re.compile(rb"%(25|2F)")
LOCK = "lock"


def run_check(
    repo: str,
    branch: str | None,
    state_dir: str | None,
    repair: bool,
    out: Callable[[str], None],
    progress: Progress = silent,
) -> int:
    """Check *branch*, or every branch that was ever mounted, and print one line for each finding.

    *progress* is told how far it is: done, total (0: nobody knows) and what.
    *state_dir* is where the mount kept its state if it was told to. Returns 0 if nothing is wrong
    (or, with *repair*, nothing is wrong any more), 1 otherwise. Raises CaiafsError for what cannot be
    checked: no repository, no such branch, a mounted branch that was to be repaired.
    """
    with contextlib.closing(Store.open(repo)) as store:
        branches = _branches(store, branch, state_dir)
        if not branches:
            out(f"caiafs check: {repo}: clean: no branch of it was ever mounted")
        spool = store.git_dir if os.access(store.git_dir, os.W_OK) else tempfile.gettempdir()
        results = [_check_one(store, repo, each, spool, repair, out, progress) for each in branches]
    return 0 if all(results) else 1


def _check_one(
    store: Store,
    repo: str,
    branch: Branch,
    spool: str,
    repair: bool,
    out: Callable[[str], None],
    progress: Progress,
) -> bool:
    """Check one branch, mend it if asked to, and print what was found; True if it is clean (now)."""
    with _locked(store, branch, exclusive=repair) as holder:
        if holder is not None and repair:
            out(f"caiafs check: {repo}: {branch}: not repaired: {holder}; unmount it first")
            return False
        seen = examine(store, branch, spool, with_journal=holder is None, progress=progress)
        if holder is not None:
            seen.findings.note(JOURNAL, f"not checked: {holder}")
        seen.findings.say(str(branch), out, repairing=repair)
        found = seen.findings.problems
        title = f"caiafs check: {repo}: {branch}"
        if repair and (found or seen.leftovers):
            seen = Repair(store, seen, spool, lambda text: out(f"{branch}: repaired: {text}")).run(seen)
            left = seen.findings.problems
            if found and left:
                out(f"{branch}: after the repair:")
                seen.findings.say(str(branch), out, repairing=True)
                out(f"{title}: {several(left, 'problem')} left of {found}")
                return False
            title += f": {several(found, 'problem')} repaired" if found else ""
        elif found:
            mendable = seen.findings.mendable
            out(f"{title}: {several(found, 'problem')}, {mendable} of which --repair can mend")
            return False
        out(f"{title}: clean: {seen.summary()}")
        return True


# ---- which branches


def _branches(store: Store, name: str | None, state_dir: str | None) -> list[Branch]:
    if name is not None:
        chosen = [os.fsencode(name)]
    else:
        chosen = _mounted_before(store.git_dir)
        if state_dir is not None and len(chosen) > 1:
            raise UsageError("--state-dir is the state of one branch: name it with --branch")
        if state_dir is not None and not chosen:
            head = store.head_branch()
            chosen = [] if head is None else [head]
    found = [
        Branch(each, os.path.abspath(state_directory(store.git_dir, each, state_dir))) for each in chosen
    ]
    if name is not None:
        (only,) = found
        refs = (only.ref, only.side_ref)
        if not any(_has_ref(store, ref) for ref in refs) and not os.path.isdir(only.state_dir):
            raise CaiafsError(f"{store.git_dir} has no branch {name}, and it was never mounted")
    return found


def _has_ref(store: Store, ref: bytes) -> bool:
    try:
        return store.read_ref(ref) is not None
    except CaiafsError:
        return True  # it is there, and broken


def _mounted_before(git_dir: str) -> list[bytes]:
    """Every branch with a side ref or a state directory."""
    found = {ref.removeprefix(b"refs/caiafs/") for ref in names_under(git_dir, b"refs/caiafs/")}
    heads = [ref.removeprefix(b"refs/heads/") for ref in names_under(git_dir, b"refs/heads/")]
    of_directory = {os.path.basename(state_directory(git_dir, head)): head for head in heads}
    with contextlib.suppress(FileNotFoundError):
        for directory in os.listdir(os.path.join(git_dir, "caiafs")):
            if _is_state(os.path.join(git_dir, "caiafs", directory)):
                quoted = os.fsencode(directory)
                plain = _ESCAPE.sub(lambda match: b"/" if match[1] == b"2F" else b"%", quoted)
                name = of_directory.get(directory, plain)
                if os.path.basename(state_directory(git_dir, name)) == directory:
                    found.add(name)
    return sorted(found)


def _is_state(directory: str) -> bool:
    """Whether a mount keeps, or kept, its state there (the commit worker's files are beside it)."""
    try:
        return any(name == LOCK or start_in_name(name) is not None for name in os.listdir(directory))
    except OSError:
        return False


# ---- mounted or not


@contextlib.contextmanager
def _locked(store: Store, branch: Branch, *, exclusive: bool) -> Iterator[str | None]:
    """Hold the branch's lock, so that no mount begins meanwhile; yields who has it if a mount has.

    A mount with a state directory of its own holds the lock in the git directory, too.
    """
    usual = os.path.abspath(state_directory(store.git_dir, branch.name))
    with contextlib.ExitStack() as held:
        holder: str | None = None
        for directory in dict.fromkeys((branch.state_dir, usual)):
            path = os.path.join(directory, LOCK)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue  # no lock file: nobody mounted it there
            held.callback(os.close, fd)
            try:
                fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(fd, path)
                break
        yield holder


def _holder(fd: int, path: str) -> str:
    try:
        said = json.loads(os.pread(fd, 65536, 0))
        return f"the branch is mounted at {said['mountpoint']} by process {said['pid']}"
    except (ValueError, KeyError, TypeError):
        return f"the branch is in use (a process holds {path})"
