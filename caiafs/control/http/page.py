"""The status page: one HTML document with everything in it, that shows its figures without any script.

The script (page.js) asks for the same figures again and draws what they were before. Style and script
stand in the document and are named by their hashes in its Content-Security-Policy: nothing else
runs, whatever names files and commits have.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from caiafs.config import format_bytes, format_seconds
from caiafs.control.exposition import Histogram, Samples
from caiafs.control.http.figures import Figures
from caiafs.errors import CaiafsError

COMMITS = 12
FEW = 5
"""Files of a commit that are seen at once; the rest unfolds."""
RELOAD = 10
"""Seconds after which a browser without scripts asks again."""

_HERE = Path(__file__).parent
_STYLE = (_HERE / "page.css").read_text()
_SCRIPT = (_HERE / "page.js").read_text()
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='6' fill='none' stroke='%232a6fb0' stroke-width='3'/%3E%3C/svg%3E"
)
_MARKS = {"added": "+", "removed": "−", "changed": "~", "unreadable": "!"}


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {"content-security-policy": POLICY, "content-language": "en"}

Latest = Callable[[int], Awaitable[list[dict[str, Any]]]]


async def make(figures: Figures, latest: Latest, version: str) -> bytes:
    """The page with the figures of now. Raises Unavailable."""
    *documents, text = await figures.together("health.json", "stats.json", "config.json", "caiafs.prom")
    health, stats, config = map(json.loads, documents)
    samples = Samples(text.decode())
    try:
        commits, trouble = await latest(COMMITS), ""
    except CaiafsError as error:
        commits, trouble = [], str(error)
    return render(health, stats["storage_stats"], config, samples, commits, trouble, version).encode()


def render(
    health: Mapping[str, Any], stats: Mapping[str, Any], config: Mapping[str, Any], samples: Samples,
    commits: list[dict[str, Any]], trouble: str, version: str,
) -> str:  # fmt: skip
    """The document. All that comes from outside is escaped here."""
    settings = {name: setting["value"] for name, setting in config.get("settings", {}).items()}
    place, repo = _text(settings.get("mountpoint")), _text(settings.get("repo"))
    state = _text(health["state"])
    read_only = ", read-only" if settings.get("ro") else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{state} – {place} – caiafs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="{_ICON}">
<noscript><meta http-equiv="refresh" content="{RELOAD}"></noscript>
<style>{_STYLE}</style>
</head>
<body>
<div class="wrap">
<header>
<h1>{place}</h1>
<span class="badge" role="status" data-f="state" data-state="{state}">{state}</span>
<p>branch <strong>{_text(config.get("branch"))}</strong> of {repo}{read_only}</p>
</header>
<ul class="reasons" data-f="reasons" data-for="{state}">{_items(health["reasons"])}</ul>
<main>
<div class="grid">
{_lag(stats["commits"], stats["git"])}
{_requests(samples.histogram("caiafs_fuse_request_seconds"))}
{_latency(samples.histogram("caiafs_fuse_request_seconds"))}
{_memory(stats["memory"])}
{_journal(stats["journal"], settings.get("journal_max"))}
{_tiers(health, settings)}
</div>
<div class="lower">
{_history(commits, trouble)}
{_operations(samples)}
</div>
</main>
<footer>
<span data-f="updated">figures of {time.strftime("%Y-%m-%d %H:%M:%S %Z")}</span>
<span>caiafs {_text(version)}, process {_text(config.get("pid"))}</span>
<span><a href="/api/v1/storage/health">health</a> · <a href="/api/v1/storage/stats">stats</a> ·
<a href="/api/v1/storage/metrics">metrics</a> · <a href="/api/v1/storage/config">config</a> ·
<a href="/api/v1/history">history</a> · <a href="/metrics">Prometheus</a> ·
<a href="/api/v1/openapi.json">OpenAPI</a></span>
</footer>
</div>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    # File names may hold bytes that are no text; they must not keep the page from being UTF-8.
    return escape("" if value is None else str(value).encode("utf-8", "replace").decode())


def _items(texts: list[str]) -> str:
    return "".join(f"<li>{_text(text)}</li>" for text in texts)


def _card(title: str, aside: str, body: str, chart: str = "") -> str:
    return f"""<section class="card">
<div class="top"><h2>{title}</h2><span>{aside}</span></div>
{body}
{chart}
</section>"""


def _chart(name: str, label: str, lines: int = 1) -> str:
    """An empty chart, which only the script fills, and only the script shows."""
    area = '<path class="area"/>' if lines == 1 else ""
    paths = "".join(f'<path class="line {kind}"/>' for kind in ("b", "a")[2 - lines :])
    return f"""<div class="chart" data-chart="{name}">
<svg viewBox="0 0 300 100" preserveAspectRatio="none" role="img" aria-label="{label}, over time">
<path class="grid-line" d="M0 4H300M0 52H300"/><path class="base" d="M0 100H300"/>
{area}{paths}<line class="cursor" y1="0" y2="100"/></svg>
<span class="peak"></span><span class="at"></span>
<div class="axis"><span></span><span>now</span></div>
</div>"""


def _meter(name: str, used: float, limit: float) -> str:
    return (
        f'<meter data-f="{name}-meter" min="0" max="{limit:.0f}" low="{limit * 0.85:.0f}" '
        f'high="{limit * 0.97:.0f}" optimum="0" value="{used:.0f}"></meter>'
    )


def _count(number: int, one: str) -> str:
    return f"{number} {one}" + ("" if number == 1 else "s")


def _lag(commits: Mapping[str, Any], git: Mapping[str, Any]) -> str:
    changes = commits["uncommitted_changes"]
    lag = (
        f"the oldest {format_seconds(commits['oldest_uncommitted_seconds'])} old"
        if changes
        else "git has everything"
    )
    told = f"{_count(commits['count'], 'commit')} since the mount"
    if commits["failures"]:
        told += f", {_count(commits['failures'], 'failure')} in a row"
    unit = "change" if changes == 1 else "changes"
    body = f"""<p class="now"><span data-f="changes">{changes}</span>
<small data-f="changes-unit">{unit}</small></p>
<p class="more"><span data-f="lag">{lag}</span></p>"""
    return _card(
        "Not in git yet",
        f'<span data-f="commits">{told}</span>',
        body,
        _chart("lag", "Age of the oldest change"),
    )


def _requests(all_: Histogram) -> str:
    body = f"""<p class="now"><span data-f="rate">{all_.count:.0f}</span>
<small data-f="when">since the mount</small></p>"""
    return _card("Requests", '<span data-f="total"></span>', body, _chart("rate", "Requests a second"))


def _latency(all_: Histogram) -> str:
    half, most = _seconds(all_.quantile(0.5)), _seconds(all_.quantile(0.99))
    body = f"""<p class="now"><span class="key b"></span><span data-f="p99">{most}</span>
<small>for 99 of 100</small></p>
<p class="more"><span class="key"></span><span data-f="p50">{half}</span> for half of them</p>"""
    return _card("Request latency", "", body, _chart("latency", "Request latency", lines=2))


def _seconds(value: float | None) -> str:
    return "–" if value is None else format_seconds(value)


def _memory(memory: Mapping[str, Any]) -> str:
    used, limit = memory["held_bytes"] + memory["inode_bytes"], memory["limit_bytes"]
    told = f"{format_bytes(memory['held_bytes'])} of contents, {_count(memory['inodes'], 'file')} known"
    body = f"""<p class="now"><span data-f="memory">{format_bytes(used)}</span></p>
{_meter("memory", used, limit)}
<p class="more"><span data-f="memory-more">{told}</span></p>"""
    return _card("Memory", f"budget {format_bytes(limit)}", body, _chart("memory", "Memory in use"))


def _journal(journal: Mapping[str, Any], limit: int | None) -> str:
    body = f"""<p class="now"><span data-f="journal">{format_bytes(journal["bytes"])}</span></p>
{_meter("journal", journal["bytes"], limit or 1)}"""
    return _card(
        "Journal",
        f"at most {format_bytes(limit)}" if limit else "",
        body,
        _chart("journal", "Size of the journal"),
    )


def _tiers(health: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    items = "".join(
        f'<li class="tier" data-tier="{_text(name)}" data-state="{_text(tier["state"])}">'
        f"{_text(name)} {_text(tier['state'])}</li>"
        for name, tier in health["backends"].items()
    )
    primary = _text(settings.get("primary"))
    fallback = "the other tier steps in" if settings.get("enable_fallback") else "calls fail, by setting"
    rows = [
        ("commit after", f"{format_seconds(settings.get('commit_quiet') or 0)} of quiet"),
        ("at the latest", f"{format_seconds(settings.get('commit_interval') or 0)} after a change"),
        (f"if {primary} fails", fallback),
    ]
    told = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    body = f'<ul class="tiers">{items}</ul>\n<table><tbody>{told}</tbody></table>'
    return _card("Tiers", f"primary: {primary}", body)


def _history(commits: list[dict[str, Any]], trouble: str) -> str:
    told = "".join(_commit(one) for one in commits)
    if trouble:
        told = f'<li class="by">The history cannot be read: {_text(trouble)}</li>'
    return f"""<section class="card">
<h2>Latest commits</h2>
<ul class="commits" data-f="history">{told or '<li class="by">No commit yet.</li>'}</ul>
</section>"""


def _commit(one: Mapping[str, Any]) -> str:
    files = [
        f'<li class="{each["change"]}"><span>{_MARKS[each["change"]]}</span>'
        f"<span>{_text(each['path'])}</span></li>"
        for each in one["files"]
    ]
    if one["more_files"]:
        files.append("<li><span>…</span><span>and more</span></li>")
    few, rest = files[:FEW], files[FEW:]
    listed = f'<ul class="files">{"".join(few)}</ul>' if few else ""
    if rest:
        many = "more files" if one["more_files"] else _count(len(rest), "more file")
        listed += f'<details><summary>{many}</summary><ul class="files">{"".join(rest)}</ul></details>'
    moment = time.gmtime(one["time"])
    exact, shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment), time.strftime("%Y-%m-%d %H:%M UTC", moment)
    return f"""<li><div class="subject">{_text(one["subject"]) or "(no message)"}</div>
<div class="by"><code>{_text(one["commit"][:12])}</code>
<time datetime="{exact}">{shown}</time>
by {_text(one["author"].partition(" <")[0])}</div>{listed}</li>"""


def _operations(samples: Samples) -> str:
    rows = ""
    for op in samples.label_values("caiafs_fuse_request_seconds_count", "op"):
        found = samples.histogram("caiafs_fuse_request_seconds", op=op)
        rows += (
            f'<tr data-op="{_text(op)}"><td>{_text(op)}</td><td>{found.count:.0f}</td>'
            f'<td class="now-col">–</td>'
            f"<td>{_seconds(found.quantile(0.5))}</td><td>{_seconds(found.quantile(0.99))}</td></tr>"
        )
    return f"""<section class="card">
<h2>Requests by kind, since the mount</h2>
<table><thead><tr><th>kind</th><th>count</th><th class="now-col">now</th>
<th>half within</th><th>99 of 100</th></tr></thead>
<tbody data-f="operations">{rows}</tbody></table>
</section>"""
