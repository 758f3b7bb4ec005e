"""The machine that a run took place on, as far as it explains the figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def describe(disk: Path, memory: Path) -> dict[str, Any]:
    """Processor, kernel, filesystems and versions. Names no host, user or path."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "system": _system(),
        "disk": filesystem_of(disk),
        "tmpfs": filesystem_of(memory),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "git": version("git", "--version"),
            "fuse3": version("fusermount3", "-V"),
            **{name: _package(name) for name in ("pyfuse3", "trio", "dulwich", "isal")},
        },
    }


def filesystem_of(path: Path) -> str:
    """Kind and options of the filesystem that holds *path*, such as "ext4 (rw,relatime)"."""
    best, found = -1, "unknown"
    wanted = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        inside = wanted == where or wanted.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= best:
            best, found = len(where), f"{kind} ({options})"
    return found


def version(*words: str) -> str:
    """The first thing that looks like a version in what a program prints; "missing" without it."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "missing"
    match = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return match[0].rstrip(",;)") if match else "unknown"


def speed() -> float:
    """Seconds that a fixed piece of Python takes: tells a busy machine from a quiet one."""
    begun = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    return time.perf_counter() - begun


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        words = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
        )
    except OSError:
        return "unknown"
    return words.get("PRETTY_NAME", "unknown").strip('"')
