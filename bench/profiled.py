"""caiafs under a profiler that is switched on by SIGUSR1, and off, with its figures written, by SIGUSR2.

`python -m bench.profiled FILE WORD…` runs `caiafs WORD…`: what starting and ending cost stays out of it.
"""

from __future__ import annotations

import cProfile
import signal
import sys

from caiafs.cli import main


def run(file: str, words: list[str]) -> int:
    profile = cProfile.Profile()

    def stop(number: int, frame: object) -> None:
        profile.disable()
        profile.dump_stats(file)

    signal.signal(signal.SIGUSR1, lambda number, frame: profile.enable())
    signal.signal(signal.SIGUSR2, stop)
    return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
