"""What a thousand HTTP requests a second do to a mount's own latency: python -m bench.http_load

A fresh mount with HTTP, and one program that makes, writes, reads and removes small files in it. Three kinds
of rounds follow each other, so that what the machine does otherwise falls on all: without requests, with
requests to another mount that nobody uses (what the processors' time alone costs), and with requests to
this one. Printed are medians over the rounds: of the 50th and 99th percentile, with their ratios, of how many
requests were answered, and of the processor's time that each took the server.
Run on demand: ratios of a busy machine say little, and no test decides on them.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
PATHS = ("/metrics", "/api/v1/storage/stats", "/api/v1/storage/health", "/api/v1/storage/metrics", "/")
CONNECTIONS = 200
"""Enough for the rate, though each answer waits up to a tenth of a second for the look that it shares."""
BEGINNING = 1.0
"""Seconds of requests before each round, which are not counted."""
KINDS = ("quiet", "elsewhere", "loaded")


@contextlib.contextmanager
def mounted(base: Path, name: str) -> Iterator[tuple[Path, int, int]]:
    """A mount with HTTP: its place, the port, and the server's process."""
    place = base / name
    place.mkdir()
    command = [sys.executable, "-m", "caiafs"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run(
        [*command, "mount", "-o", "init,http=127.0.0.1:0", str(base / f"{name}.git"), str(place)],
        check=True,
        env=env,
    )
    try:
        config = json.loads((place / ".stats/config.json").read_text())
        yield place, int(config["http"]["url"].rstrip("/").rpartition(":")[2]), server_of(config["pid"])
    finally:
        subprocess.run([*command, "umount", str(place)], check=True, env=env)


def server_of(daemon: int) -> int:
    """The HTTP server among a daemon's children."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    (server,) = (pid for pid in children if b"http.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(server)


def work(place: Path, seconds: float) -> list[float]:
    """How long each call took: make and write, read back through a new descriptor, remove."""
    durations = []
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end:
        path = place / f"f{number % 50}"
        number += 1
        for step in (lambda: path.write_bytes(b"x" * 2000), path.read_bytes, path.unlink):  # noqa: B023
            begun = time.perf_counter()
            step()
            durations.append(time.perf_counter() - begun)
        time.sleep(0.001)
    return durations


def load(port: int, rate: float, seconds: float) -> None:
    """Ask *rate* times a second over CONNECTIONS connections; prints the number of answers in *seconds*.

    Bare sockets and no parsing: what the processors do is to be the server's work, not this one's.
    """
    requests = itertools.cycle(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in PATHS)
    begun = time.perf_counter() + BEGINNING
    due = [(begun - BEGINNING + number / rate, number) for number in range(CONNECTIONS)]
    asked: dict[int, tuple[socket.socket, int, float]] = {}
    waiting = select.epoll()
    streams: dict[int, socket.socket] = {}
    answered = 0
    # A server that is starved answers late: what it owes at the end is not waited for.
    while (now := time.perf_counter()) < begun + seconds:
        while due and due[0][0] <= now:
            at, number = heapq.heappop(due)
            if number not in streams:
                streams[number] = socket.create_connection(("127.0.0.1", port))
                waiting.register(streams[number], select.EPOLLIN)
            streams[number].send(next(requests))
            asked[streams[number].fileno()] = (streams[number], number, at)
        pause = (due[0][0] if due else begun + seconds) - time.perf_counter()
        for fd, _ in waiting.poll(max(0, pause)):
            stream, number, at = asked.pop(fd)
            if receive(stream):
                waiting.unregister(fd)
                streams.pop(number).close()
            answered += now >= begun
            heapq.heappush(due, (at + CONNECTIONS / rate, number))
    print(answered)


def receive(stream: socket.socket) -> bool:
    """Take one answer, whose beginning is there; whether it is the last on this connection."""
    data = stream.recv(1 << 18)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = head.lower()
    left = int(fields.partition(b"content-length: ")[2].split(maxsplit=1)[0]) - len(body)
    while left > 0:
        data = stream.recv(left)
        if not data:
            raise SystemExit("the server closed a connection in the middle of an answer")
        left -= len(data)
    return b"connection: close" in fields


def processor_time(pid: int) -> float:
    """Seconds that a process had a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def percentile(durations: list[float], percent: float) -> float:
    """By nearest rank."""
    ordered = sorted(durations)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1000, help="requests a second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=5, help="of each round (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default: %(default)d)")
    parser.add_argument("--load", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load, arguments.rate, arguments.seconds)
        return 0
    found: dict[str, dict[int, list[float]]] = {kind: {50: [], 99: []} for kind in KINDS}
    rates, costs = [], []
    with (
        tempfile.TemporaryDirectory(prefix="caiafs-load-") as base,
        mounted(Path(base), "one") as (place, port, server),
        mounted(Path(base), "other") as (_, other, other_server),
    ):
        work(place, 1)
        for _ in range(arguments.rounds):
            for kind in found:
                client = None
                if kind != "quiet":
                    asked, pid = (port, server) if kind == "loaded" else (other, other_server)
                    words = ["--load", str(asked), "--rate", str(arguments.rate)]
                    words += ["--seconds", str(arguments.seconds)]
                    client = subprocess.Popen(
                        [sys.executable, "-m", "bench.http_load", *words], stdout=subprocess.PIPE, text=True,
                        cwd=SOURCE,
                    )  # fmt: skip
                    time.sleep(BEGINNING)
                    before = processor_time(pid)
                durations = work(place, arguments.seconds)
                for percent, each in found[kind].items():
                    each.append(percentile(durations, percent))
                if client is not None:
                    answers = int(client.communicate()[0])
                    rates.append(answers / arguments.seconds)
                    costs.append((processor_time(pid) - before) / answers)
    for percent in (50, 99):
        quiet, elsewhere, loaded = (statistics.median(found[kind][percent]) for kind in KINDS)
        print(
            f"p{percent}: {quiet * 1e6:.0f} µs without, {elsewhere * 1e6:.0f} µs with requests elsewhere, "
            f"{loaded * 1e6:.0f} µs with requests: {loaded / quiet:.2f} and {loaded / elsewhere:.2f} times"
        )
    print(
        f"answered: {statistics.median(rates):.0f} of {arguments.rate:g} requests a second, "
        f"each for {statistics.median(costs) * 1e3:.2f} ms of a processor"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
