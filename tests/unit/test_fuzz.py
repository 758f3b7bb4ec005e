"""Every reader of foreign bytes against what Hypothesis thinks of, and good inputs with damage in them.

The same targets are driven by coverage with `make fuzz`; what that found is in `FOUND`, for good.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.targets import TARGETS, clean_up, seeds

FOUND: list[tuple[str, bytes]] = [
    ("refs", b"ref:" + bytes(8) + b"/heads/oth"),
    ("options", b"ro,config=5xFi;;\x00;;;;Ba"),
    ("midx", seeds("midx")[0].replace(b"OIDF" + bytes(7), b"OIDF" + b"\xff" * 4 + bytes(3))),
]


@pytest.fixture(scope="module", autouse=True)
def _cleaned() -> Iterator[None]:
    yield
    clean_up()


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=400))
@settings(max_examples=60)
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "overwrite"]),
        st.integers(0, 4000),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", TARGETS)
@given(st.integers(0, 20), damage)
@settings(max_examples=120)
def test_damaged_good_inputs(name: str, which: int, changes: list[tuple[str, int, bytes]]) -> None:
    good = seeds(name)
    data = bytearray(good[which % len(good)])
    for kind, at, piece in changes:
        place = at % (len(data) + 1)
        if kind == "flip" and place < len(data):
            data[place] ^= piece[0] or 1
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = piece
        elif kind == "repeat":
            data[place:place] = data[max(0, place - 40) : place]
        else:
            data[place : place + len(piece)] = piece
    TARGETS[name](bytes(data))


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_fuzzing_found(name: str, data: bytes) -> None:
    TARGETS[name](data)
