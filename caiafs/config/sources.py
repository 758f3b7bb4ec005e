"""The places that settings are written in, read one over the other; and what is wrong with a file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from caiafs.config.options import BY_NAME, FIELD, PATHS, Option, choice, nearest, port, suggest
from caiafs.config.words import HANDED_ON, IGNORED, IMPLIED, KERNEL, OPPOSITE
from caiafs.errors import UsageError

# Names of an older program: "govc" was its word for the memory tier.
LEGACY = {
    "PRIMARY_BACKEND": Option(
        "primary",
        lambda raw: choice("memory", "git", "govc")(raw).replace("govc", "memory"),
        "memory|git",
        "",
    ),
    "CAIA_REPO_PATH": PATHS["repo"],
    "GOVC_REPO_NAME": BY_NAME["fsname"],
    "PORT": Option("http", port, "PORT", ""),
}


_IN_FILES = BY_NAME | PATHS
_PATH_LIKE = ("repo", "mountpoint", "state_dir", "http_token_file")


class Loader:
    """Collects values; a later call overrides an earlier one, so callers go from lowest to highest.

    Every call raises UsageError for what cannot be meant.
    """

    def __init__(self, sloppy: bool) -> None:
        self._sloppy = sloppy
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._notes: list[str] = []
        self._kernel: list[str] = []

    def legacy_environment(self, environ: Mapping[str, str]) -> None:
        for variable, option in LEGACY.items():
            if raw := environ.get(variable):
                self._set(option, raw, f"environment {variable}", variable)

    def environment(self, environ: Mapping[str, str]) -> None:
        for variable, raw in sorted(environ.items()):
            if not variable.startswith("CAIAFS_") or raw == "":
                continue
            name = variable.removeprefix("CAIAFS_").lower()
            if name in BY_NAME:
                self._set(BY_NAME[name], raw, f"environment {variable}", variable)
            elif near := nearest(name, BY_NAME):
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
            elif name in BY_NAME:
                self._mount_option(BY_NAME[name], value)
            elif name == "remount":
                raise UsageError(
                    "remount is for a mount that is there already: `mount -o remount,ro MOUNTPOINT` "
                    "(as root, with mount.fuse.caiafs in /sbin: `caiafs install-units` puts it there)"
                )
            elif name in HANDED_ON or name in KERNEL:
                self._kernel_option(name)
            elif name in IGNORED or name.lower().startswith(("x-", "comment=")):
                for implied in IMPLIED.get(name, ()):
                    self._kernel_option(implied)
            elif self._sloppy:
                self._notes.append(f"-o {name} is unknown and is ignored (-s).")
            else:
                raise UsageError(f"-o {name}: unknown option{suggest(name, BY_NAME)}")

    def argument(self, name: str, value: str | None) -> None:
        if value:
            self._set(PATHS[name], value, "command line", name.upper())

    def finish(self) -> dict[str, Any]:
        """The fields of a Config, with their origins; paths are absolute."""
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
        return {**self._values, "origins": self._origins, "notes": tuple(self._notes)}

    def _mount_option(self, option: Option, value: str | None) -> None:
        if value is None:
            if option.metavar and option.metavar != "BOOL":
                raise UsageError(f"-o {option.name} needs a value: -o {option.name}={option.metavar}")
            value = "true"
        self._set(option, value, "-o", f"-o {option.name}")

    def _kernel_option(self, name: str) -> None:
        opposite = OPPOSITE.get(name)
        self._kernel = [each for each in self._kernel if each not in (name, opposite)]
        if name in HANDED_ON:
            self._kernel.append(name)

    def _set(self, option: Option, raw: object, origin: str, shown: str) -> None:
        try:
            value = option.parse(raw)
        except ValueError as problem:
            raise _bad(shown, raw, str(problem)) from None
        self._put(option.name, value, origin)

    def _put(self, name: str, value: object, origin: str) -> None:
        name = FIELD.get(name, name)
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
            Loader(sloppy=False).toml_setting(absolute, name, raw)
        except UsageError as problem:
            start = re.compile(rf"""\s*\[*\s*["']?{re.escape(name)}["']?\s*[]=.]""")
            number = next((number for number, line in enumerate(lines, 1) if start.match(line)), 1)
            found.append(f"{path}:{number}: {problem}")
    return found


def settings_in(path: str) -> list[str]:
    """The names that a TOML file sets, right or wrong, in its order."""
    return list(_read_toml(os.path.abspath(os.path.expanduser(path))))


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
