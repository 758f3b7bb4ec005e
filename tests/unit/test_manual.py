"""Manual pages: made from the documents without a warning, and nothing of the documents is lost."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from shipping import share
from shipping.manual import pages
from shipping.roff import Writer, escape

from caiafs.cli.parser import build_parser
from caiafs.config import OPTIONS

PAGES = pages(datetime(2024, 5, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    for name, text in PAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def shown(page: Path) -> str:
    """The page as man shows it, as one line."""
    done = subprocess.run(
        ["man", "-l", page],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "200", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(r"\s+", " ", re.sub(r"‐\n\s*", "", done.stdout))


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_and_groff_have_nothing_to_warn_of(name: str, folder: Path) -> None:
    for tool, package in (("mandoc", "mandoc"), ("man", "man-db")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (apt-get install {package})")
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "all", folder / name], capture_output=True, text=True
    )
    assert lint.stdout + lint.stderr == ""
    for locale in ("C.UTF-8", "C"):
        said = subprocess.run(
            ["man", "-l", "--warnings", folder / name],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": locale, "MANWIDTH": "80"},
            capture_output=True,
            text=True,
        )
        assert (said.stderr, said.returncode) == ("", 0)


def test_pages_tell_every_command_flag_and_setting(folder: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("needs man (apt-get install man-db)")
    page = shown(folder / "man1/caiafs.1")
    commands = next(action for action in build_parser()._actions if action.dest == "command")
    assert isinstance(commands, argparse._SubParsersAction)
    for name, parser in commands.choices.items():
        assert f"caiafs {name}" in page
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                flags = action.option_strings
                assert not flags or any(flag in page for flag in flags), f"docs/cli.md lacks {name} {flags}"
    for place in ("man5/caiafs.toml.5", "man8/mount.caiafs.8"):
        page = shown(folder / place)
        for option in OPTIONS:
            assert option.name in page


def test_what_is_shipped_has_pages_completions_and_documents() -> None:
    files = share.files()
    assert {"man/man1/caiafs.1", "fish/vendor_completions.d/caiafs.fish", "doc/caiafs/docs/limits.md"} <= set(
        files
    )
    assert all(files.values())


@pytest.mark.parametrize(
    ("markdown", "lines"),
    [
        ("a `-o x` and *b*", [r"a \fB\-o x\fP and \fIb\fP"]),
        (".dot begins", [r"\&.dot begins"]),
        ("**bold `code`** [cli.md](cli.md) [x](other.md)", [r"\fBbold code\fP caiafs(1) x"]),
        ("[the flags](cli.md#flags) of it", ["the flags (caiafs(1)) of it"]),
        ("- one\n  more\n- two", [r".IP \(bu 2", "one more", r".IP \(bu 2", "two"]),
        ("1. one\n2. two", [".IP 1. 4", "one", ".IP 2. 4", "two"]),
        ("    code\n\n    .more", [".RS 4", ".nf", "code", r"\&", r"\&.more", ".fi", ".RE"]),
        ("```sh\nx\\y\n```", [".RS 4", ".nf", r"x\ey", ".fi", ".RE"]),
        (
            "| n | value | what |\n|---|---|---|\n| `a` | size | This. |",
            [".TP", r"\fBa\fP", "This.", "Value: size."],
        ),
        ("## Head\ntext", ['.SS "Head"', "text"]),
    ],
)
def test_markdown_becomes_roff(markdown: str, lines: list[str]) -> None:
    writer = Writer({"cli.md": "caiafs(1)"})
    writer.text(markdown)
    assert writer.lines == lines


def test_everything_is_ascii() -> None:
    assert escape("é…→") == r"\[u00E9]...->"
    assert all(text.isascii() for text in PAGES.values())
