"""What happens to a mount besides being killed: faults of its disks and its worker, and other people's git.

A fault begins and ends; while one lasts, writers may be refused (ENOSPC and the like, which their
manifests say), but what was acknowledged counts as ever. When it has ended, everything must reach
git with no one's help.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.drill.forks import ForkedDaemon
from support.mounts import environment, run

FAULTS = (
    "branch locked", "side ref locked", "worker stopped", "worker killed", "packs read-only",
    "journal's disk full", "git's disk full", "both disks full",
)  # fmt: skip
OUTSIDE = ("push", "update-ref", "gc", "repack", "pack-refs", "prune")
REWRITES = ("amend", "branch deleted")
"""What is done to the history while nobody writes; the rest happens under load."""


class SmallDisk:
    """A tmpfs of its own, which can be filled to its end. For root."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "none", path)

    def fill(self) -> None:
        fd = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(1 << 16))
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, b"\0")
        os.close(fd)

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        run("umount", "-l", self.path)
        self.path.rmdir()


class Faults:
    """The places of one drill at which something can go wrong."""

    def __init__(self, repository: Path, git_disk: SmallDisk | None, journal_disk: SmallDisk | None) -> None:
        self.repository = repository
        self.git_disk = git_disk
        self.journal_disk = journal_disk

    def possible(self) -> list[str]:
        return [
            name
            for name in FAULTS
            if not ("disk" in name and self.git_disk is None)
            and not (name == "packs read-only" and os.geteuid() == 0)
        ]

    @contextlib.contextmanager
    def fault(self, name: str, daemon: ForkedDaemon) -> Iterator[None]:
        """It lasts as long as the body."""
        with contextlib.ExitStack() as healing:
            if name in ("branch locked", "side ref locked"):
                ref = "refs/heads/main" if name == "branch locked" else "refs/caiafs/main"
                lock = self.repository / f"{ref}.lock"
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
                    healing.callback(lock.unlink, missing_ok=True)
            elif name == "worker stopped":
                for worker in daemon.workers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGSTOP)
                    healing.callback(_continue, worker.pid)
            elif name == "worker killed":
                for worker in daemon.workers():
                    worker.end()
            elif name == "packs read-only":
                packs = self.repository / "objects" / "pack"
                packs.chmod(0o500)
                healing.callback(packs.chmod, 0o755)
            else:
                disks = {"journal's disk full": [self.journal_disk], "git's disk full": [self.git_disk]}
                for disk in disks.get(name, [self.journal_disk, self.git_disk]):
                    assert disk is not None
                    healing.callback(disk.free)
                    disk.fill()
            yield


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


class Outsider:
    """Somebody with a clone, who pushes, collects garbage and rewrites."""

    def __init__(self, repository: Path, clone: Path) -> None:
        self.repository = repository
        self.clone = clone
        self.files: dict[str, str] = {}
        self.commits: list[str] = []
        self.refused = 0
        self._number = 0

    def act(self, what: str, dice: random.Random) -> bool:
        """Do it; False if it could not be done now, as a pusher who lost every race sees it."""
        if what == "push":
            return self._push(dice)
        if what == "update-ref":
            return self._update_ref(dice)
        words = {
            "gc": ("gc", "-q", "--prune=now"),
            "repack": ("repack", "-adq"),
            "pack-refs": ("pack-refs", "--all"),
            "prune": ("prune", "--expire=now"),
        }[what]
        return self._git(*words).returncode == 0

    def _git(self, *words: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run("git", "-C", where or self.repository, *words, env=environment(), status=None)

    def _fresh(self, dice: random.Random) -> tuple[str, str]:
        self._number += 1
        name = dice.choice([f"o{self._number}", f"o{dice.randrange(1, self._number + 1)}"])
        return name, f"{self._number} {dice.random()}\n" * dice.randrange(1, 200)

    def _push(self, dice: random.Random) -> bool:
        if not self.clone.exists():
            # What a push sets off is over when the push is: a pack that goes while fsck reads is no damage.
            if self._git("config", "gc.autoDetach", "false").returncode:
                return False
            self._git("clone", "-q", str(self.repository), str(self.clone), where=Path("/"))
        name, text = self._fresh(dice)
        for _ in range(6):
            # Pruned: to bring back a branch that somebody deleted as it was long ago rewrites its history.
            fetched = self._git("fetch", "-q", "--prune", "origin", where=self.clone)
            tip = self._git("rev-parse", "origin/main", where=self.clone)
            if fetched.returncode or tip.returncode:
                continue
            self._git("checkout", "-q", "-f", "-B", "main", tip.stdout.strip(), where=self.clone)
            (self.clone / "outside").mkdir(exist_ok=True)
            (self.clone / "outside" / name).write_text(text)
            self._git("add", "outside", where=self.clone)
            self._git("commit", "-q", "-m", f"outside {self._number}", where=self.clone)
            if self._git("push", "-q", "origin", "main", where=self.clone).returncode == 0:
                self._landed(name, text, self._git("rev-parse", "main", where=self.clone).stdout.strip())
                return True
        self.refused += 1
        return False

    def _update_ref(self, dice: random.Random) -> bool:
        """The same without a clone: a commit made in the repository itself, and the branch moved by hand."""
        name, text = self._fresh(dice)
        index = self.repository.parent / "index"
        for _ in range(6):
            index.unlink(missing_ok=True)
            tip = self._git("rev-parse", "-q", "--verify", "refs/heads/main").stdout.strip()
            if not tip:
                continue
            env = environment(GIT_INDEX_FILE=str(index))
            git = ["git", "-C", str(self.repository)]
            blob = run(*git, "hash-object", "-w", "--stdin", env=env, stdin=text, status=None).stdout.strip()
            run(*git, "read-tree", tip, env=env, status=None)
            run(
                *git,
                "update-index",
                "--add",
                "--cacheinfo",
                f"100644,{blob},outside/{name}",
                env=env,
                status=None,
            )
            tree = run(*git, "write-tree", env=env, status=None).stdout.strip()
            made = run(*git, "commit-tree", tree, "-p", tip, "-m", "by hand", env=env, status=None)
            commit = made.stdout.strip()
            if commit and self._git("update-ref", "refs/heads/main", commit, tip).returncode == 0:
                self._landed(name, text, commit)
                return True
        self.refused += 1
        return False

    def _landed(self, name: str, text: str, commit: str) -> None:
        self.files[name] = text
        self.commits.append(commit)

    def rewrite(self, what: str) -> str | None:
        """Change the history of a branch to which nobody writes now; its new tip, None: it is gone."""
        tip = self._git("rev-parse", "refs/heads/main").stdout.strip()
        if what == "branch deleted":
            assert self._git("update-ref", "-d", "refs/heads/main", tip).returncode == 0
            return None
        words = ["commit-tree", f"{tip}^{{tree}}", "-m", "amended"]
        for parent in self._git("rev-parse", f"{tip}^@").stdout.split():
            words += ["-p", parent]
        made = self._git(*words).stdout.strip()
        assert self._git("update-ref", "refs/heads/main", made, tip).returncode == 0
        self.commits = [commit for commit in self.commits if commit != tip]
        return made

    def wrong(self, mountpoint: Path) -> list[str]:
        """What the mount shows otherwise than it was pushed, and pushed commits that are in no history."""
        lines = []
        for name, text in self.files.items():
            path = mountpoint / "outside" / name
            found = path.read_text() if path.exists() else None
            if found != text:
                lines.append(f"outside/{name}: {'gone' if found is None else 'otherwise than pushed'}")
        for commit in self.commits:
            if self._git("merge-base", "--is-ancestor", commit, "refs/heads/main").returncode:
                lines.append(f"the pushed commit {commit} is not in the history")
        return lines
