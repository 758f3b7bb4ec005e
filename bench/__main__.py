"""`python -m bench`: run, keep, write."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import caiafs

from . import report
from .cases import choose
from .results import FOLDER, Results
from .session import Session
from .text import goals, table

LIMITS = {"quick": 2.6, "full": 23.0}
"""Minutes after which nothing new is begun, so that a run ends soon after."""
PAGE = report.DOCS / "performance.md"


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 once it has measured anything, 2 for wrong words."""
    words = _parser().parse_args(arguments)
    try:
        cases = choose([word for word in words.cases.split(",") if word])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if words.list:
        for case in cases:
            print(f"{case.key:18} {case.group:10} {case.title}")
        return 0
    if words.report:
        _write(Results.load(words.report), print)
        return 0
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)

    form = "quick" if words.quick else "full"
    results = Results(caiafs.__version__, form)
    session = Session(
        cases, results, say, quick=words.quick, rounds=words.rounds,
        only=frozenset(word for word in words.peers.split(",") if word) or None,
        limit=60 * (words.minutes or LIMITS[form]), base=words.disk,
    )  # fmt: skip
    try:
        session.run(profiled=not words.quick and not words.no_profiles)
        results.seconds = round(time.monotonic() - begun, 1)
        print(table(results))
        print(goals(results))
        _keep(words, results, say)
    finally:
        session.close()
    return 0 if results.rounds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="caiafs beside its peers")
    add = parser.add_argument
    add("--quick", action="store_true", help="a form of less than three minutes")
    add("--cases", default="", help="only these, with commas: keys, beginnings of keys, or groups")
    add("--peers", default="", help="only these, such as caiafs,bindfs/tmpfs")
    add("--rounds", type=int, help="so many rounds of every case")
    add("--minutes", type=float, help="begin nothing new after this long")
    add("--disk", type=Path, help="where on disk to work (default: /var/tmp)")
    add("--json", type=Path, help="keep the figures in this file, and leave the page as it is")
    add("--merge", action="store_true", help="put what is chosen into the figures kept; write the page anew")
    add("--no-profiles", action="store_true", help="do not look where the time of missed goals goes")
    add("--report", type=Path, metavar="JSON", help="only write docs/performance.md, from figures kept")
    add("--list", action="store_true", help="show the cases and end")
    return parser


def _keep(words: argparse.Namespace, results: Results, say: Callable[[str], None]) -> None:
    """JSON and page. A choice of cases or peers is kept nowhere unless it is asked for."""
    if words.json:
        results.save(words.json)
        say(f"kept in {words.json}")
        return
    partial = bool(words.cases or words.peers or words.rounds)
    full = FOLDER / f"{results.version}.json"
    path = full if results.form == "full" else FOLDER / f"{results.version}-quick.json"
    if partial and not words.merge:
        say("only a part was measured: nothing is kept (--merge or --json FILE would)")
        return
    if partial and path.exists():
        whole = Results.load(path)
        whole.merge(results)
        results = whole
    results.save(path)
    say(f"kept in {path}")
    if results.form == "quick" and full.exists():
        say(f"{PAGE} stays as the full form wrote it; --report {path} would write it from these figures")
    else:
        _write(results, say)


def _write(results: Results, say: Callable[[str], None]) -> None:
    report.write(results, PAGE, report.kept_results())
    say(f"written: {PAGE}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
