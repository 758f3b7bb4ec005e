"""The greeting of the kernel: libfuse's answer goes on with one word more, and nothing else changes."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from caiafs.mount.handshake import CACHE_SYMLINKS, DONT_MASK, HANDLE_KILLPRIV_V2, WANTED, Handshake

INIT = 26


def greeting(flags: int, opcode: int = INIT) -> bytes:
    """fuse_in_header and fuse_init_in, as linux/fuse.h has them."""
    body = struct.pack("<IIIII11I", 7, 45, 131072, flags, 0, *(0,) * 11)
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def answer(flags: int, error: int = 0) -> bytes:
    """fuse_out_header and fuse_init_out."""
    body = struct.pack("<IIIIHHIIHHI7I", 7, 31, 131072, flags, 0, 0, 1 << 20, 1, 256, 0, 0, *(0,) * 7)
    return struct.pack("<IiQ", 16 + len(body), error, 2) + body


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, int]]:
    """The kernel's end, and the descriptor that libfuse has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = theirs.detach()
    with ours:
        yield ours, fd
    os.close(fd)


def shake(kernel: tuple[socket.socket, int], hello: bytes, reply: bytes) -> tuple[Handshake, bytes]:
    ours, fd = kernel
    handshake = Handshake()
    ours.send(hello)
    assert not handshake.advance(fd)
    assert os.read(fd, 1 << 17) == hello
    os.write(fd, reply)
    assert handshake.advance(fd)
    return handshake, ours.recv(1 << 17)


def test_one_word_is_added_to_what_libfuse_says(kernel: tuple[socket.socket, int]) -> None:
    handshake, told = shake(kernel, greeting(0xFFFFFFFF), answer(0b1001))
    assert told == answer(0b1001 | WANTED)
    assert handshake.agreed == HANDLE_KILLPRIV_V2 | CACHE_SYMLINKS | DONT_MASK


def test_nothing_is_agreed_that_the_kernel_did_not_offer(kernel: tuple[socket.socket, int]) -> None:
    handshake, told = shake(kernel, greeting(CACHE_SYMLINKS), answer(1))
    assert told == answer(1 | CACHE_SYMLINKS)
    assert handshake.agreed == CACHE_SYMLINKS


@pytest.mark.parametrize(
    ("hello", "reply"),
    [
        (greeting(0xFFFFFFFF, opcode=3), answer(1)),
        (greeting(0xFFFFFFFF), answer(1, error=-71)),
        (greeting(0xFFFFFFFF)[:44], answer(1)),
        (greeting(0xFFFFFFFF), answer(1)[:24]),
    ],
    ids=["not a greeting", "refused", "short greeting", "short answer"],
)
def test_what_looks_unusual_is_handed_on_as_it_is(
    kernel: tuple[socket.socket, int], hello: bytes, reply: bytes
) -> None:
    handshake, told = shake(kernel, hello, reply)
    assert told == reply
    assert handshake.agreed == 0


def test_afterwards_the_descriptor_is_the_kernels_again(kernel: tuple[socket.socket, int]) -> None:
    ours, fd = kernel
    before = os.listdir("/proc/self/fd")
    shake(kernel, greeting(WANTED), answer(0))
    assert os.listdir("/proc/self/fd") == before
    ours.send(b"the next request")
    assert os.read(fd, 100) == b"the next request"
    os.write(fd, b"its answer")
    assert ours.recv(100) == b"its answer"
    assert not os.get_inheritable(fd)


def test_a_mount_that_is_gone_already_is_left_to_libfuse() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        struct_linger = struct.pack("ii", 1, 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct_linger)
        theirs.send(b"unread")  # so that the close is a reset, and reading an error, as with /dev/fuse
        ours.close()
        assert Handshake().advance(theirs.fileno())
