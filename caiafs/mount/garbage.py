"""Garbage collection that never holds up a request for long.

A full collection looks at every object: 40 ms with 10,000 inodes in memory, seconds with a
million, and all requests wait meanwhile. But what survived one is there to stay (inodes,
extents), and goes by its reference count when it goes. So whatever a full collection leaves
is set aside, and the next one looks only at what came since.

Weighed and not chosen: no full collections, since cycles (of exceptions, of tasks) would
then gather over weeks.
"""

from __future__ import annotations

import gc
from typing import Literal

THRESHOLDS = (700, 5, 2)
"""A full collection after some 10,000 more objects came than went: it takes a few milliseconds."""


def stay_short() -> None:
    """From now on, in this process, every collection is a short one."""
    gc.freeze()  # modules, mostly: to look at them once more would cost each mount 10 ms
    gc.set_threshold(*THRESHOLDS)
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)


def _set_aside(phase: Literal["start", "stop"], info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
