"""Documents at the storage interface (caiafs.backends), in process: no kernel, no socket.

One document is three (metadata.json, content.txt, raw), as in the case that goes through a mount.
"memory tier" keeps it in memory, which is what an acknowledgement by that tier means; "memory and
journal" has it in the journal's file as well, as a mount does; "git tier" has made a durable commit
for each store when it returns. The goal compares the first with the last, as the figure that it
repeats did: a tier that answers before git knows, and git. What it says is how much waiting such an
answer saves, and not that both promise the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bench.measure import Figures, latencies
from bench.requests import Meter
from caiafs.backends import Backend
from caiafs.backends.git import GitBackend
from caiafs.backends.journaled import JournaledBackend
from caiafs.backends.memory import MemoryBackend
from caiafs.journal import Journal
from caiafs.store import Store

from .files import KIB4

PARTS = ((b"metadata.json", b'{"title": "a document"}\n'), (b"content.txt", KIB4), (b"raw", KIB4))


def storage(
    room: bytes, meter: Meter, memory: str, documents: int, commits: int
) -> dict[str, dict[str, Figures]]:
    """Storing and getting a document by each backend, µs for a document of three parts."""
    top = Path(os.fsdecode(room))
    (top / "state").mkdir()
    store = Store.create(os.fspath(top / "r.git"))
    backends: dict[str, Backend] = {
        "memory tier": MemoryBackend(),
        "memory and journal": JournaledBackend(Journal(os.fspath(top / "state"))),
        "git tier": GitBackend(store),
    }
    found = {}
    for name, backend in backends.items():
        found[name] = _measured(backend, commits if name == "git tier" else documents)
        backend.close()
    return {"peers": found}


def _measured(backend: Backend, documents: int) -> Figures:
    names = [[b"doc%05d/%s" % (number, name) for name, _ in PARTS] for number in range(documents)]

    def store(paths: list[bytes]) -> None:
        for path, (_, data) in zip(paths, PARTS, strict=True):
            backend.store(path, data)

    def get(paths: list[bytes]) -> None:
        for path, (_, data) in zip(paths, PARTS, strict=True):
            if backend.get(path) != data:
                raise AssertionError(f"{path!r} is not what was stored")

    stored = latencies(_timed(store, names))
    again = latencies(_timed(store, names))
    got = latencies(_timed(get, names))
    return {**stored, "again_us": again["us"], "get_us": got["us"]}


def _timed(call: Callable[[Any], object], over: list[list[bytes]]) -> list[int]:
    samples = []
    for argument in over:
        begun = perf_counter_ns()
        call(argument)
        samples.append(perf_counter_ns() - begun)
    return samples
