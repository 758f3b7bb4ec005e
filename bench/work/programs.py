"""What people run: tar, cp, rm, git, pip. Each step is timed on its own, from start to exit.

With *git*, every step that leaves something behind is followed by `git add -A && git commit`, inside its
time: that is what keeping history costs without caiafs.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.requests import Meter

from . import materials
from .materials import run


def programs(room: bytes, meter: Meter, files: int, modules: int, git: bool = False) -> dict[str, Any]:
    """untar, cp -a, rm -rf, git clone, git status, pip install, one after the other."""
    place = Path(os.fsdecode(room))
    if git:
        run("git", "init", "-q", place)
    tar, upstream, wheel = materials.sdist(files), materials.upstream(files), materials.wheel(modules)
    figures: dict[str, Any] = {"files": float(files)}

    def step(name: str, work: Callable[[], object], kept: bool = True) -> None:
        begun = time.perf_counter()
        work()
        if git and kept:
            run("git", "add", "-A", cwd=place)
            run("git", "commit", "-q", "--allow-empty", "-m", name, cwd=place)
        figures[f"{name}_s"] = time.perf_counter() - begun
        figures[f"{name}_settle_s"] = meter.settle()

    meter.begin()
    step("untar", lambda: run("tar", "-xf", tar, "-C", place))
    meter.end(files)
    step("cp", lambda: run("cp", "-a", place / "sample-1.0", place / "copy"))
    step("rm", lambda: run("rm", "-rf", place / "copy"))
    if not git:
        step("clone", lambda: run("git", "clone", "-q", f"file://{upstream}", place / "clone"))
        step("status", lambda: run("git", "status", "--porcelain", cwd=place / "clone"))
        step("status_again", lambda: run("git", "status", "--porcelain", cwd=place / "clone"))
    venv = place / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    words = ["install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check", os.fspath(wheel)]
    if shutil.which(venv / "bin" / "python") is None:
        raise RuntimeError(f"{venv}/bin/python cannot be run")
    step("pip", lambda: run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", *words))
    return figures
