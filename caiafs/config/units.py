"""Sizes and durations, as people write and read them.

Read here for settings, written here for everything that is shown: status, logs, messages.
"""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _SIZE_UNITS |= {_letter: 1 << 10 * _power, f"{_letter}ib": 1 << 10 * _power, f"{_letter}b": 1000**_power}
_TIME_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str) -> int:
    """Read a size: 268435456, 64k, 256MiB, 1.5g. k, m, g, t count in 1024; kB, MB, GB, TB in 1000."""
    match = _SIZE.fullmatch(text.strip())
    if not match or match[2].lower() not in _SIZE_UNITS:
        raise ValueError("a size such as 65536, 64k, 256MiB or 1g")
    return round(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def parse_seconds(text: str) -> float:
    """Read a duration in seconds: 5, 0.5, 100us, 500ms, 5s, 1m, 2h, 1d."""
    match = _SIZE.fullmatch(text.strip())
    if not match or match[2].lower() not in _TIME_UNITS:
        raise ValueError("a duration such as 500ms, 5s, 1m or 2h; a plain number counts seconds")
    return float(match[1]) * _TIME_UNITS[match[2].lower()]


def format_bytes(count: float) -> str:
    """Write a size for people: 0 B, 1.5 KiB, 256 MiB. `parse_bytes` reads it back."""
    if abs(count) < KIB:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= KIB
        if abs(count) < 999.5 or unit == "TiB":
            break
    return f"{count:.3g} {unit}" if abs(count) < 999.5 else f"{count:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: 0 s, 250 µs, 500 ms, 5 s, 1 min 30 s, 2 h 5 min, 3 d 4 h."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        (unit, size), (minor, minor_size) = ("min", 60), ("s", 1)
    elif whole < 86400:
        (unit, size), (minor, minor_size) = ("h", 3600), ("min", 60)
    else:
        (unit, size), (minor, minor_size) = ("d", 86400), ("h", 3600)
    rest = whole % size // minor_size
    return f"{whole // size} {unit} {rest} {minor}" if rest else f"{whole // size} {unit}"
