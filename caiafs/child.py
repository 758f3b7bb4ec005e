"""How a process that serves the daemon begins: the commit worker's, and the HTTP server's.

It ends when the daemon does, however that ends, and at no signal of a terminal's: the daemon says when. It
gives way to the daemon wherever both want to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

NICE = 10
_PR_SET_PDEATHSIG = 1


def begin() -> bool:
    """Follow the daemon whose process id is the first argument; False if it is gone already."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    daemon = int(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    return os.getppid() == daemon


def take_standard_streams() -> tuple[int, int]:
    """Standard input and output as descriptors of their own: what prints or reads by mistake harms nobody."""
    inlet, outlet = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return inlet, outlet
