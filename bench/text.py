"""Figures for a terminal."""

from __future__ import annotations

from .cases import BY_KEY, unit
from .goals import GOALS
from .results import Results


def short(value: float) -> str:
    """Three digits that matter: 0.0123, 1.23, 12.3, 1,230."""
    if value >= 999.5:
        return f"{round(value, 3 - len(str(round(value)))):,.0f}"
    return f"{value:.3g}" if value else "0"


def label(key: str) -> str:
    """How a peer is called in tables; "disk" is told in the machine's description."""
    kind, _, base = key.partition("/")
    names = {"plain": "", "plain+git": "git on ", "plain+dulwich": "dulwich on "}
    return f"{names[kind]}{base}" if kind in names else f"{kind} ({base})" if base else kind


def table(results: Results) -> str:
    """All cases, one line for each peer, with the spread and the ratio of caiafs on disk to it."""
    lines = []
    for key, by_peer in results.rounds.items():
        case = BY_KEY[key]
        for metric, title in (case.rows or {case.metric: ""}).items():
            lines.append(f"\n{case.title}{': ' * bool(title)}{title} [{unit(metric)}]")
            ours = results.value(key, "caiafs/disk", metric)
            for peer in by_peer:
                found = results.spread(key, peer, metric)
                if found is not None:
                    ratio = f"{ours / found['median']:8.2f} x" if ours and found["median"] else ""
                    span = f"{short(found['low'])} to {short(found['high'])}"
                    spent = results.value(key, peer, "daemon_us") if metric == case.metric else None
                    cpu = f"   daemon's processor time {short(spent)} us" if spent is not None else ""
                    lines.append(
                        f"  {label(peer):22} {short(found['median']):>10}   {span:>20}   {ratio:10}{cpu}"
                    )
        if key in results.requests:
            counted = ", ".join(f"{name} {count:g}" for name, count in results.requests[key].items())
            lines.append(f"  requests: {counted or 'none'}")
        for peer, why in results.failures.get(key, {}).items():
            lines.append(f"  {label(peer):22} failed: {why}")
    return "\n".join(lines)


def goals(results: Results) -> str:
    """Every goal with its ratios and what became of it."""
    lines = ["\nGoals"]
    for goal in GOALS:
        found = [
            f"{comparison.name} {ratio:.3g}"
            for comparison in goal.comparisons
            if (ratio := comparison.ratio(results)) is not None
        ]
        lines.append(
            f"  {goal.verdict(results):18} {goal.work or '  same'}, {goal.bound}: {', '.join(found)}"
        )
    return "\n".join(lines)
