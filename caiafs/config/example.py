"""The example of a settings file: every option, explained, with its default commented out.

Made from `OPTIONS`, so that it cannot fall behind. `caiafs config example` prints it, and
systemd/caiafs.toml.example is the same text, which a test keeps true.
"""

from __future__ import annotations

import json
import textwrap

from caiafs.config import OPTIONS, Config, Option, show_value

_HEAD = """\
# The settings of one caiafs mount.
#
#     caiafs config check FILE        says whether a file is good, and what is wrong with it
#     caiafs mount --config FILE      mounts what the file says
#     caiafs config show MOUNTPOINT   shows what is in force, and where each value came from
#
# Every setting is here with its default, behind a #: take the # away from what you change.
# Sizes are 64k, 256MiB, 1.5g; times are 500ms, 5s, 1m, 2h, 1d. Relative paths begin at the folder
# of this file, and ~ is the home directory. The same words go after -o, which wins over the file, and
# into the environment as CAIAFS_COMMIT_QUIET and so on, where the file wins.

# What is mounted: a bare or an ordinary git repository on this machine.
#repo = "/srv/site.git"

# Where: an empty directory.
#mountpoint = "/srv/site"
"""


def render() -> str:
    """The whole file."""
    return _HEAD + "".join(f"\n{_entry(option)}" for option in OPTIONS)


def toml_value(option: Option) -> str:
    """The default of *option* as TOML has it, or its example where there is no default."""
    value = getattr(Config("", ""), option.field)
    if value is None or value == "":
        return json.dumps(option.example or option.metavar)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    short = show_value(option.name, value).replace(" ", "").replace("µ", "u")
    return json.dumps(short) if _reads_back(option, short, value) else str(value)


def _reads_back(option: Option, text: str, value: object) -> bool:
    try:
        return option.parse(text) == value
    except ValueError:
        return False


def _entry(option: Option) -> str:
    said = option.help[0].upper() + option.help[1:]
    allowed = ""
    if option.choices or option.metavar in ("SIZE", "TIME"):
        allowed = f" Allowed: {', '.join(option.choices) or option.allowed.partition(', such as')[0]}."
    text = textwrap.fill(
        f"{said}.{allowed}", 108, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    return f"{text}\n#{option.name} = {toml_value(option)}\n"
