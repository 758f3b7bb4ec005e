"""The processes that make the load, and what they were promised.

A writer owns one folder of the mount. It keeps a manifest outside: a line before each operation
and one after it. Around an operation it counts in two small files, so that every commit shows
between which operations it was taken. It ends when a call fails, which it notes, too.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from support.drill.model import COUNTERS, Model, Operation, implausible, perform

View = dict[str, tuple[str, str]]


class Step(NamedTuple):
    """One operation as the history may show it: the folder after it, and what it touched."""

    view: View
    touched: frozenset[str]


class Writer:
    """One folder, its manifest, and the process that works in it, restarted after each crash."""

    def __init__(self, mountpoint: Path, base: Path, name: str, seed: int) -> None:
        self.name = name
        self.root = str(mountpoint / name)
        self.path = base / f"{name}.manifest"
        self.seed = seed
        self.model = Model()
        self.number = 0
        self.bytes = 0
        self.errors: dict[int, int] = {}
        self.steps: dict[int, Step] = {0: Step({}, frozenset())}
        self._pid = 0
        self._read = 0
        self.path.write_bytes(b"")

    def make(self) -> None:
        """The folder, as the model begins."""
        os.mkdir(self.root)
        for name in COUNTERS:
            self._count(name, 0, create=True)

    # ---- the process

    def start(self, pause: float = 0.0) -> None:
        """Work from here on, in a process of its own, with *pause* seconds between operations."""
        assert not self._pid
        dice = random.Random(f"{self.seed}-{self.number}")
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._work(dice, pause)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        self._pid = pid

    def _work(self, dice: random.Random, pause: float) -> None:
        manifest = os.open(self.path, os.O_WRONLY | os.O_APPEND)

        def say(*words: object) -> None:
            os.write(manifest, json.dumps(words).encode() + b"\n")

        model, number = self.model, self.number
        while True:
            number += 1
            operation = model.choose(dice, number)
            say("begin", number, operation)
            done = 0
            try:
                self._count("a", number)
                done = 1
                perform(self.root, operation)
                done = 2
                self._count("z", number)
            except OSError as error:
                say("error", number, error.errno, done)
                return
            say("done", number)
            model.apply(operation)
            if pause:
                time.sleep(pause)

    def _count(self, name: str, number: int, create: bool = False) -> None:
        fd = os.open(os.path.join(self.root, name), os.O_WRONLY | (os.O_CREAT if create else 0), 0o644)
        try:
            os.pwrite(fd, b"%08d" % number, 0)
        finally:
            os.close(fd)

    def stop(self) -> None:
        """kill -9, at once."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0

    # ---- the promises

    def follow(self) -> tuple[Operation | None, int | None]:
        """Bring the model to what was acknowledged; the operation under way at the end, and, if it was
        refused, how much was done: 0 not even counted, 1 not done, 2 done and not counted."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        under_way: Operation | None = None
        refused: int | None = None
        for line in text.splitlines():
            what, number, *rest = json.loads(line)
            if what == "begin":
                assert (under_way, number) == (None, self.number + 1)
                under_way = tuple(rest[0])
            elif what == "done":
                assert under_way is not None
                self.number = number
                touched = frozenset(self.model.touched(under_way))
                self.model.apply(under_way)
                self.bytes += _payload(under_way)
                self._set_counters(number, number)
                self._remember(touched | self.model.touched(under_way))
                under_way = None
            else:
                code, done = rest
                refused = None if code in _GONE else done
                if refused is not None:
                    self.errors[code] = self.errors.get(code, 0) + 1
        return under_way, refused

    def _set_counters(self, a: int, z: int) -> None:
        for name, value in zip(COUNTERS, (a, z), strict=True):
            self.model.items[name].written(b"%08d" % value)

    def _remember(self, touched: frozenset[str] | set[str]) -> None:
        view = self.model.view()
        for name in COUNTERS:
            del view[name]
        self.steps[self.number] = Step(view, frozenset(touched))

    def verify(self) -> list[str]:
        """What the folder shows against what was acknowledged; the operation that was under way is
        settled as it is found, and the next one may begin."""
        under_way, refused = self.follow()
        if under_way is None:
            return [f"{self.name}/{line}" for line in self.model.compare(self.root)]
        lines = self._settle(under_way, refused)
        return [f"{self.name}/{line} (under way: {under_way})" for line in lines]

    def _settle(self, operation: Operation, refused: int | None) -> list[str]:
        begun = self.number + 1
        lines = []
        values = {}
        for name in COUNTERS:
            text = Path(self.root, name).read_bytes()
            values[name] = int(text) if len(text) == 8 and text.isdigit() else -1
            if values[name] not in (begun - 1, begun):
                lines.append(f"{name}: {text!r} instead of {begun - 1} or {begun}")
        before = self.model
        before.forget_times(operation)
        after = before.copy()
        after.apply(operation)
        touched = before.touched(operation) | after.touched(operation)
        others = before.compare(self.root, touched | set(COUNTERS))
        lines += others
        as_before = before.compare(self.root, set(COUNTERS))
        as_after = after.compare(self.root, set(COUNTERS))
        if as_before and as_after:
            if operation[0] in _WHOLE or values["z"] == begun or values["a"] < begun:
                lines += [f"half done: {line}" for line in as_after]
            else:
                lines += implausible(before, after, self.root, touched)
        elif values["z"] == begun and as_after:
            lines.append(f"operation {begun} was followed by its counter and is not there")
        elif values["a"] < begun and as_before:
            lines.append(f"operation {begun} is there and its counter before it is not")
        if refused is not None and operation[0] in _WHOLE:
            if refused < 2 and as_before:
                lines.append(f"operation {begun} was refused and is there: {as_before[:3]}")
            if refused == 2 and as_after:
                lines.append(f"operation {begun} was acknowledged and is not there: {as_after[:3]}")
        if not as_after:
            self.model = after
        elif as_before:
            self.model.adopt(self.root, touched)
        self.number = begun
        for name in COUNTERS:
            if not lines:
                self._count(name, begun)
        self._set_counters(begun, begun)
        self._remember(touched)
        return lines


_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
"""The daemon died, and nobody said no; EIO is what close(2) makes of pages that found nobody."""
_WHOLE = {
    "rename", "exchange", "link", "unlink", "mkdir", "rmdir", "symlink", "chmod", "chown", "utime",
    "setxattr", "removexattr", "truncate", "fsync",
}  # fmt: skip
"""One system call: it happened, or it did not."""


def _payload(operation: Operation) -> int:
    kind = operation[0]
    place = {"write": 3, "append": 3, "save": 4, "patch": 4}.get(kind)
    return 0 if place is None else int(operation[place])
