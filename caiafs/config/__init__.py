"""Settings: what is in force, and where each value came from.

One frozen `Config` is made at the start and handed to everything else; nothing reads
the environment or a settings file after that. A setting has the same name wherever it
is written, and the first of these that has it wins:

    -o name=value      the command line, fstab
    name = value       a TOML file (-o config=FILE, or --config FILE)
    CAIAFS_NAME=value  the environment
    PRIMARY_BACKEND, CAIA_REPO_PATH, GOVC_REPO_NAME, PORT: names of an older program, still honoured

Everything is validated here, at once, so that a wrong word fails the mount before it
starts instead of the write that first needs it.

    options   the single list of settings, and how each value is read
    words     what else stands after -o: the words of mount(8)
    sources   the places above, read one over the other
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from caiafs.config.address import HttpAddress, parse_http
from caiafs.config.options import OPTIONS, Option, show_value, suggest
from caiafs.config.sources import LEGACY, Loader, check_file, settings_in
from caiafs.config.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)
from caiafs.config.words import Remount, file_named, split_options, split_remount

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "OPTIONS",
    "Config",
    "HttpAddress",
    "Option",
    "Remount",
    "check_file",
    "format_bytes",
    "format_seconds",
    "parse_bytes",
    "parse_http",
    "parse_seconds",
    "settings_in",
    "show_value",
    "split_options",
    "split_remount",
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
        file = file_named(words, file)
        words = [word for word in words if word[0] != "config"]
        if file is not None:
            file = os.path.expanduser(file)
        paths = [os.path.abspath(path) if path else None for path in (repo, mountpoint, file)]
        ours = {
            name: text
            for name, text in (environ or {}).items()
            if name.startswith("CAIAFS_") or name in LEGACY
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
        loader = Loader(self.sloppy)
        loader.legacy_environment(self.environ)
        loader.environment(self.environ)
        if self.file is not None:
            loader.toml(self.file)
        loader.mount_options(self.words)
        loader.argument("repo", self.repo)
        loader.argument("mountpoint", self.mountpoint)
        return Config(**loader.finish(), given=self)


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
