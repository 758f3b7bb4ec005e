"""One run: peers are started, every case goes over all of them in turn, round after round.

What hangs is killed at its limit, driver and peer, and the peer is started again for the next case; what
fails is noted, and not tried again in later rounds. A peer that hung three times is left out. Nothing that
goes wrong ends the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import machine, peers, processes, profiles
from .cases import Case
from .goals import GOALS
from .peers.base import environment, kill, mounts_below, unmount
from .results import Results

PATIENCE = 3
"""Hangs after which a peer is left out of the rest of the run."""


REMOVALS = 60.0
"""Seconds that are waited for the removal of an earlier run's files."""


PROFILING = 60.0
"""Seconds for profiles beyond the time for rounds."""


LATE = "The time limit was reached: later rounds, or cases, are missing."


class Hung(Exception):
    """A piece of work did not end in time."""


class Driver:
    """The driver process; made anew after it had to be killed."""

    def __init__(self, **environment: str) -> None:
        self._extra = environment
        self._process: subprocess.Popen[str] | None = None

    def ask(self, order: dict[str, Any], limit: float) -> dict[str, Any]:
        """Have an order carried out; raises Hung."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], limit)
        if not readable:
            raise Hung(f"no end after {limit:g} s")
        line = process.stdout.readline()
        if not line:
            self._process = None
            return {"error": f"the driver ended with {process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it and what it started; a process that waits for a dead mount goes once that is let go of."""
        process, self._process = self._process, None
        if process is not None:
            kill(processes.children(process.pid))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            kill(processes.children(process.pid))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=environment(**self._extra), cwd="/",
            )  # fmt: skip
        return self._process


class Session:
    """Runs *cases* and fills *results*; *say* shows progress."""

    def __init__(
        self, cases: list[Case], results: Results, say: Callable[[str], None], *,
        quick: bool, only: frozenset[str] | None, rounds: int | None, limit: float, base: Path | None = None,
    ) -> None:  # fmt: skip
        self._cases = cases
        self._results = results
        self._say = say
        self._quick = quick
        self._only = only
        self._rounds = rounds
        self._ends = time.monotonic() + limit
        self._peers: dict[str, peers.Peer] = {}
        self._hangs: dict[str, int] = {}
        self._number = 0
        self._durations: dict[tuple[str, str], float] = {}
        self.disk = Path(tempfile.mkdtemp(prefix="cb", dir=base or "/var/tmp"))
        self.memory = Path(tempfile.mkdtemp(prefix="cb", dir="/dev/shm"))
        self._driver = Driver(BENCH_SCRATCH=os.fspath(self.memory / "scratch"))
        # Directories below spread over the disk, so that one peer's inodes are not searched for by another.
        subprocess.run(["chattr", "+T", self.disk], capture_output=True)
        self._results.machine = machine.describe(self.disk, self.memory)

    def run(self, profiled: bool = False) -> None:
        """All rounds, or as many as the time allows; what there is, is in the results.

        With *profiled*, what missed its goal is looked at once more, with a profiler.
        """
        try:
            self._wait_for_removals()
            self._install()
            most = max(self._rounds_of(case) for case in self._cases)
            for number in range(most):
                self._round(number)
            if profiled:
                self._profile()
        except KeyboardInterrupt:
            self._results.note("Interrupted: later rounds are missing.")
        self._results.machine["load_after"] = round(os.getloadavg()[0], 2)

    def close(self) -> None:
        """Leave nothing running and nothing mounted; what is on disk goes in the background."""
        self._driver.close()
        for peer in self._peers.values():
            peer.stop() if not self._hangs.get(peer.key) else peer.abort()
        for place in (self.disk, self.memory):
            for mountpoint in mounts_below(place):
                unmount(mountpoint, lazily=True)
            _remove(place)

    # ---- rounds

    def _profile(self) -> None:
        for case in self._cases:
            missed = any(found.ours[0] == case.key for goal in GOALS for found in goal.missed(self._results))
            if not missed or case.group != "files":
                continue
            if time.monotonic() > self._ends + PROFILING:
                self._results.note("There was no time left for all profiles.")
                return
            try:
                self._results.profiles[case.key] = profiles.take(case, self.disk, self._driver.ask)
            except (Hung, peers.Unavailable, OSError, ValueError) as error:
                self._driver.kill()
                self._say(f"{case.key} could not be profiled: {error}")
            else:
                self._say(f"profiled {case.key}: {self._results.profiles[case.key][0]}")

    def _rounds_of(self, case: Case) -> int:
        return self._rounds or case.rounds[0 if self._quick else 1]

    def _round(self, number: int) -> None:
        self._results.note_speed(machine.speed())
        for case in self._cases:
            if time.monotonic() > self._ends:
                self._results.note(LATE)
                return
            arguments = case.arguments(self._quick)
            if arguments is None or number >= self._rounds_of(case):
                continue
            shown = []
            for key in self._order(case, number):
                if key in self._results.failures.get(case.key, {}) or not self._affordable(case, key):
                    continue
                begun = time.monotonic()
                figures = self._one(case, key, arguments)
                self._durations[case.key, key] = time.monotonic() - begun
                if figures is not None:
                    shown += _headlines(case, figures.get("peers", {key: figures}))
            self._say(f"round {number + 1}, {case.key}: " + (", ".join(shown) or "nothing"))

    def _order(self, case: Case, number: int) -> Iterator[str]:
        """The case's peers, beginning with another one in each round."""
        keys = [key for key in case.peers if self._wanted(case, key)] if case.peers else [""]
        begin = number % len(keys) if keys else 0
        return iter(keys[begin:] + keys[:begin])

    def _wanted(self, case: Case, key: str) -> bool:
        if self._only is not None:
            return key in self._only or key.partition("/")[0] in self._only
        return not self._quick or key in case.few

    def _affordable(self, case: Case, key: str) -> bool:
        expected = self._durations.get((case.key, key), 0.0)
        if time.monotonic() + expected < self._ends:
            return True
        self._results.note(LATE)
        return False

    def _one(self, case: Case, key: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """One case on one peer, once."""
        peer = self._started(key) if key else None
        if key and peer is None:
            return None
        self._number += 1
        top = peer.room if peer is not None else self.disk
        order = {
            "work": case.work, "room": os.fspath(top / f"{case.key}{self._number}"),
            "arguments": {**arguments, **self._extra_arguments(case, key)},
            "stats": os.fspath(peer.stats) if peer is not None and peer.stats is not None else None,
            "pid": peer.process.pid if peer is not None and peer.process is not None else None,
        }  # fmt: skip
        limit = min(case.limit, max(5.0, self._ends + 30 - time.monotonic()))
        try:
            answer = self._driver.ask(order, limit)
        except Hung as error:
            self._driver.kill()
            self._abort(key)
            self._fail(case, key, str(error))
            return None
        if "error" in answer:
            self._fail(case, key, answer["error"])
            return None
        figures: dict[str, Any] = answer["figures"]
        if peer is not None:
            try:
                figures["settle_s"] = round(peer.settle(), 3)
            except Exception as error:
                self._abort(key)
                self._fail(case, key, f"did not settle: {error}")
        self._results.add(case, key, figures)
        return figures

    def _extra_arguments(self, case: Case, key: str) -> dict[str, Any]:
        if not key:
            return {"memory": os.fspath(self.memory)}
        return {"git": True} if key.startswith("plain+git") else {}

    def _wait_for_removals(self) -> None:
        """An earlier run's files may still be on their way out, which slows a disk down."""
        begun = time.monotonic()
        while left := [*self.disk.parent.glob(f"cb*{LEFT}")]:
            if time.monotonic() - begun > REMOVALS:
                self._results.note("Files of an earlier run were still being removed meanwhile.")
                return
            if time.monotonic() - begun < 0.5:
                self._say(f"waiting for {left[0]}, an earlier run's, to be removed")
            time.sleep(0.5)

    # ---- peers

    def _install(self) -> None:
        """Bring what is missing where apt-get and root are there, and say so."""
        wanted = {key for case in self._cases for key in case.peers if self._wanted(case, key)}
        kinds = {key.partition("/")[0] for key in wanted}
        missing = [
            kind.package for name, kind in peers.KINDS.items()
            if name in kinds and kind.program and shutil.which(kind.program) is None
        ]  # fmt: skip
        if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
            return
        self._say(f"installing with apt-get, to compare with: {' '.join(missing)}")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
            try:
                done = subprocess.run(
                    ["apt-get", *words], env=env, capture_output=True, text=True, timeout=180
                )
            except subprocess.TimeoutExpired:
                self._say(f"apt-get {words[0]} took too long; going on without")
                return
            if done.returncode:
                self._say(f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")

    def _started(self, key: str) -> peers.Peer | None:
        """The running peer, or None where it is left out."""
        if self._hangs.get(key, 0) >= PATIENCE:
            return None
        peer = self._peers.get(key)
        if peer is None:
            place = self.disk if key.endswith("/disk") else self.memory
            peer = peers.make(key, place / f"{key.partition('/')[0]}{self._hangs.get(key, 0)}")
            self._peers[key] = peer
            try:
                peer.start()
            except peers.Unavailable as error:
                self._leave_out(key, str(error))
                return None
            except (OSError, subprocess.SubprocessError) as error:
                self._leave_out(key, f"could not be started: {error}")
                return None
            self._results.peers[key] = {"version": peer.version()}
        return peer

    def _leave_out(self, key: str, why: str) -> None:
        self._say(f"{key} is left out: {why}")
        self._results.peers[key] = {"missing": why}
        self._hangs[key] = PATIENCE

    def _fail(self, case: Case, key: str, why: str) -> None:
        self._say(f"{case.key} on {key or 'its own'} failed: {why}")
        self._results.fail(case, key, why)

    def _abort(self, key: str) -> None:
        """End what hangs by force: the peer, or what a case had started for itself."""
        self._hangs[key] = self._hangs.get(key, 0) + 1
        peer = self._peers.pop(key, None)
        if peer is not None:
            peer.abort()
            return
        ours = [other.mountpoint for other in self._peers.values()]
        for place in (self.disk, self.memory):
            for mountpoint in mounts_below(place):
                if mountpoint not in ours:
                    unmount(mountpoint, lazily=True)


LEFT = ".removing"


def _remove(place: Path) -> None:
    """Take *place* away, in a process of its own: with `discard`, a disk needs minutes for many files."""
    left = place.rename(place.with_name(place.name + LEFT))
    subprocess.Popen(
        ["nice", "-n", "19", "rm", "-rf", "--one-file-system", left], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _headlines(case: Case, by_peer: dict[str, Any]) -> list[str]:
    return [f"{key} {found[case.metric]:.4g}" for key, found in by_peer.items() if case.metric in found]
