"""The .stats directory as data: what it shows, and what it refuses with which errno."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiafs.errors import FSError
from caiafs.virtual import DIRECTORY, VIRTUAL_BASE, Attributes, Virtual, VirtualFile, is_virtual, render_json

ROOT = 1
SECOND = 10**9


@dataclass
class Figures:
    """A renderer whose contents the test sets, and which counts how often it was asked."""

    data: bytes = b"0\n"
    asked: int = 0
    removed: int = 0
    time_ns: int = 1_700_000_000 * SECOND
    virtual: Virtual = field(init=False)

    def __post_init__(self) -> None:
        self.virtual = Virtual(
            {
                b"health.json": VirtualFile(self.render),
                b"metrics.json": VirtualFile(self.render, self.remove),
            },
            uid=1000,
            gid=100,
            now=lambda: self.time_ns,
        )

    def render(self) -> bytes:
        self.asked += 1
        return self.data

    def remove(self) -> None:
        self.removed += 1

    def look(self, name: bytes = b"health.json") -> int:
        node = self.virtual.lookup(DIRECTORY, name)
        assert node is not None
        return node


@pytest.fixture
def figures() -> Figures:
    return Figures()


def errno_of(call: Callable[..., object], *args: object) -> int:
    with pytest.raises(FSError) as caught:
        call(*args)
    return caught.value.errno


def test_directory_is_found_by_name_and_hidden_from_the_root_listing(figures: Figures) -> None:
    assert figures.virtual.root_entry(b".stats") == DIRECTORY
    assert figures.virtual.root_entry(b"stats") is None
    assert figures.virtual.root_listing() == []
    assert Virtual({}, visible=True).root_listing() == [(b".stats", DIRECTORY)]
    assert Virtual({}, name=b".other").root_entry(b".stats") is None


def test_node_ids_are_virtual_positive_and_fit_63_bits(figures: Figures) -> None:
    nodes = [DIRECTORY, figures.look(), *(node for _, node in figures.virtual.listing(DIRECTORY))]
    assert all(is_virtual(node) and VIRTUAL_BASE <= node < 2**63 for node in nodes)
    assert not is_virtual(ROOT)
    assert not is_virtual(VIRTUAL_BASE - 1)


def test_lookup_of_an_unknown_name_finds_nothing(figures: Figures) -> None:
    assert figures.virtual.lookup(DIRECTORY, b"nothing") is None


def test_lookup_below_a_file_is_not_a_directory(figures: Figures) -> None:
    assert errno_of(figures.virtual.lookup, figures.look(), b"x") == errno.ENOTDIR
    assert errno_of(figures.virtual.listing, figures.look()) == errno.ENOTDIR


def test_listing_names_every_file_and_renders_none(figures: Figures) -> None:
    assert [name for name, _ in figures.virtual.listing(DIRECTORY)] == [b"health.json", b"metrics.json"]
    assert figures.asked == 0


def test_listing_and_lookup_show_the_same_inode_number(figures: Figures) -> None:
    for name, node in figures.virtual.listing(DIRECTORY):
        assert figures.virtual.attributes(node).ino == figures.virtual.attributes(figures.look(name)).ino


def test_attributes_of_directory_and_file(figures: Figures) -> None:
    figures.data = b"x" * 123
    assert figures.virtual.attributes(DIRECTORY) == Attributes(
        DIRECTORY, stat.S_IFDIR | 0o755, 2, 1000, 100, 0, figures.time_ns
    )
    seen = figures.virtual.attributes(figures.look())
    assert seen[1:] == (stat.S_IFREG | 0o444, 1, 1000, 100, 123, figures.time_ns)


def test_owner_is_the_user_who_mounts() -> None:
    seen = Virtual({}).attributes(DIRECTORY)
    assert (seen.uid, seen.gid) == (os.getuid(), os.getgid())


@given(st.binary(max_size=5000), st.integers(0, 2**32 - 1))
def test_size_and_time_of_a_node_are_those_of_the_bytes_it_opens(data: bytes, second: int) -> None:
    figures = Figures(data, time_ns=second * SECOND)
    node = figures.look()
    figures.data = b"something else"
    seen = figures.virtual.attributes(node)
    assert (seen.size, seen.time_ns) == (len(data), second * SECOND)
    assert figures.virtual.open(node) == data


def test_new_contents_are_a_new_node_with_the_same_inode_number(figures: Figures) -> None:
    first = figures.look()
    figures.data = b"longer\n"
    second = figures.look()
    assert first != second
    assert figures.virtual.attributes(first).ino == figures.virtual.attributes(second).ino
    assert figures.virtual.attributes(first).size == 2
    assert figures.virtual.attributes(second).size == 7


def test_contents_are_made_at_open_and_not_kept_for_the_next(figures: Figures) -> None:
    assert figures.virtual.open(figures.look()) == b"0\n"
    figures.data = b"1\n"
    assert figures.virtual.open(figures.look()) == b"1\n"
    assert figures.asked == 2


def test_overlapping_opens_each_get_the_bytes_they_looked_up(figures: Figures) -> None:
    one = figures.look()
    figures.data = b"second\n"
    two = figures.look()
    assert figures.virtual.open(one) == b"0\n"
    assert figures.virtual.open(two) == b"second\n"


def test_open_without_a_lookup_of_its_own_renders_anew(figures: Figures) -> None:
    node = figures.look()
    figures.virtual.open(node)
    figures.data = b"again\n"
    assert figures.virtual.open(node) == b"again\n"


def test_renderings_nobody_opens_are_forgotten(figures: Figures) -> None:
    first = figures.look()
    for size in range(3, 50):
        figures.data = b"x" * size
        figures.look()
    assert figures.virtual.open(first) == figures.data


def test_every_way_of_writing_is_refused_at_open(figures: Figures) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        assert errno_of(figures.virtual.open, figures.look(), flags) == errno.EACCES
    assert figures.virtual.open(figures.look(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) == b"0\n"


def test_directory_cannot_be_opened_as_a_file(figures: Figures) -> None:
    assert errno_of(figures.virtual.open, DIRECTORY) == errno.EISDIR


def test_node_of_another_mount_is_stale(figures: Figures) -> None:
    unknown = VIRTUAL_BASE | 50 << 56
    assert errno_of(figures.virtual.attributes, unknown) == errno.ESTALE
    assert errno_of(figures.virtual.open, unknown) == errno.ESTALE


def test_rm_does_what_removal_means_and_the_file_stays(figures: Figures) -> None:
    figures.virtual.unlink(DIRECTORY, b"metrics.json")
    assert figures.removed == 1
    assert figures.virtual.lookup(DIRECTORY, b"metrics.json") is not None


def test_what_was_rendered_before_rm_is_not_opened_after_it(figures: Figures) -> None:
    node = figures.look(b"metrics.json")
    figures.virtual.unlink(DIRECTORY, b"metrics.json")
    figures.data = b"{}\n"
    assert figures.virtual.open(node) == b"{}\n"


def test_refused_changes_and_their_errnos(figures: Figures) -> None:
    v, node = figures.virtual, figures.look()
    refused: list[tuple[int, Callable[..., object], tuple[object, ...]]] = [
        (errno.EPERM, v.unlink, (DIRECTORY, b"health.json")),
        (errno.ENOENT, v.unlink, (DIRECTORY, b"nothing")),
        (errno.EISDIR, v.unlink, (ROOT, b".stats")),
        (errno.EBUSY, v.rmdir, (ROOT, b".stats")),
        (errno.ENOTDIR, v.rmdir, (DIRECTORY, b"health.json")),
        (errno.ENOENT, v.rmdir, (DIRECTORY, b"nothing")),
        (errno.EPERM, v.make, (DIRECTORY, b"new")),
        (errno.EEXIST, v.make, (DIRECTORY, b"health.json")),
        (errno.EEXIST, v.make, (ROOT, b".stats")),
        (errno.ENOTDIR, v.make, (node, b"new")),
        (errno.EXDEV, v.rename, (DIRECTORY, b"health.json", ROOT, b"x")),
        (errno.EXDEV, v.rename, (ROOT, b"x", DIRECTORY, b"health.json")),
        (errno.ENOENT, v.rename, (DIRECTORY, b"nothing", ROOT, b"x")),
        (errno.EPERM, v.rename, (DIRECTORY, b"health.json", DIRECTORY, b"x")),
        (errno.EBUSY, v.rename, (ROOT, b".stats", ROOT, b"x")),
        (errno.EBUSY, v.rename, (ROOT, b"x", ROOT, b".stats")),
        (errno.EXDEV, v.link, (node, ROOT, b"x")),
        (errno.EXDEV, v.link, (5, DIRECTORY, b"x")),
        (errno.EPERM, v.link, (node, DIRECTORY, b"x")),
        (errno.EEXIST, v.link, (5, ROOT, b".stats")),
        (errno.EPERM, v.setattr, (node,)),
        (errno.EPERM, v.setattr, (DIRECTORY,)),
    ]
    for expected, call, args in refused:
        assert errno_of(call, *args) == expected, (call, args)
    assert figures.removed == 0


def test_failure_to_render_reaches_the_caller_and_spares_the_listing() -> None:
    def broken() -> bytes:
        raise FSError(errno.EIO)

    virtual = Virtual({b"a": VirtualFile(broken), b"b": VirtualFile(lambda: b"fine")})
    assert errno_of(virtual.lookup, DIRECTORY, b"a") == errno.EIO
    assert len(virtual.listing(DIRECTORY)) == 2
    assert virtual.lookup(DIRECTORY, b"b") is not None


def test_more_files_than_node_ids_can_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="64 virtual files"):
        Virtual({b"%d" % n: VirtualFile(bytes) for n in range(64)})
    virtual = Virtual({b"%d" % n: VirtualFile(bytes) for n in range(63)})
    assert len({virtual.attributes(node).ino for _, node in virtual.listing(DIRECTORY)}) == 63


def test_json_keeps_its_order_and_ends_in_a_newline() -> None:
    assert render_json({"b": 1, "a": [True, None]}) == (
        b'{\n  "b": 1,\n  "a": [\n    true,\n    null\n  ]\n}\n'
    )


def test_json_carries_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert os.fsencode(json.loads(render_json({"name": name}))["name"]) == b"caf\xe9"


def test_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render_json(float("nan"))
