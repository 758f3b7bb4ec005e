"""docs/performance.md, from the figures that were kept: goals, tables, charts, profiles, releases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from . import charts
from .cases import BY_KEY, CASES, Case, unit
from .goals import GOALS, Comparison, Goal
from .results import FOLDER, Results
from .text import label, short

DOCS = Path(__file__).resolve().parents[1] / "docs"
EXPLANATIONS = Path(__file__).parent / "explanations.md"
COLUMNS = ("caiafs", "bindfs", "mergerfs", "gocryptfs", "rclone", "gitfs", "memfs", "plain")

INTRO = """# Performance

caiafs beside its peers, at the same work, in one run. This page is written by `make bench`
(`make bench-quick` is a form of a few minutes; `python -m bench --help` tells how to choose). Figures are
medians of {rounds} rounds at most; ± is half of the range that the middle half of the rounds lies in, as a
share of the median. Rounds interleave: every case goes over all peers before the next one, beginning with
another peer in each round. One driver process does the work for all of them, in one loop on paths made
before the clock runs. What a peer still does after it has answered is waited for before the next one has its
turn. "(disk)" beside caiafs means that its repository and its journal are there.

Peers that sit on another filesystem are shown on the disk's and on tmpfs. bindfs (C), gocryptfs (Go) and
rclone (Go, with a full VFS cache) run as they come, mergerfs (C++) with all its caches on. memfs is
`bench/peers/memfs.py`: pyfuse3 and trio with a dictionary behind them, the floor of caiafs' own stack.
Nothing is deleted before the end but where deleting is measured, and every peer has a directory of its own
that the disk spreads: ext4 without a journal creates files several times more slowly for minutes after many
were deleted.
"""

BUSY = """The machine was busy with other work when this run began and when it ended. Its ratios are shown and
judge nothing: how long a process waits for its turn decides, more than what it does. Requests, below, hold
all the same.
"""

CHARTED = ("caiafs/disk", "bindfs/disk", "mergerfs/disk", "memfs/tmpfs", "plain/disk")

HEADLINES: tuple[tuple[str, str, str, str], ...] = (
    ("create", "caiafs/disk", "us", "create"),
    ("stat_first", "caiafs/disk", "us", "first stat"),
    ("open_read_close", "caiafs/disk", "us", "open, read, close"),
    ("rename", "caiafs/disk", "us", "rename"),
    ("pwrite", "caiafs/disk", "us", "4 KiB write"),
    ("seq_write", "caiafs/disk", "mibs", "seq. write"),
    ("document", "caiafs/disk", "us", "document"),
    ("commit_batch", "caiafs/disk", "s", "10,000 files"),
    ("commit_one", "caiafs/disk", "ms", "one of 10,000"),
    ("walk", "caiafs", "over_mib", "walk, above budget"),
)


def write(results: Results, page: Path, kept: Iterable[Results]) -> None:
    """The page, and its charts in a folder of the same name beside it."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in _charts(results).items():
        (folder / f"{name}.svg").write_text(drawing)
    page.write_text(_page(results, folder.name, list(kept)))


def kept_results() -> list[Results]:
    """One for each release, the oldest first: the full form's where there is one."""
    found: dict[str, Results] = {}
    for path in sorted(FOLDER.glob("*.json")):
        results = Results.load(path)
        if results.version not in found or results.form == "full":
            found[results.version] = results
    return sorted(found.values(), key=lambda results: [int(part) for part in results.version.split(".")[:3]])


def _page(results: Results, folder: str, kept: Sequence[Results]) -> str:
    rounds = max((len(value) for peers in results.rounds.values() for metrics in peers.values()
                  for value in metrics.values()), default=0)  # fmt: skip
    parts = [INTRO.format(rounds=rounds), _run(results), "## Goals\n", _goals(results)]
    parts += ["## Files\n", f"![Time for each operation]({folder}/files.svg)\n"]
    parts += [_files(results, base) for base in ("disk", "tmpfs")]
    parts += ["## The daemon's processor time\n", _processor_time(results)]
    parts += ["## FUSE requests\n", _requests(results)]
    parts += ["## Programs\n", f"![Time of programs]({folder}/programs.svg)\n", _rows(results, "programs")]
    parts += [
        "## Commits\n",
        f"![A commit as the tree grows]({folder}/growth.svg)\n",
        _rows(results, "commits"),
    ]
    parts += ["## Size and time\n", _rows(results, "large")]
    parts += ["## What was missed, and why\n", _misses(results)]
    parts += ["## Releases\n", _history(kept)]
    return "\n".join(parts)


# ---- the run


def _run(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    found = {label(key).partition(" ")[0]: about.get("version", "") for key, about in results.peers.items()}
    taking = ", ".join(f"{name} {value}".strip() for name, value in found.items() if value)
    lines = [
        f"| caiafs | {results.version}, {results.form} form, {results.date}, {_minutes(results)} |",
        "|---|---|",
        f"| machine | {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB |",
        f"| system | {machine['system']}, Linux {machine['kernel']} |",
        f"| disk | {machine['disk']} |",
        f"| versions | {versions} |",
        f"| peers | {taking} |",
        f"| load | {machine['load_before']} before, {machine.get('load_after', '?')} after |",
        f"| steadiness | {_steady(results)} |",
    ]
    for key, about in results.peers.items():
        if "missing" in about:
            lines.append(f"| without {label(key)} | {about['missing']} |")
    lines += [f"| note | {text} |" for text in results.notes]
    return "\n".join(lines) + "\n"


def _minutes(results: Results) -> str:
    return f"{results.seconds / 60:.0f} min"


def _steady(results: Results) -> str:
    """How far the machine's own speed wandered: a fixed piece of Python, timed once a round."""
    if not results.speeds:
        return "its steadiness was not looked at"
    slower = max(results.speeds) / min(results.speeds)
    return f"a fixed piece of Python took up to {slower:.1f} × its shortest time meanwhile"


# ---- goals


def _goals(results: Results) -> str:
    lines = ["| work | against | goal | found | |", "|---|---|---|---|---|"]
    for goal in GOALS:
        verdict = "not judged" if results.busy else goal.verdict(results)
        shown = f"**{verdict}**" if verdict.startswith("missed") else verdict
        lines.append(f"| {goal.work} | {goal.against} | {goal.bound} | {_found(goal, results)} | {shown} |")
    if results.busy:
        lines.insert(0, BUSY)
    return "\n".join(lines) + "\n"


def _found(goal: Goal, results: Results) -> str:
    shown = []
    for comparison in goal.comparisons:
        ratio = comparison.ratio(results)
        if ratio is not None:
            value = f"{short(ratio)} ×" if _is_ratio(comparison) else short(ratio)
            name = _base_of(comparison) if len(goal.comparisons) > 1 else ""
            shown.append(f"{value} {name}".strip())
    return "; ".join(shown) or "–"


def _is_ratio(comparison: Comparison) -> bool:
    return not isinstance(comparison.theirs, float) or comparison.ours[2].startswith("times_")


def _base_of(comparison: Comparison) -> str:
    """What tells this comparison from the goal's others."""
    words = comparison.name.split(" ")
    if comparison.ours[0] == "programs":
        return words[0]
    if words[-1] in ("disk", "tmpfs"):
        return f"({' '.join(words[-2:])})"
    return f"({comparison.name})"


# ---- tables


def _cell(results: Results, case: str, key: str, metric: str) -> str:
    found = results.spread(case, key, metric)
    if found is None:
        return "failed" if key in results.failures.get(case, {}) else ""
    middle = found["median"]
    half = (found["high"] - found["low"]) / 2 / abs(middle) if middle else 0.0
    return short(middle) + (f" ±{half:.0%}" if half >= 0.005 else "")


def _files(results: Results, base: str) -> str:
    cases = [case for case in CASES if case.group == "files" and case.key in results.rounds]
    keys = [f"{kind}/{base}" for kind in COLUMNS]
    if base == "disk":
        keys = [("memfs/tmpfs" if key == "memfs/disk" else key) for key in keys]
    keys = [key for key in keys if any(key in results.rounds[case.key] for case in cases)]
    names = [
        label(key).partition(" ")[0] if key.startswith(("memfs", "caiafs")) else label(key) for key in keys
    ]
    names = [name.replace(f" ({base})", "") for name in names]
    if not keys:
        return ""
    lines = [
        f"Files below on {'the disk' if base == 'disk' else 'tmpfs'}. µs for each operation, or MiB/s.\n",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    for case in cases:
        cells = [_cell(results, case.key, key, case.metric) for key in keys]
        if any(cells):
            lines.append(
                f"| {case.title}{', MiB/s' if case.metric == 'mibs' else ''} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines) + "\n"


def _processor_time(results: Results) -> str:
    some = ("caiafs/disk", "bindfs/disk", "mergerfs/disk", "gocryptfs/disk", "memfs/tmpfs")
    keys = [key for key in some if results.value("create", key, "daemon_us") is not None]
    lines = [
        "What the filesystem's process computes for each operation (each MiB, or a whole listing), in µs,",
        "its own system calls included. It wanders less than the time that is waited.\n",
        "| | " + " | ".join(label(key).partition(" ")[0] for key in keys) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    for case in CASES:
        if case.group == "files" and case.key in results.rounds:
            cells = [_cell(results, case.key, key, "daemon_us") for key in keys]
            lines.append(f"| {case.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _requests(results: Results) -> str:
    lines = [
        "How many requests the kernel sends to caiafs for each operation (for a listing: for all of it; for",
        "sequential work: for each MiB). FORGET is not counted: nobody waits for it.\n",
        "| operation | requests | which |",
        "|---|---:|---|",
    ]
    for case in CASES:
        counted = results.requests.get(case.key)
        if counted is None:
            continue
        kinds = {name: count for name, count in counted.items() if count >= 0.01}
        shown = ", ".join(f"{name} {count:.3g}" for name, count in sorted(kinds.items()))
        lines.append(f"| {case.title} | {short(sum(kinds.values()))} | {shown or 'none'} |")
    return "\n".join(lines) + "\n"


def _rows(results: Results, group: str) -> str:
    parts = []
    for case in CASES:
        by_peer = results.rounds.get(case.key)
        if case.group != group or not by_peer:
            continue
        rows = case.rows or {case.metric: case.title}
        lines = [f"**{case.title}**\n", "| | " + " | ".join(label(key) for key in by_peer) + " |"]
        lines.append("|---|" + "---:|" * len(by_peer))
        for metric, title in rows.items():
            cells = [_cell(results, case.key, key, metric) for key in by_peer]
            counted = f", {unit(metric)}" if unit(metric) else ""
            lines.append(f"| {title}{counted} | " + " | ".join(cells) + " |")
        for key, why in results.failures.get(case.key, {}).items():
            lines.append(f"\n{label(key) or 'This case'} failed: {why}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


# ---- charts


def _charts(results: Results) -> dict[str, str]:
    files: dict[str, dict[str, float]] = {}
    for case in CASES:
        if case.group == "files" and case.metric == "us":
            files[case.title] = _of(results, case, CHARTED, "us")
    programs: dict[str, dict[str, float]] = {}
    case = BY_KEY["programs"]
    for metric, title in case.rows.items():
        programs[title] = _of(
            results, case, ("caiafs/disk", "bindfs/disk", "plain/disk", "plain+git/disk"), metric
        )
    growth = [
        (float(key.split(" ")[1].replace(",", "")), results.value("growth", key, "ms") or 0.0)
        for key in results.rounds.get("growth", {})
    ]
    return {
        "files": charts.bars(
            "Time for each operation", "µs", {row: found for row, found in files.items() if found}
        ),
        "programs": charts.bars("Programs", "s", {row: found for row, found in programs.items() if found}),
        "growth": charts.lines(
            "Durable commit of one changed file", "files in the tree", "ms", {"caiafs": sorted(growth)}
        ),
    }


def _of(results: Results, case: Case, keys: Sequence[str], metric: str) -> dict[str, float]:
    found = {label(key): results.value(case.key, key, metric) for key in keys}
    return {name: value for name, value in found.items() if value}


# ---- misses and history


def _misses(results: Results) -> str:
    explained = _explanations()
    if results.busy:
        return "Nothing is judged by a run on a busy machine.\n"
    parts = []
    done: set[str] = set()
    for goal in GOALS:
        for comparison in goal.missed(results):
            case = comparison.ours[0]
            if case in done:
                continue
            done.add(case)
            parts.append(f"### {BY_KEY[case].title if case in BY_KEY else case}\n")
            if case in explained:
                parts.append(explained[case] + "\n")
            profile = results.profiles.get(case)
            if profile:
                parts.append("\n".join(["```", *profile, "```", ""]))
            if case not in explained and not profile:
                parts.append("No profile was taken in this run.\n")
    return "\n".join(parts) if parts else "Nothing that was measured.\n"


def _explanations() -> dict[str, str]:
    """What is known about misses, written by hand: a heading `## case`, then text."""
    if not EXPLANATIONS.exists():
        return {}
    found: dict[str, str] = {}
    for part in ("\n" + EXPLANATIONS.read_text()).split("\n## ")[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = text.strip()
    return found


def _history(kept: Sequence[Results]) -> str:
    titles = [f"{title}, {unit(metric)}" for _, _, metric, title in HEADLINES]
    lines = [
        "One row for each release, caiafs on disk.\n",
        "| release | form | " + " | ".join(titles) + " | goals met |",
    ]
    lines.append("|---|---|" + "---:|" * (len(titles) + 1))
    for results in kept:
        cells = [_value(results, case, key, metric) for case, key, metric, _ in HEADLINES]
        verdicts = [goal.verdict(results) for goal in GOALS]
        met = sum(verdict.startswith("met") for verdict in verdicts)
        known = sum(verdict != "not measured" for verdict in verdicts)
        judged = "not judged" if results.busy else f"{met} of {known}"
        lines.append(
            f"| {results.version} ({results.date}) | {results.form} | " + " | ".join(cells) + f" | {judged} |"
        )
    return "\n".join(lines) + "\n"


def _value(results: Results, case: str, key: str, metric: str) -> str:
    value = results.value(case, key, metric)
    return "" if value is None else short(value)
