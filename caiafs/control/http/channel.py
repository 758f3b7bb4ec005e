"""What the daemon and its HTTP server say to each other: a line of JSON, and bytes if it says so.

    → {"id": 7, "get": ["health", "stats"]}
    ← {"id": 7, "size": 1423}, followed by 1423 bytes: a pickled dict of pickled values
    or {"id": 7, "error": "…"}

Both ends are trio tasks in processes that trust each other. One task receives; any may send.
"""

from __future__ import annotations

import json
from typing import Any

import trio


class Channel:
    """Messages over one stream. What is raised is trio's: BrokenResourceError, ClosedResourceError."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()

    async def send(self, message: dict[str, Any], body: bytes | None = None) -> None:
        """Send *message*, and *body* after it. Not to be cancelled half-way: the stream is lost then."""
        if body is not None:
            message = {**message, "size": len(body)}
        async with self._sending:
            await self._stream.send_all(json.dumps(message).encode() + b"\n" + (body or b""))

    async def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message and its bytes; None when the other end is gone."""
        while (end := self._buffer.find(b"\n")) < 0:
            if not await self._more():
                return None
        message: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        size = message.get("size", 0)
        while len(self._buffer) < size:
            if not await self._more():
                return None
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return message, body

    async def _more(self) -> bool:
        try:
            data = await self._stream.receive_some(1 << 18)
        except trio.BrokenResourceError:
            return False
        self._buffer += data
        return bool(data)

    async def aclose(self) -> None:
        """Let go; the other end sees it."""
        await self._stream.aclose()
