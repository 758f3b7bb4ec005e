"""What a thousand HTTP requests a second do to a mount's own latency: python -m bench.http_load

A fresh mount with HTTP, and one program that makes, writes, reads and removes small files in it. Three kinds
of rounds follow each other, so that what the machine does otherwise falls on all: without requests, with
requests to another mount that nobody uses (what the processors' time alone costs), and with requests to
this one. Printed are medians over the rounds of the 50th and 99th percentile, and their ratios.
Run on demand: ratios of a busy machine say little, and no test decides on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

SOURCE = Path(__file__).resolve().parents[1]
PATHS = ("/metrics", "/api/v1/storage/stats", "/api/v1/storage/health", "/api/v1/storage/metrics", "/")
CONNECTIONS = 200
"""Enough for the rate, though each answer waits up to a tenth of a second for the look that it shares."""
KINDS = ("quiet", "elsewhere", "loaded")


@contextlib.contextmanager
def mounted(base: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A mount with HTTP: its place, and the port."""
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
        url = json.loads((place / ".stats/config.json").read_text())["http"]["url"]
        yield place, int(url.rstrip("/").rpartition(":")[2])
    finally:
        subprocess.run([*command, "umount", str(place)], check=True, env=env)


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
    """Ask *rate* times a second over CONNECTIONS connections; prints how often there was an answer."""
    answered = 0

    async def received(stream: trio.SocketStream) -> bytes:
        data = await stream.receive_some(65536)
        if not data:
            raise SystemExit("the server closed a connection in the middle of an answer")
        return bytes(data)

    async def client(number: int, until: float) -> None:
        nonlocal answered
        request = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
        due = trio.current_time() + number / rate
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        turn = number
        while due < until:
            await trio.sleep_until(due)
            due += CONNECTIONS / rate
            await stream.send_all(request % PATHS[turn % len(PATHS)].encode())
            turn += 1
            head = bytearray()
            while (end := head.find(b"\r\n\r\n")) < 0:
                head += await received(stream)
            fields = bytes(head[:end]).lower()
            left = int(fields.partition(b"content-length: ")[2].split()[0]) - (len(head) - end - 4)
            while left > 0:
                left -= len(await received(stream))
            answered += 1
            if b"connection: close" in fields:
                await stream.aclose()
                stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.aclose()

    async def main() -> None:
        until = trio.current_time() + seconds
        # A server that is starved answers late: what it owes then is not waited for.
        with trio.move_on_at(until):
            async with trio.open_nursery() as nursery:
                for number in range(CONNECTIONS):
                    nursery.start_soon(client, number, until)

    begun = time.perf_counter()
    trio.run(main)
    print(answered / (time.perf_counter() - begun))


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
    rates = []
    with (
        tempfile.TemporaryDirectory(prefix="caiafs-load-") as base,
        mounted(Path(base), "one") as (place, port),
        mounted(Path(base), "other") as (_, other),
    ):
        work(place, 1)
        for _ in range(arguments.rounds):
            for kind in found:
                client = None
                if kind != "quiet":
                    asked = port if kind == "loaded" else other
                    words = ["--load", str(asked), "--rate", str(arguments.rate)]
                    words += ["--seconds", str(arguments.seconds + 1)]
                    client = subprocess.Popen(
                        [sys.executable, "-m", "bench.http_load", *words], stdout=subprocess.PIPE, text=True,
                        cwd=SOURCE,
                    )  # fmt: skip
                    time.sleep(1)  # until it has begun
                durations = work(place, arguments.seconds)
                for percent, each in found[kind].items():
                    each.append(percentile(durations, percent))
                if client is not None:
                    rates.append(float(client.communicate()[0]))
    for percent in (50, 99):
        quiet, elsewhere, loaded = (statistics.median(found[kind][percent]) for kind in KINDS)
        print(
            f"p{percent}: {quiet * 1e6:.0f} µs without, {elsewhere * 1e6:.0f} µs with requests elsewhere, "
            f"{loaded * 1e6:.0f} µs with requests: {loaded / quiet:.2f} and {loaded / elsewhere:.2f} times"
        )
    print(f"answered: {statistics.median(rates):.0f} of {arguments.rate:g} requests a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
