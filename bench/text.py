"""Figures for a terminal."""

from __future__ import annotations

from .cases import BY_KEY, UNITS
from .results import Results


def short(value: float) -> str:
    """Three digits that matter: 0.0123, 1.23, 12.3, 1,230."""
    if value >= 999.5:
        return f"{round(value, 2 - len(str(int(value)))):,.0f}"
    return f"{value:.3g}" if value else "0"


def label(key: str) -> str:
    """How a peer is called in tables; "disk" is told in the machine's description."""
    kind, _, base = key.partition("/")
    names = {"plain": "", "plain+git": "git on "}
    return f"{names[kind]}{base}" if kind in names else f"{kind} ({base})" if base else kind


def table(results: Results) -> str:
    """All cases, one line for each peer, with the spread and the ratio to caiafs on disk."""
    lines = []
    for case, by_peer in results.rounds.items():
        metric = BY_KEY[case].metric
        lines.append(f"\n{BY_KEY[case].title} [{UNITS.get(metric, metric)}]")
        ours = results.value(case, "caiafs/disk", metric) or results.value(case, "caiafs", metric)
        for key in by_peer:
            found = results.spread(case, key, metric)
            if found is None:
                continue
            ratio = f"{ours / found['median']:8.2f} x" if ours and found["median"] else ""
            span = f"{short(found['low'])} to {short(found['high'])}"
            lines.append(f"  {label(key):22} {short(found['median']):>10}   {span:>20}   {ratio}")
        if case in results.requests:
            counted = ", ".join(f"{name} {count:g}" for name, count in results.requests[case].items())
            lines.append(f"  requests: {counted or 'none'}")
        for key, why in results.failures.get(case, {}).items():
            lines.append(f"  {label(key):22} failed: {why}")
    return "\n".join(lines)
