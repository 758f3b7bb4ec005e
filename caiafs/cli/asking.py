"""The commands that ask a running mount (commit, sync, status), and the offline check."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from typing import Any

from caiafs.cli import render
from caiafs.config import Config
from caiafs.control import ControlError, call, call_socket, locate, mount_table, read_stats
from caiafs.errors import CaiafsError, UsageError

STATUS_TIMEOUT = 10.0


def commit(arguments: argparse.Namespace) -> int:
    """`caiafs commit`: prints the id of the commit that now holds everything."""
    paragraphs = [given.strip("\n") for given in arguments.message or () if given.strip()]  # as git has them
    request = {"message": "\n\n".join(paragraphs)} if paragraphs else {}
    with render.ProgressLine() as progress:
        answer = call(arguments.mountpoint, "commit", request, on_progress=progress)
    if answer["commit"]:
        print(answer["commit"])
    if not answer["changes"]:
        print("caiafs: nothing new to commit", file=sys.stderr)
    return 0


def sync(arguments: argparse.Namespace) -> int:
    """`caiafs sync`: returns once all changes so far survive power loss."""
    call(arguments.mountpoint, "sync")
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """`caiafs reload`: the daemon reads its settings again; prints what changed and what cannot."""
    if (arguments.mountpoint is None) == (arguments.config is None):
        raise UsageError("reload takes MOUNTPOINT, or --config FILE, which names it")
    mountpoint = arguments.mountpoint
    if mountpoint is None:
        mountpoint = Config.load(None, None, (), os.environ, arguments.config).mountpoint
    print(call(mountpoint, "reload", timeout=STATUS_TIMEOUT)["said"])
    return 0


def status(arguments: argparse.Namespace) -> int:
    """`caiafs status`: one mount, or all of them; 1 if one has failed or does not answer."""
    if arguments.watch:
        return _watch(arguments)
    if arguments.mountpoint is not None:
        place = locate(arguments.mountpoint, STATUS_TIMEOUT).mountpoint
        reports = [_report(place)]
    else:
        reports = [
            _report(place) for place in sorted({each.mountpoint for each in mount_table() if each.is_caiafs})
        ]
    if arguments.json:
        print(json.dumps(reports[0] if arguments.mountpoint is not None else reports, indent=2))
    elif not reports:
        print("no caiafs mounts")
    else:
        print("\n\n".join(render.status(report) for report in reports))
    return 1 if any(_failed(report) for report in reports) else 0


def _watch(arguments: argparse.Namespace) -> int:
    if arguments.json:
        raise UsageError("--watch is for people and --json for programs: ask again and again for the latter")
    places = sorted({each.mountpoint for each in mount_table() if each.is_caiafs})
    if arguments.mountpoint is None and len(places) != 1:
        said = f"; mounted are: {', '.join(places)}" if places else ": nothing of caiafs is mounted"
        raise UsageError(f"--watch shows one mount, name it{said}")
    place, config = configuration(arguments.mountpoint or places[0])
    try:
        from caiafs.cli import watch
        from caiafs.history import History
    except ImportError as problem:
        raise CaiafsError(
            f"cannot load what --watch needs ({problem}); `caiafs doctor` says how to mend it"
        ) from None
    history: list[History] = []

    def ask() -> dict[str, Any]:
        return call_socket(config["state_dir"], "status", {"requests": True}, STATUS_TIMEOUT)

    def latest(limit: int) -> list[dict[str, Any]]:
        if not history:
            repo, branch = render.setting(config, "repo"), os.fsencode(config["branch"])
            history.append(History(repo, b"refs/heads/" + branch))
        return history[0].latest(limit)

    try:
        return watch.run(place, ask, latest)
    finally:
        for one in history:
            one.close()


def check(arguments: argparse.Namespace) -> int:
    """`caiafs check`: offline; the exit code is what the check found."""
    try:
        from caiafs.check import run_check
    except ImportError as problem:
        raise CaiafsError(
            f"cannot load what the check needs ({problem}); `caiafs doctor` says how to mend it"
        ) from None

    with render.ProgressLine() as progress:

        def say(text: str) -> None:
            progress.wipe()
            print(text, flush=True)

        return run_check(
            arguments.repo, arguments.branch, arguments.state_dir, arguments.repair, say, progress
        )


def configuration(path: str) -> tuple[str, dict[str, Any]]:
    """The mountpoint that *path* lies in, and its config.json; ControlError where nothing answers."""
    place = locate(path, STATUS_TIMEOUT).mountpoint
    report = _report(place)
    if "error" in report:
        raise CaiafsError(report["error"])
    config: dict[str, Any] = report["config"]
    return place, config


def _report(mountpoint: str) -> dict[str, Any]:
    """What a mount says about itself; {"error": …} in place of figures where it says nothing."""
    try:
        try:
            figures = call(mountpoint, "status", timeout=STATUS_TIMEOUT)
        except ControlError as problem:
            if problem.errno not in (errno.EACCES, errno.EPERM):
                raise
            # Someone else's mount that we may read (allow_other): the files say the same.
            figures = {
                name: read_stats(mountpoint, f"{name}.json", STATUS_TIMEOUT)
                for name in ("health", "stats", "config")
            }
    except ControlError as problem:
        return {"mountpoint": mountpoint, "error": str(problem)}
    return {"mountpoint": mountpoint, **figures}


def _failed(report: dict[str, Any]) -> bool:
    return "error" in report or report.get("health", {}).get("state") == "failed"
