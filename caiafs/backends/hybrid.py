"""The hybrid backend: one backend in front, another to fall back to, by the mount's own policy.

A call goes to the primary while that is healthy or due for a try (policy.Tier). What it does not take
goes to the fallback, and is brought home, in order, before the next call once the primary works. If
both refuse, the call fails and nothing was done.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import FSError
from ..policy import Policy, Tier, told_as
from . import Backend, Names, merge_into

T = TypeVar("T")

_OF_THE_CALL = (
    errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.EFBIG,
)  # fmt: skip
"""What is wrong with a call, and not with a backend."""


class HybridBackend:
    """*primary* in front, *fallback* behind it. Both are closed with it."""

    name = "hybrid"

    def __init__(
        self, primary: Backend, fallback: Backend, policy: Policy | None = None, enable_fallback: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        policy = policy or Policy()
        self._primary, self._fallback = primary, fallback
        self._has_fallback = enable_fallback
        self._first = Tier(primary.name, policy, clock)
        self._second = Tier(fallback.name, policy, clock)
        self._away: dict[bytes, None] = {}
        self._stored = self._fallbacks = 0

    # ---- the interface

    def store(self, path: bytes, data: bytes) -> None:
        if self._is_back():
            refused = self._tried(self._first, lambda: self._primary.store(path, data))
            if refused is None:
                self._away.pop(path, None)
                self._stored += 1
                return
        else:
            refused = FSError(self._first.errno, self._first.reason or "")
        if not self._has_fallback:
            raise refused
        failure = self._tried(self._second, lambda: self._fallback.store(path, data))
        if failure is not None:
            reason = f"nothing keeps {path!r}: {self._first.name}: {refused}; {self._second.name}: {failure}"
            raise FSError(told_as(refused.errno, failure.errno), reason)
        self._away.pop(path, None)
        self._away[path] = None
        self._stored += 1
        self._fallbacks += 1

    def get(self, path: bytes) -> bytes:
        self._is_back()
        if path in self._away:
            return self._fallback.get(path)
        return self._read(lambda backend: backend.get(path))

    def list(self, path: bytes = b"") -> Names:
        self._is_back()
        names = set()
        try:
            names.update(self._read(lambda backend: backend.list(path)))
        except FSError as error:
            if error.errno != errno.ENOENT or not self._below(path):
                raise
        return sorted(names | self._below(path))

    def merge(self, other: Backend) -> Names:
        return merge_into(self, other)

    def health(self) -> dict[str, Any]:
        failed = not self._first.is_healthy and not (self._has_fallback and self._second.is_healthy)
        healthy = self._first.is_healthy and self._second.is_healthy
        return {
            "state": "failed" if failed else "healthy" if healthy else "degraded",
            "reasons": [*self._first.reasons, *self._second.reasons],
            "backends": {tier.name: tier.describe() for tier in (self._first, self._second)},
        }

    def statistics(self) -> dict[str, int]:
        return {
            "documents_stored": self._stored,
            "fallbacks": self._fallbacks,
            "documents_away": len(self._away),
        }

    def close(self) -> None:
        self._is_back()
        self._primary.close()
        self._fallback.close()

    # ---- the policy

    def _is_back(self) -> bool:
        """True if the primary may be asked; what only the fallback has is in it then."""
        if not self._first.may_try:
            return False
        for path in list(self._away):
            data = self._fallback.get(path)
            if self._tried(self._first, lambda p=path, d=data: self._primary.store(p, d)) is not None:  # type: ignore[misc]
                return False
            del self._away[path]
        return True

    def _tried(self, tier: Tier, call: Callable[[], None]) -> FSError | None:
        """The error of a call, if the backend is to blame for it; raises what the caller is to blame for."""
        try:
            call()
        except FSError as error:
            if error.errno in _OF_THE_CALL:
                raise
            tier.trouble(str(error), error.errno)
            return error
        tier.worked()
        return None

    def _read(self, call: Callable[[Backend], T]) -> T:
        """From the primary; from the fallback where that cannot be read, or does not have it."""
        try:
            return call(self._primary)
        except FSError as error:
            blame = error.errno not in _OF_THE_CALL
            if blame:
                self._first.trouble(str(error), error.errno)
            if not self._has_fallback or not (blame or error.errno == errno.ENOENT):
                raise
            try:
                return call(self._fallback)
            except FSError as second:
                raise (error if second.errno == errno.ENOENT else second) from error

    def _below(self, path: bytes) -> set[bytes]:
        """Names in the directory *path* that only the fallback has."""
        start = path + b"/" if path else b""
        found = set()
        for away in self._away:
            if away.startswith(start):
                name, slash, _ = away[len(start) :].partition(b"/")
                found.add(name + slash)
        return found
