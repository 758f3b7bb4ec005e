"""The table of settings: each one's name, how its value is read, and how it is explained.

The parser, the help, the example and docs/configuration.md follow `OPTIONS`. A value's parser takes what a
place holds (a str from -o and the environment, TOML's own types from a file) and returns the value, or
raises ValueError whose text says what is allowed.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from caiafs.config.address import HttpAddress, parse_http
from caiafs.config.units import MIB, format_bytes, format_seconds, parse_bytes, parse_seconds

# -- values ---------------------------------------------------------------------------------------

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def flag(raw: object) -> bool:
    """Read a switch."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in _TRUE + _FALSE:
        return raw.lower() in _TRUE
    raise ValueError("true or false")


def _text(raw: object) -> str:
    # Undecodable bytes arrive as surrogate escapes and are fine: file names may hold any byte.
    if not isinstance(raw, str) or not raw or any(ord(char) < 32 or ord(char) == 127 for char in raw):
        raise ValueError("a text without control characters")
    return raw


def choice(*allowed: str) -> Callable[[object], str]:
    """A parser of one of these words, in whatever case."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or raw.lower() not in allowed:
            near = nearest(raw, allowed, 0.5) if isinstance(raw, str) else None
            raise ValueError(f"one of {', '.join(allowed)}" + (f"; did you mean {near!r}?" if near else ""))
        return raw.lower()

    return parse


def _number(raw: object, parse: Callable[[str], Any], allowed: str) -> Any:
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise ValueError(allowed)
    try:
        value = parse(raw) if isinstance(raw, str) else raw
    except ValueError:
        raise ValueError(allowed) from None
    if not math.isfinite(value):
        raise ValueError(allowed)
    return value


def _size(least: int) -> Callable[[object], int]:
    allowed = f"at least {format_bytes(least)}, such as 65536k, 256MiB or 1g; a plain number counts bytes"

    def parse(raw: object) -> int:
        value = int(_number(raw, parse_bytes, allowed))
        if value < least:
            raise ValueError(allowed)
        return value

    return parse


def _seconds(least: float, most: float) -> Callable[[object], float]:
    allowed = (
        f"from {format_seconds(least)} to {format_seconds(most)}, such as 500ms, 5s or 1m; "
        f"a plain number counts seconds"
    )

    def parse(raw: object) -> float:
        value = float(_number(raw, parse_seconds, allowed))
        if not least <= value <= most:
            raise ValueError(allowed)
        return value

    return parse


_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^/|/$|^-|(?:^|/)\.|\.lock(?:/|$)|\.$")

_REF_PART_MAX = 255 - len(".lock")


def _branch(raw: object) -> str:
    """Follow git-check-ref-format(1); refs/heads/ in front is taken off."""
    name = raw.removeprefix("refs/heads/") if isinstance(raw, str) else ""
    if not name or name in ("@", "HEAD") or _BAD_REF.search(name):
        raise ValueError(
            "a branch name as git takes it (see git check-ref-format), such as main or work/notes"
        )
    if max(len(os.fsencode(part)) for part in name.split("/")) > _REF_PART_MAX:
        raise ValueError(f"at most {_REF_PART_MAX} bytes between two slashes: git's lock of it is a file")
    return name


def _author(raw: object) -> str:
    # As strict as store/objects.py, which writes it: what a commit would refuse later is refused here.
    if not isinstance(raw, str) or not re.fullmatch(r"[^<>\x00\n]*[^<>\x00\n\s] <[^<>\x00\n]*>", raw):
        raise ValueError('"Name <mail>", such as "Ada Lovelace <ada@example.org>"')
    return raw


def _http(raw: object) -> str:
    return str(parse_http(_text(raw)))


def port(raw: object) -> str:
    """Read a port of 127.0.0.1, as the address of HTTP."""
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9]{1,5}", raw) or not 0 < int(raw) < 65536:
        raise ValueError(
            "a port from 1 to 65535, on which http://127.0.0.1 is served; unset it to serve none"
        )
    return str(HttpAddress("127.0.0.1", int(raw)))


FIELD = {"fsname": "source"}
"""Options whose field in Config has another name: fsname is what every FUSE filesystem calls it."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how its value is read and how it is explained."""

    name: str
    parse: Callable[[object], object]
    metavar: str
    """How a value is written: "" for a switch, TIME and SIZE in units, words with | to choose from."""
    help: str
    example: str = ""
    """A value to show where there is no default."""

    @property
    def field(self) -> str:
        """The name of the field in Config."""
        return FIELD.get(self.name, self.name)

    @property
    def is_switch(self) -> bool:
        """Whether the name alone turns it on."""
        return self.metavar in ("", "BOOL")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words to choose from; empty where a value is free."""
        if self.is_switch:
            return ("true", "false")
        words = tuple(self.metavar.split("|"))
        return words if len(words) > 1 and self.metavar.islower() else ()

    @property
    def allowed(self) -> str:
        """What a value may be, in words: what a wrong one is answered with."""
        try:
            self.parse(None)
        except ValueError as problem:
            return str(problem)
        raise AssertionError(f"{self.name} takes a value that is none")


OPTIONS: tuple[Option, ...] = (
    Option(
        "branch", _branch, "NAME", "the branch to mount; default: the one the repository's HEAD names", "main"
    ),
    Option("init", flag, "", "create REPO as a bare repository if it does not exist"),
    Option("ro", flag, "", "mount read-only"),
    Option("primary", choice("memory", "git"), "memory|git", "the tier that acknowledges a change"),
    Option("enable_fallback", flag, "BOOL", "use the other tier while the primary one fails"),
    Option("operation_timeout", _seconds(0.01, 3600), "TIME", "how long one call may wait for a tier"),
    Option(
        "retry_pause", _seconds(0.001, 60), "TIME", "the first pause before a tier that failed is tried again"
    ),
    Option("retry_ceiling", _seconds(0.01, 3600), "TIME", "the longest pause between tries"),
    Option(
        "worker_timeout", _seconds(1, 3600), "TIME", "a commit worker that is silent for so long is replaced"
    ),
    Option("commit_quiet", _seconds(0, 3600), "TIME", "commit after this long without a change"),
    Option("commit_interval", _seconds(0, 86400), "TIME", "commit at the latest this long after a change"),
    Option("memory", _size(MIB), "SIZE", "the memory budget for file contents and metadata"),
    Option("journal_max", _size(MIB), "SIZE", "the most the journal may take on disk"),
    Option("file_max", _size(MIB), "SIZE", "how large a file can become, holes included"),
    Option(
        "state_dir",
        _text,
        "DIR",
        "where journal, lock and socket live; default: in the git directory",
        "/var/lib/caiafs/site",
    ),
    Option(
        "author",
        _author,
        "'NAME <MAIL>'",
        "who the commits are by; default: git's user.name and user.email",
        "Site <site@example.org>",
    ),
    Option(
        "http",
        _http,
        "ADDR:PORT|unix:PATH",
        "serve figures, health and a status page there",
        "127.0.0.1:8080",
    ),
    Option(
        "http_token_file",
        _text,
        "FILE",
        "the token that HTTP asks for; made when missing; default: http-token in state_dir",
        "/etc/caiafs/site.token",
    ),
    Option("spin", _seconds(0, 0.01), "TIME", "how long to look for the next request before sleeping"),
    Option("virtual", choice("hidden", "visible"), "hidden|visible", "whether listings show .stats"),
    Option("allow_other", flag, "", "let other users in (needs user_allow_other in /etc/fuse.conf)"),
    Option("fsname", _text, "NAME", "the name shown as the mount's source; default: REPO", "site"),
    Option(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "how much is logged",
    ),
)
BY_NAME = {option.name: option for option in OPTIONS}
PATHS = {
    "repo": Option("repo", _text, "REPO", "the repository"),
    "mountpoint": Option("mountpoint", _text, "MOUNTPOINT", "where it is mounted"),
}


# -- for people ---------------------------------------------------------------------------------


def show_value(name: str, value: object) -> str:
    """One value of Config for people: 256 MiB, 30 s, true; "" where nothing is set."""
    option = next((each for each in OPTIONS if name in (each.name, each.field)), None)
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(str(each) for each in value)
    if option is not None and isinstance(value, (int, float)):
        if option.metavar == "SIZE":
            return format_bytes(value)
        if option.metavar == "TIME":
            return format_seconds(value)
    return str(value)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The word that *name* was probably meant to be."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown word: the nearest right one, or all of them."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else f"; known are: {', '.join(sorted(known))}"
