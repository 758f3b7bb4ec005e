"""Access lists: the kernel's bytes, and its rules for chmod and for what is inherited."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiafs.filesystem.acl import (
    ACCESS,
    DEFAULT,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    BadACL,
    Entry,
    decode,
    encode,
    inherited,
    is_minimal,
    mode_of,
    with_mode,
)

NOBODY = 0xFFFFFFFF
MINIMAL = [Entry(USER_OBJ, 7, NOBODY), Entry(GROUP_OBJ, 5, NOBODY), Entry(OTHER, 1, NOBODY)]
EXTENDED = [
    Entry(USER_OBJ, 7, NOBODY),
    Entry(USER, 6, 1000),
    Entry(GROUP_OBJ, 5, NOBODY),
    Entry(GROUP, 7, 50),
    Entry(MASK, 3, NOBODY),
    Entry(OTHER, 1, NOBODY),
]


def test_the_bytes_are_the_kernels() -> None:
    assert encode(MINIMAL) == bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff")
    assert decode(encode(EXTENDED)) == EXTENDED


def test_an_empty_list_is_a_list() -> None:
    assert decode(struct.pack("<I", 2)) == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        struct.pack("<I", 1) + encode(MINIMAL)[4:],
        encode(MINIMAL)[:-1],
        encode(MINIMAL) + b"\0",
        encode(MINIMAL[1:]),
        encode(MINIMAL[:-1]),
        encode([*MINIMAL, MINIMAL[0]]),
        encode([*MINIMAL, Entry(USER, 7, 1000)]),
        encode([*MINIMAL, Entry(GROUP, 7, 1000)]),
    ],
)
def test_what_is_no_list_is_refused(value: bytes) -> None:
    with pytest.raises(BadACL):
        decode(value)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_list_or_refused(value: bytes) -> None:
    try:
        entries = decode(b"\2\0\0\0" + value)
    except BadACL:
        return
    if entries:
        assert mode_of(entries) <= 0o777


def test_the_mode_shows_the_mask_as_the_group() -> None:
    assert mode_of(MINIMAL) == 0o751
    assert mode_of(EXTENDED) == 0o731
    assert is_minimal(MINIMAL)
    assert not is_minimal(EXTENDED)


@given(st.integers(0, 0o7777))
def test_chmod_changes_the_mask_and_not_the_group(mode: int) -> None:
    changed = with_mode(EXTENDED, mode)
    assert mode_of(changed) == mode & 0o777
    assert [entry for entry in changed if entry.tag in (USER, GROUP, GROUP_OBJ)] == [
        entry for entry in EXTENDED if entry.tag in (USER, GROUP, GROUP_OBJ)
    ]
    assert mode_of(with_mode(MINIMAL, mode)) == mode & 0o777


def test_a_file_inherits_as_much_as_it_was_created_with() -> None:
    mode, attributes = inherited(encode(EXTENDED), 0o100660, is_directory=False)
    assert mode == 0o100620
    assert [name for name, _ in attributes] == [ACCESS]
    assert mode_of(decode(attributes[0][1])) == 0o620


def test_a_directory_passes_the_list_on() -> None:
    mode, attributes = inherited(encode(EXTENDED), 0o42777, is_directory=True)
    assert mode == 0o42731
    assert dict(attributes)[DEFAULT] == encode(EXTENDED)
    assert decode(dict(attributes)[ACCESS]) == EXTENDED


def test_a_minimal_default_is_a_umask() -> None:
    assert inherited(encode(MINIMAL), 0o100666, is_directory=False) == (0o100640, ())
