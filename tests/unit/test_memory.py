"""The memory tier: the budget holds after every call, the longest unused goes first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from caiafs.memory import OVERHEAD, MemoryTier


class FakeBlock:
    def __init__(self, size: int) -> None:
        self.size = size
        self.evicted = 0

    def evict(self) -> None:
        self.size = 0
        self.evicted += 1


class MemoryMachine(RuleBasedStateMachine):
    """The model is a list, the longest unused first."""

    @initialize(limit=st.integers(0, 5000))
    def start(self, limit: int) -> None:
        self.tier = MemoryTier(limit)
        self.order: list[tuple[FakeBlock, int]] = []
        self.reserved = 0
        self.evictions = 0

    def shrink(self) -> None:
        while self.order and sum(size for _, size in self.order) + self.reserved > self.tier.limit:
            block, _ = self.order.pop(0)
            self.evictions += 1
            assert block.evicted == 1
            assert block.size == 0

    @rule(size=st.integers(0, 3000))
    def hold(self, size: int) -> None:
        block = FakeBlock(size)
        self.tier.hold(block)
        if size:
            self.order.append((block, size + OVERHEAD))
        self.shrink()

    @rule(index=st.integers(0, 20))
    def use(self, index: int) -> None:
        if index < len(self.order):
            entry = self.order.pop(index)
            self.order.append(entry)
            self.tier.use(entry[0])
        else:
            self.tier.use(FakeBlock(10))

    @rule(index=st.integers(0, 20))
    def drop(self, index: int) -> None:
        if index < len(self.order):
            block, _ = self.order.pop(index)
            self.tier.drop(block)
            assert not block.evicted
            self.tier.drop(block)
        else:
            self.tier.drop(FakeBlock(10))

    @rule(size=st.integers(0, 6000))
    def reserve(self, size: int) -> None:
        self.reserved = size
        self.tier.reserve(size)
        self.shrink()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "tier"):
            return
        held = sum(size for _, size in self.order)
        assert self.tier.held == held
        assert self.tier.over == max(0, held + self.reserved - self.tier.limit)
        assert held <= max(0, self.tier.limit - self.reserved)
        assert all(not block.evicted for block, _ in self.order)
        assert self.tier.statistics() == {
            "limit_bytes": self.tier.limit,
            "held_bytes": held,
            "inode_bytes": self.reserved,
            "blocks": len(self.order),
            "evictions": self.evictions,
        }


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_larger_than_the_budget_is_let_go_at_once() -> None:
    tier = MemoryTier(1000)
    small, large = FakeBlock(100), FakeBlock(2000)
    tier.hold(small)
    tier.hold(large)
    assert large.evicted
    assert tier.held <= tier.limit
