"""`caiafs doctor`: what this machine lacks, and the command that mends it.

Runs with the standard library alone, since a missing library is what it is there to find.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from caiafs import __version__
from caiafs.control.mounts import fuse_device_problem, fusermount_problem, others_allowed

LEAST_DESCRIPTORS = 1024


class Finding(NamedTuple):
    """One line of the report. *remedy* is empty when all is well."""

    what: str
    state: str
    """ok, missing (required) or note (works without)."""
    detail: str
    remedy: str = ""


def run(_arguments: object = None) -> int:
    """Print a line for each thing that was looked at; 1 if something required is missing."""
    print(f"caiafs {__version__}")
    missing = 0
    for finding in examine():
        missing += finding.state == "missing"
        print(f"  {finding.state:<8} {finding.what:<18} {finding.detail}")
        if finding.remedy:
            print(f"  {'':<8} {'':<18} → {finding.remedy}")
    print("something required is missing: see above" if missing else "everything required is there")
    return 1 if missing else 0


def examine() -> Iterator[Finding]:
    """Look at one thing after the other; nothing here raises."""
    yield _python()
    yield _kernel()
    problem = fuse_device_problem()
    yield _finding("/dev/fuse", problem)
    yield _fusermount()
    yield _mtab()
    yield _libfuse()
    for name, package in (
        ("pyfuse3", "pyfuse3"),
        ("trio", "trio"),
        ("dulwich", "dulwich"),
        ("isal", "isal"),
    ):
        yield _library(name, package)
    for name, package, user in (
        ("starlette", "starlette", "mounts with http"),
        ("hypercorn", "hypercorn", "mounts with http"),
        ("prometheus_client", "prometheus-client", "mounts with http"),
        ("rich", "rich", "`caiafs status --watch`"),
    ):
        found = _library(name, package)
        if found.state != "ok":
            found = found._replace(state="note", detail=f"{found.detail}; only {user} needs it")
        yield found
    yield _allow_other()
    yield _git()
    yield _descriptors()


def _finding(what: str, problem: str | None, well: str = "") -> Finding:
    if problem is None:
        return Finding(what, "ok", well)
    cause, _, remedy = problem.partition(": ")
    return Finding(what, "missing", cause, remedy)


def _python() -> Finding:
    # One older than 3.11 does not get this far: pip refuses to install, and tomllib is missing.
    return Finding("Python", "ok", platform.python_version())


def _kernel() -> Finding:
    release = platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if sys.platform != "linux":
        return Finding("kernel", "missing", f"{sys.platform} is not Linux", "run caiafs on Linux")
    if version < (5, 4):
        return Finding("kernel", "missing", f"{release} is too old: 5.4 is needed", "upgrade the kernel")
    return Finding("kernel", "ok", release)


def _fusermount() -> Finding:
    problem = fusermount_problem()
    if problem is not None:
        return _finding("fusermount3", problem)
    try:
        said = subprocess.run(
            ["fusermount3", "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError as failure:
        return Finding("fusermount3", "missing", str(failure), _apt("fuse3"))
    match = re.search(r"(\d+)\.\d+(\.\d+)?", said)
    if match is None or int(match[1]) < 3:
        return Finding("fusermount3", "missing", f"version 3 is needed, not {said.strip()}", _apt("fuse3"))
    return Finding("fusermount3", "ok", match[0])


def _mtab() -> Finding:
    # A container or a chroot made by hand may lack it; fusermount3 -u asks it whose mount it is.
    if os.path.exists("/etc/mtab"):
        return Finding("/etc/mtab", "ok", "")
    return Finding(
        "/etc/mtab",
        "note" if os.geteuid() == 0 else "missing",
        "is not there: only root can unmount",
        "sudo ln -s /proc/self/mounts /etc/mtab",
    )


def _libfuse() -> Finding:
    name = ctypes.util.find_library("fuse3")
    for candidate in filter(None, (name, "libfuse3.so.3", "libfuse3.so.4")):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return Finding("libfuse3", "ok", candidate)
    return Finding("libfuse3", "missing", "the library cannot be loaded", _apt("libfuse3-3"))


def _library(name: str, package: str) -> Finding:
    try:
        importlib.import_module(name)
        return Finding(name, "ok", importlib.metadata.version(package))
    except Exception as problem:
        # Any exception: a library that fails in its own way to load is just as missing.
        remedy = f"{sys.executable} -m pip install '{package}'"
        if name == "pyfuse3":
            remedy = f"{_apt('libfuse3-dev pkg-config gcc python3-dev')} && {remedy}"
        return Finding(name, "missing", f"cannot be imported: {problem}", remedy)


def _allow_other() -> Finding:
    if others_allowed():
        return Finding("user_allow_other", "ok", "ordinary users may mount with allow_other")
    return Finding(
        "user_allow_other",
        "note",
        "not set: only root can mount with allow_other",
        "echo user_allow_other | sudo tee -a /etc/fuse.conf",
    )


def _git() -> Finding:
    program = shutil.which("git")
    if program is None:
        return Finding("git", "note", "not found: caiafs works without, you may miss it", _apt("git"))
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return Finding("git", "ok", said.strip().removeprefix("git version "))


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST_DESCRIPTORS:
        return Finding(
            "open files",
            "missing",
            f"at most {hard} for one process: {LEAST_DESCRIPTORS} are needed",
            f"ulimit -n {LEAST_DESCRIPTORS} (or LimitNOFILE= in the unit)",
        )
    try:
        in_use = len(os.listdir("/proc/self/fd"))
    except OSError:
        in_use = 0
    return Finding("open files", "ok", f"limit {soft}, {in_use} in use here")


def _apt(packages: str) -> str:
    return f"sudo apt-get install {packages}"
