"""The benchmark's own sums: figures, goals, and a page that says what was measured."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is not installed

from bench import charts, measure, report  # noqa: E402
from bench.cases import BY_KEY, CASES, choose, unit  # noqa: E402
from bench.driver import obey, work  # noqa: E402
from bench.goals import GOALS, Comparison  # noqa: E402
from bench.requests import difference  # noqa: E402
from bench.results import Results  # noqa: E402
from bench.text import goals, short, table  # noqa: E402

MACHINE = {
    "processor": "one", "cores": 2, "memory_gib": 1, "kernel": "6", "system": "Debian", "disk": "ext4",
    "tmpfs": "tmpfs", "load_before": 0.1, "versions": {"python": "3"},
}  # fmt: skip


def results(**rounds: dict[str, dict[str, list[float]]]) -> Results:
    found = Results("1.2.3", "full", machine=dict(MACHINE))
    found.rounds = {name: dict(value) for name, value in rounds.items()}
    return found


def test_quantiles_lie_between_neighbours() -> None:
    assert measure.quantile([3, 1, 2], 0.5) == 2
    assert measure.quantile([1, 2], 0.5) == 1.5
    assert measure.quantile([5], 0.99) == 5
    with pytest.raises(ValueError, match="no values"):
        measure.quantile([], 0.5)


def test_latencies_are_of_single_operations() -> None:
    figures = measure.latencies([100_000, 200_000, 300_000], per_sample=100)
    assert figures["us"] == 2.0
    assert figures["ops"] == 300
    assert figures["max_us"] == 3.0


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "faster", "ratio"),
    [
        ("us", 20.0, 10.0, False, 2.0),  # we take twice the time
        ("us", 20.0, 10.0, True, 0.5),  # we are half as fast
        ("mibs", 20.0, 10.0, True, 2.0),  # we are twice as fast
        ("mibs", 20.0, 10.0, False, 0.5),
        ("files_per_s", 30.0, 10.0, True, 3.0),
    ],
)
def test_a_ratio_counts_what_its_goal_counts(
    metric: str, ours: float, theirs: float, faster: bool, ratio: float
) -> None:
    found = results(c={"a": {metric: [ours]}, "b": {metric: [theirs]}})
    comparison = Comparison("x", ("c", "a", metric), ("c", "b", metric), ratio, faster)
    assert comparison.ratio(found) == pytest.approx(ratio)
    assert comparison.is_met(found) is True
    tighter = Comparison(
        "x", ("c", "a", metric), ("c", "b", metric), ratio * (1.1 if faster else 0.9), faster
    )
    assert tighter.is_met(found) is False


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {goal.verdict(results()) for goal in GOALS} == {"not measured"}


def test_goals_are_about_cases_that_there_are() -> None:
    for goal in GOALS:
        for comparison in goal.comparisons:
            case, peer, metric = comparison.ours
            assert case in BY_KEY
            assert unit(metric) or metric in ("times_cat", "times_gc")
            assert not BY_KEY[case].peers or peer in BY_KEY[case].peers


def test_every_case_names_a_function_that_takes_its_arguments() -> None:
    for case in CASES:
        names = work(case.work).__code__.co_varnames[: work(case.work).__code__.co_argcount]
        for quick in (True, False):
            assert set(case.arguments(quick) or {}) <= set(names), case.key


def test_cases_are_chosen_by_key_beginning_or_group() -> None:
    assert [case.key for case in choose(["fsync"])] == ["fsync_1", "fsync_8"]
    assert {case.group for case in choose(["commits"])} == {"commits"}
    with pytest.raises(ValueError, match="nonsense"):
        choose(["nonsense"])


def test_a_piece_of_work_gives_figures_or_says_what_went_wrong(tmp_path: Path) -> None:
    room = os.fspath(tmp_path / "room")
    done = obey({"work": "files:create", "room": room, "arguments": {"count": 5, "seconds": 5}})
    assert done["figures"]["ops"] == 5
    assert sorted(os.listdir(room)) == [f"f{number:05d}" for number in range(5)]
    again = obey({"work": "files:create", "room": room, "arguments": {"count": 5, "seconds": 5}})
    assert "FileExistsError" in again["error"]


def test_requests_are_counted_by_difference() -> None:
    assert difference({"read": 3, "open": 1, "new": 2}, {"read": 1, "open": 1}) == {"read": 2, "new": 2}


def test_figures_are_kept_and_read_again(tmp_path: Path) -> None:
    found = results(create={"caiafs/disk": {"us": [1.0, 2.0, 3.0]}})
    found.add(BY_KEY["create"], "bindfs/disk", {"us": 1.23456, "requests": {"create": 1.0}})
    found.save(tmp_path / "x.json")
    again = Results.load(tmp_path / "x.json")
    assert again == found
    assert again.value("create", "bindfs/disk", "us") == 1.235
    assert again.value("create", "caiafs/disk", "us") == 2.0
    assert again.requests["create"] == {"create": 1.0}


def test_merged_cases_replace_those_kept() -> None:
    kept = results(create={"caiafs/disk": {"us": [1.0]}}, rename={"caiafs/disk": {"us": [1.0]}})
    kept.failures = {"create": {"gitfs/disk": "hung"}}
    kept.merge(results(create={"caiafs/disk": {"us": [9.0]}}))
    assert kept.value("create", "caiafs/disk", "us") == 9.0
    assert kept.value("rename", "caiafs/disk", "us") == 1.0
    assert kept.failures == {}


def test_the_page_tells_a_miss_and_its_profile(tmp_path: Path) -> None:
    found = results(
        create={"caiafs/disk": {"us": [50.0]}, "bindfs/disk": {"us": [100.0]}},
        rename={"caiafs/disk": {"us": [300.0]}, "bindfs/disk": {"us": [100.0]}},
    )
    found.profiles = {"rename": ["50 % in somewhere"]}
    report.write(found, tmp_path / "performance.md", [found])
    page = (tmp_path / "performance.md").read_text()
    assert (
        "| create + write 4 KiB + close | bindfs | at most 1.3 × its time | 0.5 × (bindfs disk) | met" in page
    )
    assert "| rename | bindfs | at most 1.5 × its time | 3 × (bindfs disk) | **missed** |" in page
    assert "50 % in somewhere" in page
    assert "| 1.2.3" in page
    for drawing in (tmp_path / "performance").glob("*.svg"):
        assert ET.fromstring(drawing.read_text()).tag.endswith("svg")
    assert "rename" in table(found)
    assert "missed" in goals(found)


def test_a_busy_machine_judges_nothing(tmp_path: Path) -> None:
    found = results(rename={"caiafs/disk": {"us": [300.0]}, "bindfs/disk": {"us": [100.0]}})
    found.machine["load_before"] = 9.0
    report.write(found, tmp_path / "performance.md", [found])
    page = (tmp_path / "performance.md").read_text()
    assert "| 3 × (bindfs disk) | not judged |" in page
    assert "**missed" not in page
    found.machine["load_after"] = 0.5  # what there was had ended
    assert not found.busy


def test_charts_are_well_formed_whatever_the_names() -> None:
    drawing = charts.bars("a < b & c", "µs", {"<x>": {'"q"': 1.0, "r": 1000.0}})
    assert len(ET.fromstring(drawing).findall(".//{*}title")) == 2
    assert ET.fromstring(charts.lines("t", "x", "y", {"a": [(1.0, 2.0), (10.0, 4.0)]})) is not None
    assert ET.fromstring(charts.bars("empty", "s", {})) is not None


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.0, 0.01234, 1.234, 99.96, 1234.0, 123456.0)] == [
        "0", "0.0123", "1.23", "100", "1,230", "123,000",
    ]  # fmt: skip
