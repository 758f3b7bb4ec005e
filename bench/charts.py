"""Bars and lines as SVG, drawn by hand: a page of figures needs no plotting library. Pure.

Light and dark pages both show them: text and axes take a grey that either bears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#d1495b", "#30638e", "#6d9f71", "#edae49", "#8e6c8a", "#5fa8a8", "#9a9a9a", "#b5651d")
GREY = "#808080"
WIDTH, LEFT, BAR, GAP = 860, 250, 11, 14
TICKS = (1, 2, 5)


def bars(title: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars on a logarithmic scale: a group for each row, a bar for each series."""
    series = list(dict.fromkeys(name for values in rows.values() for name in values))
    values = [value for group in rows.values() for value in group.values() if value > 0]
    if not values:
        return _page(title, 60, [])
    low = 10 ** math.floor(math.log10(min(values)))
    high = max(values) * 1.6
    span = math.log10(high / low)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 60) * math.log10(max(value, low) / low) / span

    parts = _legend(series)
    top = 40 + 18 * math.ceil(len(series) / 4)
    y = float(top)
    body: list[str] = []
    for row, group in rows.items():
        middle = y + BAR * len(group) / 2 + 4
        body.append(_text(LEFT - 8, middle, row, "end"))
        for name, value in group.items():
            colour = COLOURS[series.index(name) % len(COLOURS)]
            body.append(
                f'<rect x="{LEFT}" y="{y:.1f}" width="{max(1.0, x(value) - LEFT):.1f}" height="{BAR - 2}" '
                f'fill="{colour}"><title>{escape(f"{row}, {name}: {value:.3g} {unit}")}</title></rect>'
            )
            body.append(_text(x(value) + 4, y + BAR - 3, f"{value:.3g}", "start", 9))
            y += BAR
        y += GAP
    tick = low
    while tick <= high:
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{top - 6}" x2="{x(tick):.1f}" y2="{y:.1f}" stroke="{GREY}" '
            f'stroke-opacity="0.25"/>'
        )
        parts.append(_text(x(tick), y + 10, f"{tick:g} {unit}", "middle", 10))
        tick *= 10
    return _page(title, y + 24, parts + body)


def lines(title: str, across: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a logarithmic axis, from zero upwards."""
    points = [point for line in series.values() for point in line]
    if len(points) < 2:
        return _page(title, 60, [])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    most = max(y for _, y in points) * 1.15
    height, bottom, left = 300, 260, 80

    def place(point: tuple[float, float]) -> tuple[float, float]:
        share = math.log(point[0] / first) / math.log(last / first) if last > first else 0.5
        return left + (WIDTH - left - 60) * share, bottom - 200 * point[1] / most

    parts = _legend(list(series))
    for number, line in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            x, y = place(point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(_text(x, y - 7, f"{point[1]:.3g}", "middle", 10))
            parts.append(_text(x, bottom + 16, f"{point[0]:,.0f}", "middle", 10))
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{WIDTH - 40}" y2="{bottom}" stroke="{GREY}"/>')
    parts.append(_text(WIDTH / 2, bottom + 34, across, "middle", 11))
    parts.append(_text(left - 10, 64, unit, "end", 11))
    return _page(title, height, parts)


def _legend(series: Sequence[str]) -> list[str]:
    parts = []
    for number, name in enumerate(series):
        x, y = 20 + number % 4 * 205, 34 + number // 4 * 18
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, y + 9, name, "start", 11))
    return parts


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{GREY}">{escape(text)}</text>'


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, _text(20, 20, title, "start", 15), *parts, "</svg>", ""])
