"""Settings: what is in force, and where each value came from.

One frozen `Config` is made at the start and handed to everything else; nothing reads
the environment or a settings file after that. A setting has the same name wherever it
is written, and the first of these that has it wins:

    -o name=value      the command line, fstab
    name = value       a TOML file (-o config=FILE, or --config FILE)
    CAIAFS_NAME=value  the environment
    PRIMARY_BACKEND, CAIA_REPO_PATH, GOVC_REPO_NAME, PORT: names of an older program, still honoured

Everything is validated here, at once, so that a wrong word fails the mount before it
starts instead of the write that first needs it. `OPTIONS` is the single list of settings:
the parser, the help text and docs/configuration.md follow it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from caiafs.config.address import HttpAddress, parse_http
from caiafs.config.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)
from caiafs.errors import UsageError

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "OPTIONS",
    "Config",
    "HttpAddress",
    "Option",
    "check_file",
    "format_bytes",
    "format_seconds",
    "parse_bytes",
    "parse_http",
    "parse_seconds",
    "show_value",
    "split_options",
    "state_directory",
    "suggest",
]


@dataclass(frozen=True, slots=True)
class Config:
    """What is in force for one mount. Sizes are bytes, durations are seconds."""

    repo: str
    mountpoint: str
    source: str = ""
    """The name shown as the mount's source in df, findmnt and /proc/self/mountinfo; "" stands for `repo`."""
    branch: str | None = None
    """None: the branch that the repository's HEAD names. May hold surrogate escapes: use `os.fsencode`."""
    init: bool = False
    ro: bool = False
    primary: str = "memory"
    enable_fallback: bool = True
    operation_timeout: float = 5.0
    retry_pause: float = 0.2
    retry_ceiling: float = 30.0
    worker_timeout: float = 60.0
    commit_quiet: float = 1.0
    commit_interval: float = 30.0
    memory: int = 256 * MIB
    journal_max: int = 4 * GIB
    file_max: int = 64 * GIB
    """How large a file can become: git has no holes, so a commit writes every byte of it."""
    state_dir: str | None = None
    """None: `caiafs/<branch>` in the git directory, see `state_directory`."""
    author: str | None = None
    """ "Name <mail>"; None: git's own user.name and user.email, then user@host."""
    http: str | None = None
    """Where HTTP is served, as parse_http() reads it; None: nowhere."""
    http_token_file: str | None = None
    """None: the file `http-token` in the state directory."""
    spin: float = 0.0001
    """How long the daemon looks for the next request before it sleeps; 0 leaves that to pyfuse3."""
    virtual: str = "hidden"
    allow_other: bool = False
    log_level: str = "info"
    kernel_options: tuple[str, ...] = ()
    """Options of mount(8) that the kernel's side of FUSE acts on, ready for fuse's own -o."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Things that were accepted but ignored, one sentence each: for the log at start."""
    given: Given | None = field(default=None, compare=False, repr=False)
    """Where all of this came from, so that a running mount can look again."""

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", self.repo)

    @classmethod
    def load(
        cls,
        repo: str | None,
        mountpoint: str | None,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        file: str | None = None,
        *,
        sloppy: bool = False,
    ) -> Config:
        """Gather the settings from every place; raise UsageError for the first that cannot be meant.

        *options* are the values of `-o`, each possibly a comma-separated list. *repo* and
        *mountpoint* may be None when the file or the environment names them; both end up
        absolute, since the daemon changes its directory. *sloppy* (mount(8) -s) turns unknown
        words of `-o` into notes.
        """
        words = list(split_options(options))
        file = _one_file(words, file)
        words = [word for word in words if word[0] != "config"]
        if file is not None:
            file = os.path.expanduser(file)
        paths = [os.path.abspath(path) if path else None for path in (repo, mountpoint, file)]
        ours = {
            name: text
            for name, text in (environ or {}).items()
            if name.startswith("CAIAFS_") or name in (*_LEGACY, "PORT")
        }
        return Given(paths[0], paths[1], paths[2], words, ours, sloppy).gather()

    def describe(self) -> dict[str, dict[str, object]]:
        """Every setting as {"value": …, "origin": …}, ready for JSON; it holds nothing secret."""
        described: dict[str, dict[str, object]] = {}
        for each in fields(self):
            if each.name in ("origins", "notes", "given"):
                continue
            value = getattr(self, each.name)
            described[each.name] = {
                "value": list(value) if isinstance(value, tuple) else value,
                "origin": self.origins.get(each.name, "default"),
            }
        return described

    def with_(self, **changes: Any) -> Config:
        """A copy with some values replaced: for tests and for what only the mount finds out."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Given:
    """The places that settings come from. Paths are absolute: a daemon changes its directory."""

    repo: str | None
    mountpoint: str | None
    file: str | None
    words: Sequence[tuple[str, str | None]]
    environ: Mapping[str, str]
    sloppy: bool = False

    def gather(self) -> Config:
        """The settings as these places have them now. Raises UsageError."""
        loader = _Loader(self.sloppy)
        loader.legacy_environment(self.environ)
        loader.environment(self.environ)
        if self.file is not None:
            loader.toml(self.file)
        loader.mount_options(self.words)
        loader.argument("repo", self.repo)
        loader.argument("mountpoint", self.mountpoint)
        return replace(loader.finish(), given=self)


def state_directory(git_dir: str, branch: bytes | str, state_dir: str | None = None) -> str:
    """Where the journal, the lock and the control socket of one mounted branch live.

    *state_dir* is used as given. Otherwise it is one directory per branch in *git_dir*; '/' is
    written as %2F, since the state of `a/b` would else lie inside the state of `a`. A name too
    long for one directory entry ends in its hash instead.
    """
    if state_dir is not None:
        return state_dir
    name = os.fsencode(branch) if isinstance(branch, str) else branch
    quoted = name.replace(b"%", b"%25").replace(b"/", b"%2F")
    if len(quoted) > 200:
        quoted = quoted[:160] + b"%" + hashlib.sha256(name).hexdigest()[:32].encode()
    return os.path.join(git_dir, "caiafs", os.fsdecode(quoted))


# -- values ---------------------------------------------------------------------------------------
#
# A parser takes what a place holds (a str from -o and the environment, TOML's own types from a file)
# and returns the value, or raises ValueError whose text says what is allowed.


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _flag(raw: object) -> bool:
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


def _choice(*allowed: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if not isinstance(raw, str) or raw.lower() not in allowed:
            near = _near(raw, allowed, 0.5) if isinstance(raw, str) else None
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


def _branch(raw: object) -> str:
    """Follow git-check-ref-format(1); refs/heads/ in front is taken off."""
    name = raw.removeprefix("refs/heads/") if isinstance(raw, str) else ""
    if not name or name in ("@", "HEAD") or _BAD_REF.search(name):
        raise ValueError(
            "a branch name as git takes it (see git check-ref-format), such as main or work/notes"
        )
    return name


def _author(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch(
        r"[^<>\x00\n]*[^<>\x00\n\s][^<>\x00\n]* <[^<>\x00\n]*>", raw
    ):
        raise ValueError('"Name <mail>", such as "Ada Lovelace <ada@example.org>"')
    return raw


def _http(raw: object) -> str:
    return str(parse_http(_text(raw)))


def _port(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9]{1,5}", raw) or not 0 < int(raw) < 65536:
        raise ValueError(
            "a port from 1 to 65535, on which http://127.0.0.1 is served; unset it to serve none"
        )
    return str(HttpAddress("127.0.0.1", int(raw)))


_FIELD = {"fsname": "source"}
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
        return _FIELD.get(self.name, self.name)

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
    Option("init", _flag, "", "create REPO as a bare repository if it does not exist"),
    Option("ro", _flag, "", "mount read-only"),
    Option("primary", _choice("memory", "git"), "memory|git", "the tier that acknowledges a change"),
    Option("enable_fallback", _flag, "BOOL", "use the other tier while the primary one fails"),
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
    Option("virtual", _choice("hidden", "visible"), "hidden|visible", "whether listings show .stats"),
    Option("allow_other", _flag, "", "let other users in (needs user_allow_other in /etc/fuse.conf)"),
    Option("fsname", _text, "NAME", "the name shown as the mount's source; default: REPO", "site"),
    Option(
        "log_level",
        _choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "how much is logged",
    ),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_PATHS = {
    "repo": Option("repo", _text, "REPO", "the repository"),
    "mountpoint": Option("mountpoint", _text, "MOUNTPOINT", "where it is mounted"),
}

# -- the words of -o ------------------------------------------------------------------------------

# What mount(8) calls filesystem-independent options. The first group means something to FUSE and is
# handed on (each with its opposite: the later word wins); the second belongs to mount(8), fstab and
# systemd, and reaches a helper only because they pass the whole list on.
_KERNEL = {
    "dev": "nodev", "suid": "nosuid", "exec": "noexec", "atime": "noatime", "async": "sync",
    "diratime": "nodiratime",
}  # fmt: skip
_OPPOSITE = _KERNEL | {no: yes for yes, no in _KERNEL.items()}
_HANDED_ON = {"dev", "nodev", "suid", "nosuid", "exec", "noexec", "noatime", "nodiratime", "sync", "dirsync"}
_IMPLIED = {
    "user": ("noexec", "nosuid", "nodev"), "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"), "group": ("nosuid", "nodev"),
}  # fmt: skip
_IGNORED = {
    "defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "nouser", "users", "nousers",
    "owner", "noowner", "group", "nogroup", "relatime", "norelatime", "strictatime", "nostrictatime",
    "lazytime", "nolazytime", "silent", "loud", "iversion", "noiversion", "mand", "nomand",
    "symfollow", "comment", "uhelper", "helper", "default_permissions",
}  # fmt: skip


_OF_FUSE = {"user_id", "group_id", "rootmode", "fd", "max_read", "blksize", "subtype", "default_permissions"}
"""What the kernel says of a FUSE mount in /proc/self/mountinfo: mount(8) hands it back on a remount."""


def split_options(options: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    r"""Take apart the values of `-o`: (name, value or None) for each word, in order.

    A comma that belongs to a value is written `\,` (as libfuse reads it), or the value is put in
    double quotes (as mount(8) reads it).
    """
    for text in options:
        word, quoted, escaped = "", False, False
        for char in text + ",":
            if escaped:
                word, escaped = word + char, False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = not quoted
            elif char == "," and not quoted:
                name, equals, value = word.partition("=")
                if word:
                    yield name.strip(), value if equals else None
                word = ""
            else:
                word += char
        if word or quoted or escaped:
            raise UsageError(f"-o {text}: a quotation mark or a backslash is left open at the end")


def _one_file(words: Iterable[tuple[str, str | None]], file: str | None) -> str | None:
    for name, value in words:
        if name == "config":
            if not value:
                raise UsageError("-o config needs the path of a TOML file: -o config=FILE")
            if file is not None and os.path.abspath(value) != os.path.abspath(file):
                raise UsageError(f"two configuration files are named, {file} and {value}: give one")
            file = value
    return file


@dataclass(frozen=True, slots=True)
class Remount:
    """What `-o remount,…` asks for."""

    ro: bool | None
    """True, False, or None where neither ro nor rw is said."""
    kernel: tuple[str, ...]
    """nosuid, suid, …, in order: the later word wins."""
    settings: tuple[tuple[str, str | None], ...]
    """Settings of ours, as they were written."""


def split_remount(options: Iterable[str]) -> Remount:
    """Take apart the values of `-o` of a remount. Raises UsageError for words that nobody knows."""
    ro, kernel, settings = None, [], []
    for name, value in split_options(options):
        if name in ("ro", "rw"):
            ro = (name == "ro") == (value is None or _flag(value))
        elif name in _KERNEL or name in _HANDED_ON or name in ("relatime", "strictatime"):
            kernel.append(name)
        elif name in _BY_NAME:
            settings.append((name, value))
        elif not (name in _IGNORED or name in _OF_FUSE or name == "remount" or name.startswith(("x-", "X-"))):
            raise UsageError(f"-o {name}: unknown option{suggest(name, _BY_NAME)}")
    return Remount(ro, tuple(kernel), tuple(settings))


# -- loading --------------------------------------------------------------------------------------

# Names of an older program: "govc" was its word for the memory tier.
_LEGACY = {
    "PRIMARY_BACKEND": Option(
        "primary",
        lambda raw: _choice("memory", "git", "govc")(raw).replace("govc", "memory"),
        "memory|git",
        "",
    ),
    "CAIA_REPO_PATH": _PATHS["repo"],
    "GOVC_REPO_NAME": _BY_NAME["fsname"],
    "PORT": Option("http", _port, "PORT", ""),
}


_IN_FILES = _BY_NAME | _PATHS
_PATH_LIKE = ("repo", "mountpoint", "state_dir", "http_token_file")


class _Loader:
    """Collects values; a later call overrides an earlier one, so callers go from lowest to highest."""

    def __init__(self, sloppy: bool) -> None:
        self._sloppy = sloppy
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._notes: list[str] = []
        self._kernel: list[str] = []

    def legacy_environment(self, environ: Mapping[str, str]) -> None:
        for variable, option in _LEGACY.items():
            if raw := environ.get(variable):
                self._set(option, raw, f"environment {variable}", variable)

    def environment(self, environ: Mapping[str, str]) -> None:
        for variable, raw in sorted(environ.items()):
            if not variable.startswith("CAIAFS_") or raw == "":
                continue
            name = variable.removeprefix("CAIAFS_").lower()
            if name in _BY_NAME:
                self._set(_BY_NAME[name], raw, f"environment {variable}", variable)
            elif near := _near(name, _BY_NAME):
                raise UsageError(
                    f"{variable} in the environment is no setting; did you mean CAIAFS_{near.upper()}?"
                )
            else:
                # Nothing like any setting: the environment is shared, so it may be someone else's.
                self._notes.append(f"{variable} in the environment is no setting and is ignored.")

    def toml(self, path: str) -> None:
        path = os.path.abspath(os.path.expanduser(path))
        for name, raw in _read_toml(path).items():
            try:
                self.toml_setting(path, name, raw)
            except UsageError as problem:
                raise UsageError(f"{path}: {problem}") from None

    def toml_setting(self, path: str, name: str, raw: object) -> None:
        if name not in _IN_FILES:
            section = "; settings stand at the top, in no [section]" if isinstance(raw, dict) else ""
            raise UsageError(f"unknown setting {name!r}{suggest(name, _IN_FILES)}{section}")
        if name == "http" and isinstance(raw, str) and raw.startswith("unix:"):
            beside = os.path.expanduser(raw.removeprefix("unix:"))
            raw = f"unix:{os.path.join(os.path.dirname(path), beside)}" if beside else raw
        self._set(_IN_FILES[name], raw, f"file {path}", name)
        if name in _PATH_LIKE:
            # A daemon's working directory is nobody's business: relative means beside the file.
            field = _IN_FILES[name].field
            self._values[field] = os.path.join(os.path.dirname(path), os.path.expanduser(self._values[field]))

    def mount_options(self, words: Iterable[tuple[str, str | None]]) -> None:
        for name, value in words:
            if name == "config":
                continue
            if name == "rw" and value is None:
                self._put("ro", False, "-o")
            elif name in _BY_NAME:
                self._mount_option(_BY_NAME[name], value)
            elif name == "remount":
                raise UsageError(
                    "remount is for a mount that is there already: `mount -o remount,ro MOUNTPOINT` "
                    "(as root, with mount.fuse.caiafs in /sbin: `caiafs install-units` puts it there)"
                )
            elif name in _HANDED_ON or name in _KERNEL:
                self._kernel_option(name)
            elif name in _IGNORED or name.lower().startswith(("x-", "comment=")):
                for implied in _IMPLIED.get(name, ()):
                    self._kernel_option(implied)
            elif self._sloppy:
                self._notes.append(f"-o {name} is unknown and is ignored (-s).")
            else:
                raise UsageError(f"-o {name}: unknown option{suggest(name, _BY_NAME)}")

    def argument(self, name: str, value: str | None) -> None:
        if value:
            self._set(_PATHS[name], value, "command line", name.upper())

    def finish(self) -> Config:
        if not self._values.get("repo"):
            raise UsageError("no repository is named: give REPO, or set CAIA_REPO_PATH")
        if not self._values.get("mountpoint"):
            raise UsageError("no mountpoint is named: give MOUNTPOINT")
        self._values["repo"] = os.path.abspath(self._values["repo"])
        self._values["mountpoint"] = os.path.abspath(self._values["mountpoint"])
        for name in ("state_dir", "http_token_file"):
            if path := self._values.get(name):
                self._values[name] = os.path.abspath(os.path.expanduser(path))
        read_only = ["ro"] if self._values.get("ro") else []
        if read_only or self._kernel:
            origin = "-o" if self._kernel else self._origins["ro"]
            self._put("kernel_options", (*read_only, *self._kernel), origin)
        if "source" not in self._values:
            self._origins["source"] = self._origins["repo"]
        return Config(**self._values, origins=self._origins, notes=tuple(self._notes))

    def _mount_option(self, option: Option, value: str | None) -> None:
        if value is None:
            if option.metavar and option.metavar != "BOOL":
                raise UsageError(f"-o {option.name} needs a value: -o {option.name}={option.metavar}")
            value = "true"
        self._set(option, value, "-o", f"-o {option.name}")

    def _kernel_option(self, name: str) -> None:
        opposite = _OPPOSITE.get(name)
        self._kernel = [each for each in self._kernel if each not in (name, opposite)]
        if name in _HANDED_ON:
            self._kernel.append(name)

    def _set(self, option: Option, raw: object, origin: str, shown: str) -> None:
        try:
            value = option.parse(raw)
        except ValueError as problem:
            raise _bad(shown, raw, str(problem)) from None
        self._put(option.name, value, origin)

    def _put(self, name: str, value: object, origin: str) -> None:
        name = _FIELD.get(name, name)
        self._values[name], self._origins[name] = value, origin


def check_file(path: str) -> list[str]:
    """Everything that is wrong with a TOML file, each as FILE:LINE: what and the way out; [] if it is good.

    Raises UsageError where the file cannot be read or is no TOML at all.
    """
    absolute = os.path.abspath(os.path.expanduser(path))
    table = _read_toml(absolute)
    with open(absolute, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    found = []
    for name, raw in table.items():
        try:
            _Loader(sloppy=False).toml_setting(absolute, name, raw)
        except UsageError as problem:
            start = re.compile(rf"""\s*\[*\s*["']?{re.escape(name)}["']?\s*[]=.]""")
            number = next((number for number, line in enumerate(lines, 1) if start.match(line)), 1)
            found.append(f"{path}:{number}: {problem}")
    return found


def settings_in(path: str) -> list[str]:
    """The names that a TOML file sets, right or wrong, in its order."""
    return list(_read_toml(os.path.abspath(os.path.expanduser(path))))


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


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except OSError as problem:
        raise UsageError(f"cannot read the configuration file {path}: {problem.strerror}") from None
    except ValueError as problem:  # TOML, UTF-8, or a NUL in the path
        raise UsageError(f"{path} is not valid TOML: {problem}") from None


def _bad(name: str, raw: object, allowed: str) -> UsageError:
    return UsageError(f"{name} = {raw!r} cannot be used; allowed: {allowed}")


def _near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown word: the nearest right one, or all of them."""
    near = _near(name, known)
    return f"; did you mean {near!r}?" if near else f"; known are: {', '.join(sorted(known))}"
