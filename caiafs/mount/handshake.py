"""What is agreed with the kernel before the first request: libfuse's answer, and some words more.

A kernel asks for `security.capability` before every write(2), a round trip each, unless the daemon
says that it takes set-id bits away itself (FUSE_HANDLE_KILLPRIV_V2; `operations` does). With that
word a 4 KiB pwrite costs a twentieth: write-back caching is of little use without it. libfuse
learned the word in 3.17 and pyfuse3 does not say it, so it is said here: for one message,
the first, a socket stands where the kernel's descriptor was. libfuse reads the kernel's greeting
from it and writes its answer to it; the answer goes on to the kernel with one flag more.

Asked by `loop` before each wait until it is through. Whatever looks unusual is handed on as it is.
Measured and not chosen: answering getxattr ENOSYS, which ends all extended attributes.
"""

from __future__ import annotations

import os
import socket
import struct

HANDLE_KILLPRIV_V2 = 1 << 28
CACHE_SYMLINKS = 1 << 23
DONT_MASK = 1 << 6
WANTED = HANDLE_KILLPRIV_V2 | CACHE_SYMLINKS | DONT_MASK
"""linux/fuse.h: set-id bits go with a write, by the daemon; targets of symlinks, which never change, stay;
the umask comes along with a new inode's mode, since a default access list stands in its place."""

_INIT = 26
_REQUEST = struct.Struct("<II32x8xII")  # fuse_in_header: length, opcode; fuse_init_in: …, readahead, flags
_ANSWER = struct.Struct("<Ii8x4x4x4xI")  # fuse_out_header: length, error; fuse_init_out: …, flags
_FLAGS = _ANSWER.size - 4
_BUFFER = 1 << 17  # more than the least that the kernel accepts for a read


class Handshake:
    """One mount's greeting. `agreed` are the flags that were added to libfuse's answer."""

    def __init__(self) -> None:
        self.agreed = 0
        self._offered = 0
        self._kernel = -1
        self._socket: socket.socket | None = None

    def advance(self, fd: int) -> bool:
        """False: *fd* has the greeting for libfuse to read, ask again after that. True: all is said."""
        if self._socket is None:
            return not self._receive(fd)
        self._answer(fd)
        return True

    def _receive(self, fd: int) -> bool:
        try:
            greeting = os.read(fd, _BUFFER)  # there since mount(2) returned: this does not wait
        except OSError:
            return False  # unmounted already: libfuse will be told the same
        if len(greeting) >= _REQUEST.size:
            _, opcode, _, flags = _REQUEST.unpack_from(greeting)
            self._offered = flags if opcode == _INIT else 0
        self._kernel = os.dup(fd)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), fd, inheritable=False)
        self._socket.send(greeting)
        return True

    def _answer(self, fd: int) -> None:
        assert self._socket is not None
        with self._socket:
            answer = bytearray(self._socket.recv(_BUFFER, socket.MSG_DONTWAIT))
        os.dup2(self._kernel, fd, inheritable=False)
        os.close(self._kernel)
        if len(answer) >= _ANSWER.size:
            _, error, flags = _ANSWER.unpack_from(answer)
            if not error:
                self.agreed = WANTED & self._offered & ~flags
                struct.pack_into("<I", answer, _FLAGS, flags | self.agreed)
        os.write(fd, answer)
