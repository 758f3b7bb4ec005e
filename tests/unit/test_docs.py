"""The documentation keeps up with the code: links, modules, record formats and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from struct import Struct

import pytest

import caiafs
from caiafs import records
from caiafs.journal import segment
from caiafs.metrics import GAUGES, GaugeValue, Metrics
from caiafs.records import side

PACKAGE = Path(caiafs.__file__).parent
ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FORMAT = (DOCS / "journal-format.md").read_text()

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    titles = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def layouts(text: str) -> Iterator[str]:
    """The struct formats that the indented blocks of *text* describe, one after the other."""
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        fields = [field.strip() for line in block.splitlines() for field in line.split("|")]
        codes = ""
        for field in fields:
            words = field.split()
            if words[0] in _TYPES:
                codes += _TYPES[words[0]]
            elif words[0].isdecimal() and words[1:2] == ["bytes"]:
                codes += words[0] + "s"
            else:
                break
        else:
            yield "<" + codes


def section(title: str) -> str:
    """What stands under the heading *title*."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", FORMAT, re.MULTILINE | re.DOTALL)
    assert match, f"journal-format.md has no heading {title!r}"
    return match[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", path):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize(
    "page",
    ["architecture.md", "consistency.md", "decisions.md", "journal-format.md", "limits.md"],
)
def test_lines_fit_a_terminal(page: str) -> None:
    lines = (DOCS / page).read_text().splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_every_module_is_on_the_map() -> None:
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    modules = {path.parent if path.name == "__init__.py" else path.with_suffix("") for path in paths}
    wanted = {str(module) for module in modules} - {"."}
    rows = re.findall(r"^\|[^|]*\| `([\w/]+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert wanted - set(rows) == set(), "docs/architecture.md does not name these modules"


def test_record_kinds_are_those_of_the_code() -> None:
    told = {name: int(kind) for kind, name in re.findall(r"^### (\d+) (\w+)$", FORMAT, re.MULTILINE)}
    assert told == {record.__name__: kind for record, (kind, _) in records._ENCODE.items()}
    assert set(told.values()) == records.KINDS


@pytest.mark.parametrize(
    ("title", "structs"),
    [
        ("1 Create", [records._CREATE, records._XATTR]),
        ("2 Link", [records._LINK]),
        ("3 Remove", [records._REMOVE]),
        ("4 Rename", [records._RENAME]),
        ("5 Write", [records._WRITE]),
        ("6 SetAttr", [records._SETATTR]),
        ("7 SetXattr", [records._SETXATTR]),
        ("8 Name", [records._NAME]),
        ("9 Adopt", [records._ADOPT, records._ADOPT_ENTRY]),
        ("10 Committed", [records._COMMITTED]),
        ("11 Synced", [records._SYNCED]),
        ("A side record", [side._HEAD, side._FIXED, side._XATTR]),
        ("meta", [side._META, side._LINK]),
    ],
)
def test_layout_of_a_record_is_that_of_the_code(title: str, structs: list[Struct]) -> None:
    assert list(layouts(section(title))) == [struct.format for struct in structs]


def test_layout_of_a_segment_is_that_of_the_code() -> None:
    (told,) = layouts(section("Segments"))
    assert told == segment._HEADER.format + segment._CHECK.format.removeprefix("<")
    assert f"a header of {segment.HEADER_SIZE} bytes" in section("Segments")
    assert segment.MAGIC.decode() in section("Segments")


def test_layout_of_a_frame_is_that_of_the_code() -> None:
    assert "u32 length | u32 CRC-32 | u8 kind | body" in section("Frames")
    assert records.FRAME.format == "<IIB"


def test_example_of_a_frame_is_a_real_one() -> None:
    assert "45000000" in section("Frames")
    frame = b"".join(records.encode(records.Committed(949, bytes(20), bytes(20), bytes(20))))
    assert frame[:4].hex() == "45000000"
    assert frame[8:17].hex() == "0ab503000000000000"


@pytest.mark.parametrize(("limit", "count"), [*side.BUCKET_STEPS, (32769, 4096)])
def test_buckets_are_those_of_the_code(limit: int, count: int) -> None:
    name = side.bucket_name(b"x", count).decode()
    first = "@" + "0" * (len(name) - 1)
    more = "more" if limit > 32768 else f"up to {limit:,}"
    (row,) = re.findall(rf"^\| {more} \| ([\d,]+) \| `(\S+?)`", section("Buckets"), re.MULTILINE)
    assert row == (f"{count:,}", first)
    assert side.bucket_count(limit) == count


def test_metrics_are_those_of_the_code() -> None:
    metrics = Metrics({"version": "1"})
    metrics.request("read", 1000)
    metrics.observe("git", "get", 1000)
    for name, (_, label) in GAUGES.items():
        metrics.gauge_source(name, partial(_gauge, name, label))
    text = metrics.exposition().decode()
    there = set(re.findall(r"^# TYPE (caiafs_\w+) ", text, re.MULTILINE))
    told = set(re.findall(r"^\| `(caiafs_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    assert told == there


def _gauge(name: str, label: str | None) -> GaugeValue:
    if name == "caiafs_health_state":
        return "healthy"
    return {"data": 1.0} if label else 1.0
