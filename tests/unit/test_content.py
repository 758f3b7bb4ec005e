"""Content: extents over a base over zeros, played against a plain bytearray.

The machine writes, cuts, reads, forgets bytes, and has batches captured and settled at any
moment, with other changes in between. The journal is a dict from position to bytes, git a
dict from id to bytes; so every address that a file keeps is proved to lead to its bytes.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from caiafs.memory import OVERHEAD, MemoryTier
from caiafs.tree import Content, ContentState, Extent

SIZE = 60


class FakeJournal:
    """Bytes by position."""

    def __init__(self) -> None:
        self.data = bytearray(b"#" * 10)

    def append(self, data: bytes) -> int:
        self.data += b"head"
        position = len(self.data)
        self.data += data
        return position

    def read(self, position: int, length: int) -> bytes:
        data = bytes(self.data[position : position + length])
        assert len(data) == length
        return data


def read(
    content: Content, journal: FakeJournal, blobs: dict[bytes, bytes], offset: int, length: int
) -> bytes:
    """What `pieces` says, looked up."""
    parts = []
    at = offset
    for piece in content.pieces(offset, length):
        assert piece.offset == at
        assert piece.length > 0
        at += piece.length
        if piece.extent is not None:
            data = piece.extent.data
            if data is None:
                data = journal.read(piece.extent.position, piece.extent.length)
            assert len(data) == piece.extent.length
            start = piece.offset - piece.extent.offset
            parts.append(data[start : start + piece.length])
        elif piece.base is not None:
            parts.append(blobs[piece.base][piece.offset : piece.offset + piece.length])
            assert len(parts[-1]) == piece.length
        else:
            parts.append(bytes(piece.length))
    return b"".join(parts)


def built(state: ContentState, journal: FakeJournal, blobs: dict[bytes, bytes]) -> bytes:
    """What the commit worker makes of a captured content."""
    data = bytearray(state.size)
    if state.base is not None:
        assert state.base_limit <= state.size
        data[: state.base_limit] = blobs[state.base][: state.base_limit]
    end = 0
    for offset, length, position in state.extents:
        assert offset >= end
        end = offset + length
        data[offset:end] = journal.read(position, length)
    assert len(data) == state.size
    return bytes(data)


class ContentMachine(RuleBasedStateMachine):
    @initialize(base=st.none() | st.binary(max_size=SIZE))
    def start(self, base: bytes | None) -> None:
        self.journal = FakeJournal()
        self.memory = MemoryTier(400 + 3 * OVERHEAD)
        self.blobs: dict[bytes, bytes] = {}
        self.model = bytearray()
        if base is not None:
            self.blobs[b"base"] = base
            self.model += base
        self.content = Content(len(self.model), b"base" if base is not None else None)
        self.captured: tuple[ContentState, int, bytes] | None = None
        self.oids = 0

    @rule(offset=st.integers(0, SIZE), data=st.binary(min_size=1, max_size=20))
    def write(self, offset: int, data: bytes) -> None:
        position = self.journal.append(data)
        self.content.write(Extent(offset, len(data), position, data), self.memory)
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data

    @rule(size=st.integers(0, SIZE))
    def resize(self, size: int) -> None:
        self.content.resize(size, self.memory)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=st.integers(0, SIZE + 30), length=st.integers(1, SIZE))
    def read(self, offset: int, length: int) -> None:
        expected = bytes(self.model[offset : offset + length])
        assert read(self.content, self.journal, self.blobs, offset, length) == expected

    @rule(seed=st.integers(0, 99))
    def evict(self, seed: int) -> None:
        held = [extent for extent in self.content.extents if extent.data is not None]
        if held:
            extent = random.Random(seed).choice(held)
            self.memory.drop(extent)
            extent.evict()

    @precondition(lambda self: self.captured is None)
    @rule()
    def capture(self) -> None:
        state = self.content.capture()
        assert built(state, self.journal, self.blobs) == self.model
        self.captured = state, len(self.journal.data), bytes(self.model)

    @precondition(lambda self: self.captured is not None)
    @rule()
    def settle(self) -> None:
        assert self.captured is not None
        state, position, model = self.captured
        self.captured = None
        data = built(state, self.journal, self.blobs)
        assert data == model
        self.oids += 1
        oid = b"blob %d" % self.oids
        self.blobs[oid] = data
        done = self.content.settle(oid, state.size, position, self.memory)
        assert all(extent.position < position for extent in done)
        # what is before the freeze is not needed from the journal any more
        self.journal.data[:position] = b"!" * position

    @precondition(lambda self: self.captured is not None)
    @rule()
    def fail(self) -> None:
        """The batch is dropped before git took it; the next capture holds everything again."""
        self.captured = None

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "content"):
            return
        content = self.content
        assert content.size == len(self.model)
        assert read(content, self.journal, self.blobs, 0, SIZE * 3) == self.model
        extents = content.extents
        assert all(a.end <= b.offset for a, b in pairwise(extents))
        assert all(extent.length > 0 for extent in extents)
        assert not extents or extents[-1].end <= content.size
        if content.oid is not None:
            assert self.blobs[content.oid] == self.model
        held = sum(extent.size + OVERHEAD for extent in extents if extent.data is not None)
        assert self.memory.held == held <= self.memory.limit


TestContentMachine = ContentMachine.TestCase
TestContentMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.fixture
def memory() -> MemoryTier:
    return MemoryTier(1 << 20)


def test_a_cut_and_regrown_file_shows_zeros_where_the_base_was(memory: MemoryTier) -> None:
    content = Content(10, b"base")
    content.resize(4, memory)
    content.resize(10, memory)
    blobs = {b"base": b"0123456789"}
    assert read(content, FakeJournal(), blobs, 0, 10) == b"0123" + bytes(6)
    assert content.oid is None


def test_a_file_cut_while_its_commit_runs_shows_zeros_where_the_new_base_is(memory: MemoryTier) -> None:
    content = Content(10, b"old")
    content.capture()
    content.resize(4, memory)
    content.resize(10, memory)
    content.settle(b"new", 10, 100, memory)
    assert read(content, FakeJournal(), {b"new": b"0123456789"}, 0, 10) == b"0123" + bytes(6)
    assert content.oid is None


def test_a_write_that_came_during_the_commit_stays_over_the_new_base(memory: MemoryTier) -> None:
    journal = FakeJournal()
    content = Content()
    content.write(Extent(0, 4, journal.append(b"aaaa"), b"aaaa"), memory)
    content.capture()
    frozen = len(journal.data)
    content.write(Extent(1, 2, journal.append(b"BB"), b"BB"), memory)
    done = content.settle(b"new", 4, frozen, memory)
    assert [(extent.offset, extent.length) for extent in done] == [(0, 1), (3, 1)]
    assert read(content, journal, {b"new": b"aaaa"}, 0, 9) == b"aBBa"


def test_a_settled_file_is_its_blob(memory: MemoryTier) -> None:
    content = Content()
    content.write(Extent(0, 3, 50, b"abc"), memory)
    content.capture()
    content.settle(b"oid", 3, 100, memory)
    assert content.oid == b"oid"
    assert content.extents == []
    assert memory.held == 0


def test_an_extent_cut_in_two_keeps_both_addresses(memory: MemoryTier) -> None:
    content = Content()
    content.write(Extent(0, 9, 100, b"abcdefghi"), memory)
    content.write(Extent(3, 3, 200, b"XXX"), memory)
    assert [(e.offset, e.length, e.position, e.data) for e in content.extents] == [
        (0, 3, 100, b"abc"),
        (3, 3, 200, b"XXX"),
        (6, 3, 106, b"ghi"),
    ]


def test_many_appends_stay_in_order_and_cost_no_sorting(memory: MemoryTier) -> None:
    content = Content()
    for number in range(1000):
        content.write(Extent(number * 2, 2, number * 10, b"ab"), memory)
    assert content.size == 2000
    assert len(list(content.pieces(0, 2000))) == 1000
    assert len(list(content.pieces(1001, 3))) == 2


def test_discarded_content_holds_nothing(memory: MemoryTier) -> None:
    content = Content()
    content.write(Extent(0, 4, 10, b"aaaa"), memory)
    content.discard(memory)
    assert memory.held == 0
