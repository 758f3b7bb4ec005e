"""The process that does the work, one order at a time; started and, when it hangs, killed by the session.

An order is a line of JSON on standard input: {"work": "files:create", "room": DIR, "arguments": {…},
"stats": FILE or null,
"pid": the peer's daemon or null}. The answer is one on standard output: {"figures": {…}} or {"error": "…"}.

The same process works for every peer, so that whatever it costs itself is the same for all.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .requests import Meter


def work(name: str) -> Callable[..., dict[str, Any]]:
    """The function that is called "module:function" in an order."""
    module, _, function = name.partition(":")
    found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"bench.work.{module}"), function)
    return found


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order. Whatever goes wrong is an answer, too."""
    try:
        meter = Meter(order.get("stats"), order.get("pid"), order.get("profiled", False))
        room = os.fsencode(order["room"])
        os.makedirs(room, exist_ok=True)
        gc.collect()
        gc.disable()
        try:
            figures = work(order["work"])(room, meter, **order["arguments"])
        finally:
            gc.enable()
        return {"figures": figures | meter.figures()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    for line in sys.stdin:
        answers.write(json.dumps(obey(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
