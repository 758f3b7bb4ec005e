"""Fuzzing led by coverage: `make fuzz`, or `python tests/fuzz/run.py [--seconds N] [TARGET …]`.

Each target of targets.py runs in a process of its own, beginning with its good inputs, and keeps what
leads to new code in *--corpus* (a temporary folder unless one is given, so that nothing need be kept).
What a target fails on is written beside it, shown as a Python literal, and makes the exit status 1: it
belongs into `FOUND` of tests/unit/test_fuzz.py, with the fix. Needs atheris: `pip install -e .[fuzz]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:1] = [str(HERE.parents[1]), str(HERE.parents[2])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help="which targets; default: all of them")
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--corpus", type=Path, help="a folder that is kept from run to run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.one:
        return fuzz(arguments.one, [*arguments.targets, *rest])
    with tempfile.TemporaryDirectory(prefix="caiafs-fuzz-") as temporary:
        corpus = (arguments.corpus or Path(temporary)).resolve()
        return run(arguments.targets, arguments.seconds, corpus)


def run(targets: list[str], seconds: int, corpus: Path) -> int:
    """Fuzz each of *targets* for so many seconds; 1 if any failed."""
    from fuzz.targets import PLACE, TARGETS, clean_up, seeds

    environment = {**os.environ, "CAIAFS_FUZZ_PLACE": PLACE}
    unknown = set(targets) - TARGETS.keys()
    if unknown:
        print(
            f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}", file=sys.stderr
        )
        return 2
    failed = []
    for name in targets or TARGETS:
        place = corpus / name
        place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(name)):
            (place / f"seed-{number}").write_bytes(seed)
        words = [sys.executable, str(HERE), "--one", name, str(place), f"-max_total_time={seconds}"]
        words += [
            "-max_len=4096",
            "-rss_limit_mb=2048",
            "-timeout=20",
            f"-artifact_prefix={place}-",
            "-verbosity=0",
        ]
        words += ["-print_final_stats=1"]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment)
        said = done.stdout + done.stderr
        runs = next(
            (line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line), "?"
        )
        if done.returncode == 0:
            print(f"{name}: {runs} runs, {len(list(place.iterdir()))} inputs kept", flush=True)
            continue
        failed.append(name)
        print(f"{name}: FAILED\n{said[-4000:]}", flush=True)
        for artifact in corpus.glob(f"{name}-*"):
            print(f'    ("{name}", {artifact.read_bytes()!r}),', flush=True)
    clean_up()
    return 1 if failed else 0


def fuzz(name: str, words: list[str]) -> int:
    """One target, in this process, which does not come back."""
    import atheris

    with atheris.instrument_imports(include=["caiafs"]):
        from fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], *words], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
