"""`caiafs config`: is a file good, what is in force in a mount, and an example to begin with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from caiafs.config import OPTIONS, check_file, settings_in, show_value

IN_FORCE = ("branch", "state_dir")
"""Settings whose value is found out by the mount where nobody gives one."""


def run(arguments: argparse.Namespace) -> int:
    """One of the subcommands, as the parser has read it."""
    return {"check": check, "show": show, "example": example}[arguments.action](arguments)


def check(arguments: argparse.Namespace) -> int:
    """`caiafs config check FILE…`: everything that is wrong, a line each; 2 if anything is."""
    wrong = 0
    for file in arguments.files:
        problems = check_file(file)
        wrong += len(problems)
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            names = settings_in(file)
            print(f"{file}: good" + (f"; it sets {', '.join(names)}" if names else "; it sets nothing"))
    return 2 if wrong else 0


def show(arguments: argparse.Namespace) -> int:
    """`caiafs config show MOUNTPOINT`: each value that is in force, and where it came from."""
    from caiafs.cli.asking import configuration

    mountpoint, config = configuration(arguments.mountpoint)
    if arguments.json:
        print(json.dumps(config["settings"], indent=2))
    else:
        print(render(mountpoint, config))
    return 0


def example(_arguments: argparse.Namespace) -> int:
    """`caiafs config example`: a settings file with everything in it, commented out."""
    from caiafs.config.example import render as rendered

    print(rendered(), end="")
    return 0


def render(mountpoint: str, config: Mapping[str, Any]) -> str:
    """config.json as a table: name, value in human units, origin."""
    settings: Mapping[str, Mapping[str, Any]] = config["settings"]
    names = {option.field: option.name for option in OPTIONS}
    rows = [("setting", "value", "from")]
    for field, setting in settings.items():
        value = show_value(field, setting["value"])
        if not value and field in IN_FORCE:
            value = str(config[field])
        rows.append((names.get(field, field), value or "-", str(setting["origin"])))
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {name:<{wide[0]}}  {value:<{wide[1]}}  {origin}" for name, value, origin in rows]
    return "\n".join([f"{mountpoint}: branch {config['branch']}", *lines])
