"""What the worker remembers of the last commits stays within its room, whatever the objects' sizes."""

from __future__ import annotations

import tracemalloc

from caiafs.committer.recent import Recent


def test_many_small_objects_stay_within_the_room() -> None:
    """Their bytes alone would be a third of what they cost."""
    room = 1 << 20
    recent = Recent(room)
    tracemalloc.start()
    for number in range(20_000):
        recent.note(2, b"%020d" % number, b"%0100d" % number)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert room // 2 < size < room * 5 // 4


def test_what_was_used_last_stays() -> None:
    recent = Recent(2000)
    recent.note(2, b"kept", b"x" * 100)
    for number in range(50):
        recent.note(2, b"%d" % number, b"y" * 100)
        assert recent.get(2, b"kept", lambda oid: b"read again") == b"x" * 100
    assert recent.get(2, b"0", lambda oid: b"read again") == b"read again"


def test_what_would_take_half_the_room_is_read_each_time() -> None:
    recent = Recent(2000)
    recent.note(2, b"large", b"x" * 1001)
    assert recent.get(2, b"large", lambda oid: b"read again") == b"read again"


def test_parts_go_with_the_object_and_count_as_much() -> None:
    recent = Recent(4000)
    for number in range(20):
        recent.note(2, b"%d" % number, b"x" * 500, [b"y" * 250] * 2)
    assert recent.parts(2, b"19") == (b"x" * 500, [b"y" * 250] * 2)
    assert recent.parts(2, b"18") == (b"x" * 500, [b"y" * 250] * 2)
    assert recent.parts(2, b"15") == recent.parts(2, None) == (b"", ())
    assert recent._size == sum(recent._cost(*known) for known in recent._known) <= 4000
    recent.note(2, b"wide", b"x" * 1500, [b"y" * 1000])
    assert recent.get(2, b"wide", lambda oid: b"read again") == b"x" * 1500
    assert recent.parts(2, b"wide") == (b"", ()), "with them it would take half of the room"
