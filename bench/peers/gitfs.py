"""gitfs 0.5.1 (fusepy and pygit2), the peer with the same idea. It runs on Python 3.7 and nothing newer."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from pathlib import Path

from .base import Peer, Unavailable, environment

VENV = Path(os.environ.get("BENCH_GITFS_VENV", "/var/tmp/caiafs-bench-gitfs"))
"""Kept between runs."""


class Gitfs(Peer):
    """Mounts a clone of a local bare repository; its files are under `current/`."""

    package = "gitfs==0.5.1 of PyPI, in a Python 3.7"

    def start(self) -> None:
        super().start()
        program = _install()
        origin = self.place / "origin.git"
        if not origin.exists():
            _seed(origin, self.place / "seed")
        options = (
            f"repo_path={self.place}/clone,branch=main,foreground=true,log={self.place}/gitfs.log,"
            "commiter_name=A Person,commiter_email=person@example.org,"
            "min_idle_times=1,fetch_timeout=3600,merge_timeout=1,allow_other=false,allow_root=false"
        )
        self.spawn([program, origin, self.place / "m", "-o", options], self.place / "m")

    @property
    def room(self) -> Path:
        return self.place / "m" / "current"

    def version(self) -> str:
        return "0.5.1"


def _python37() -> str:
    found = shutil.which("python3.7")
    candidates = [*([found] if found else []), *sorted(glob.glob("/root/.pyenv/versions/3.7*/bin/python"))]
    candidates += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.7*/bin/python")))
    for candidate in candidates:
        done = subprocess.run([candidate, "-V"], capture_output=True, text=True)
        if done.returncode == 0 and "3.7" in done.stdout:
            return candidate
    raise Unavailable("no Python 3.7 on this machine, and gitfs 0.5.1 runs on no newer one")


def _install() -> Path:
    program = VENV / "bin" / "gitfs"
    if not program.exists():
        python = _python37()
        for words in (
            [python, "-m", "venv", os.fspath(VENV)],
            [os.fspath(VENV / "bin" / "pip"), "install", "--quiet", "gitfs==0.5.1"],
        ):
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=180)
            except subprocess.TimeoutExpired:
                raise Unavailable("installing gitfs 0.5.1 took more than 180 s") from None
            if done.returncode:
                raise Unavailable(f"gitfs 0.5.1 cannot be installed: {done.stderr.strip()[-300:]}")
    return program


def _seed(origin: Path, seed: Path) -> None:
    """gitfs wants a remote with a commit on its branch."""
    for words in (
        ["git", "init", "-q", "--bare", os.fspath(origin)],
        ["git", "init", "-q", os.fspath(seed)],
        ["git", "-C", os.fspath(seed), "commit", "-q", "--allow-empty", "-m", "Begin"],
        ["git", "-C", os.fspath(seed), "push", "-q", os.fspath(origin), "HEAD:refs/heads/main"],
    ):
        subprocess.run(words, env=environment(), check=True, capture_output=True)
