"""What a mount does when it is asked over its command socket.

One method for each command; control/server.py calls them, in the event loop, and turns what they
raise into an answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from ..committer.schedule import Outcome
from ..control.client import Progress
from ..control.server import Caller
from ..errors import MountError, StoreError, UsageError
from .reload import compare

if TYPE_CHECKING:
    from . import Mount

Arguments = dict[str, Any]
TELL_EVERY = 0.2
"""Seconds between two words to somebody who waits for a commit."""


class Commands:
    """The commands of one mount."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    def handlers(self) -> Mapping[str, Any]:
        """By name, as control/server.py wants them."""
        return {
            "commit": self._commit,
            "sync": self._sync,
            "status": self._status,
            "drain": self._drain,
            "reload": self._reload,
            "remount": self._remount,
            "leave": self._leave,
        }

    @contextlib.asynccontextmanager
    async def _telling(self, progress: Progress) -> AsyncIterator[None]:
        """Say how far the commit is while it is waited for."""

        async def tell() -> None:
            while True:
                await trio.sleep(TELL_EVERY)  # before the first word, too: most commits are over by then
                progress(*self._mount.committer.step())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield
            nursery.cancel_scope.cancel()

    async def _commit(self, arguments: Arguments, caller: Caller) -> Any:
        self._refuse_read_only()

        def said(outcome: Outcome) -> dict[str, Any]:
            return {"commit": outcome.commit.hex() if outcome.commit else None, "changes": outcome.changes}

        async with self._telling(caller):
            await self._mount.flush_kernel()
            message = _message(arguments.get("message"))
            outcome = await self._mount.committer.commit(
                message, landed=lambda outcome: caller.answer(said(outcome))
            )
        return said(outcome)

    async def _sync(self, arguments: Arguments, progress: Progress) -> Any:
        await self._mount.flush_kernel()
        return {"position": await self._mount.fs.sync()}

    async def _status(self, arguments: Arguments, progress: Progress) -> Any:
        more = {"requests": self._mount.metrics.requests()} if arguments.get("requests") is True else {}
        return {**self._mount.report.status(), **more}

    async def _drain(self, arguments: Arguments, progress: Progress) -> Any:
        if not self._mount.born_read_only:
            async with self._telling(progress):
                if not arguments.get("flushed"):
                    await self._mount.flush_kernel()
                await self._mount.committer.drain()
        head = self._mount.committer.head
        return {"commit": head.hex() if head else None}

    async def _reload(self, arguments: Arguments, progress: Progress) -> Any:
        change = self._mount.reload()
        return {"said": change.describe(), "changed": list(change.changed), "kept": list(change.kept)}

    async def _remount(self, arguments: Arguments, progress: Progress) -> Any:
        """Other settings (`words`: pairs of name and value, as -o has them), and `ro` true or false."""
        given = self._mount.config.given
        words = [(str(name), value) for name, value in arguments.get("words") or []]
        if words and given is not None:
            wanted = replace(given, words=[*given.words, *words]).gather()
            named = {name for name, _ in words}
            fixed = [name for name in compare(self._mount.config, wanted).kept if name in named]
            if fixed:
                raise UsageError(
                    f"{', '.join(fixed)} cannot change while {self._mount.config.mountpoint} is mounted: "
                    "unmount it and mount it again"
                )
            self._mount.reload(wanted)
        if isinstance(closed := arguments.get("ro"), bool):
            await self._mount.close_to_writers(closed)
        return {}

    async def _leave(self, arguments: Arguments, progress: Progress) -> Any:
        """It was unmounted where we live; copies in other mount namespaces are no reason to stay."""
        if (still := self._mount.place()) is not None:
            raise MountError(f"{still} is still mounted")
        place = self._mount.config.mountpoint
        self._mount.leaving.set()
        if opened := self._mount.open_handles():
            raise MountError(
                f"{place} is unmounted here, but {opened} open files or directories keep it: another mount "
                f"namespace (a container, a service) has a copy of the mount, or the unmount was lazy. The "
                f"daemon (process {os.getpid()}) ends when they are closed"
            )
        return {}

    def _refuse_read_only(self) -> None:
        if self._mount.born_read_only:
            raise StoreError(
                f"{self._mount.config.mountpoint} is mounted read-only: there is nothing to commit"
            )


def _message(given: object) -> str | None:
    """A commit message somebody asked for; None if there is nothing in it."""
    if given is None:
        return None
    text = str(given)
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UsageError("the message must be valid text, without NUL bytes")
    return text if text.strip() else None
