"""The wait for the next request: at once where there is one, others get their turn, no CPU when idle."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from caiafs.mount.loop import SLICE, EagerLoop, Loop, Turn, installed


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end and ours."""
    kernel, ours = socket.socketpair()
    with kernel, ours:
        yield kernel, ours


def greeted(spin: float = 0.0001) -> EagerLoop:
    loop = EagerLoop(spin)
    loop.handshake = None
    return loop


def test_pyfuse3_gets_its_own_trio_back() -> None:
    module: Any = pyfuse3
    before = module.trio
    with installed(0.0001) as loop:
        assert module.trio is loop
        assert isinstance(loop, EagerLoop)
    assert module.trio is before


def test_without_a_spin_pyfuse3_waits_as_it_always_does() -> None:
    with installed(0) as loop:
        assert type(loop) is Loop
        assert loop.Lock is trio.Lock
        assert loop.open_nursery is trio.open_nursery


def test_a_request_that_is_there_is_answered_without_a_turn_for_others(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    kernel, ours = pair

    async def main() -> None:
        loop = greeted()
        kernel.send(b"x")
        await loop.wait_readable(ours.fileno())  # the first one lets others in
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            loop._let_in = time.perf_counter_ns()
            for _ in range(10):
                await loop.wait_readable(ours.fileno())
            assert turns == 0
            nursery.cancel_scope.cancel()
        assert loop.at_once == 11

    trio.run(main)


def test_whether_a_request_waits_is_known_without_taking_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    kernel, ours = pair

    async def main() -> None:
        loop = greeted()
        assert not loop.is_asked()
        kernel.send(b"x")
        await loop.wait_readable(ours.fileno())
        assert loop.is_asked()
        assert ours.recv(1) == b"x"
        assert not loop.is_asked()

    trio.run(main)


@pytest.mark.parametrize("spin", [0.0001, 0.01])
def test_others_get_their_turn_while_requests_never_end(
    pair: tuple[socket.socket, socket.socket], spin: float
) -> None:
    kernel, ours = pair
    length = 50 * SLICE

    async def main() -> None:
        loop = greeted(spin)
        kernel.send(b"x")
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            used = time.thread_time_ns()
            while time.thread_time_ns() - used < length:
                await loop.wait_readable(ours.fileno())
            nursery.cancel_scope.cancel()
        assert turns >= 25  # fifty slices of CPU time, of which wall time is more

    trio.run(main)


def test_an_idle_mount_uses_no_cpu(pair: tuple[socket.socket, socket.socket]) -> None:
    _, ours = pair

    async def main() -> None:
        loop = greeted(0.01)
        with trio.move_on_after(0.5):
            used = time.thread_time()
            await loop.wait_readable(ours.fileno())
        assert time.thread_time() - used < 0.1
        assert loop.slept == 1

    trio.run(main)


def test_spins_that_find_nothing_get_shorter_and_a_short_sleep_brings_them_back(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    kernel, ours = pair

    async def main() -> None:
        loop = greeted(0.001)
        for _ in range(200):  # some are over before they look, on a machine with much to do
            with trio.move_on_after(0.004):
                await loop.wait_readable(ours.fileno())
            if not loop._spin:
                break
        assert loop._spin == 0
        loop._longest = 10**10  # whatever it takes, this sleep counts as short

        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.wait_readable, ours.fileno())
            await trio.testing.wait_all_tasks_blocked()
            kernel.send(b"x")
        assert loop._spin == loop._longest

    trio.run(main)


def test_a_request_that_waits_is_not_held_up_by_a_spin(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caiafs.mount.loop.BUSY", 10**12)
    _, ours = pair

    async def main() -> None:
        loop = greeted(10)  # seconds: a spin would not end in time

        async def held_up(_: object) -> None:
            await trio.sleep_forever()

        async def reading(_: object) -> None:
            async with loop.Lock():
                await loop.wait_readable(ours.fileno())

        started = time.monotonic()
        async with trio.open_nursery() as outer, loop.open_nursery() as nursery:
            nursery.start_soon(held_up, nursery, name="a")
            nursery.start_soon(reading, nursery, name="b")
            await trio.testing.wait_all_tasks_blocked()
            assert loop.slept == 1
            outer.cancel_scope.cancel()
        assert time.monotonic() - started < 5

    trio.run(main)


def test_while_one_task_is_held_up_another_reads() -> None:
    """And while none is, the one that has the turn keeps it."""

    async def main() -> None:
        turn = Turn()
        order: list[str] = []
        go_on = trio.Event()

        async def serve(name: str, count: int) -> None:
            for number in range(count):
                async with turn:
                    order.append(name)
                if name == "a" and number == 1:
                    await go_on.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, "a", 4)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a", "a"]
            nursery.start_soon(serve, "b", 3)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a", "a", "b", "b", "b"]
            go_on.set()
        assert order == ["a", "a", "b", "b", "b", "a", "a"]

    trio.run(main)


def test_the_turn_is_never_lost() -> None:
    """Whoever waits gets it, whatever the others do in between."""

    async def main() -> None:
        turn = Turn()
        inside = served = 0

        async def serve(_: object, seed: int) -> None:
            nonlocal inside, served
            for number in range(50):
                async with turn:
                    assert inside == 0
                    inside += 1
                    if (seed + number) % 3 == 0:
                        await trio.lowlevel.checkpoint()
                    inside -= 1
                served += 1
                for _ in range((seed * number) % 4):
                    await trio.lowlevel.checkpoint()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for seed in range(8):
                    nursery.start_soon(serve, None, seed)
        assert served == 400

    trio.run(main)


def test_a_real_descriptor_wakes_the_sleeper() -> None:
    async def main() -> None:
        loop = greeted(0.0001)
        out, into = os.pipe()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(loop.wait_readable, out)
                await trio.testing.wait_all_tasks_blocked()
                os.write(into, b"x")
            assert loop.slept == 1
        finally:
            os.close(out)
            os.close(into)

    trio.run(main)
