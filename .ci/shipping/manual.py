"""The manual pages caiafs(1), mount.caiafs(8) and caiafs.toml(5), made from docs/ and the parser."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from caiafs import __version__
from caiafs.cli.parser import build_parser
from shipping.roff import Writer, escape

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"cli.md": "caiafs(1)", "configuration.md": "caiafs.toml(5)"}
_FILES = """
| | |
|---|---|
| `/etc/caiafs/*.toml` | settings of mounts, see caiafs.toml(5) |
| `REPO/caiafs/BRANCH/` | journal, lock and control socket of a branch, in the git directory |
| `MOUNTPOINT/.stats/` | health, figures and settings of a mount |
| `/var/log/caiafs/`, `~/.local/state/caiafs/` | logs of mounts that run in the background |
"""


def pages(moment: datetime) -> dict[str, str]:
    """Every page by its file name, such as man1/caiafs.1, dated *moment*."""
    return {
        "man1/caiafs.1": _caiafs(moment),
        "man5/caiafs.toml.5": _toml(moment),
        "man8/mount.caiafs.8": _mount(moment),
        "man8/mount.fuse.caiafs.8": _mount(moment),
    }


def sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first ## heading, without the title, and each section by its heading."""
    head, *rest = re.split(r"^## +", text, flags=re.MULTILINE)
    return re.sub(r"\A# .*\n", "", head), {
        title.strip(): body for title, _, body in (part.partition("\n") for part in rest)
    }


def _caiafs(moment: datetime) -> str:
    page = _page("caiafs", 1, "a directory that remembers everything", moment)
    page.section("Synopsis")
    head, told = sections((ROOT / "docs/cli.md").read_text())
    commands = {title.strip("`"): body for title, body in told.items() if title.startswith("`caiafs ")}
    for command in commands:
        program, name, *words = command.split(" ")
        page.lines += [rf"\fB{program} {name}\fP {escape(' '.join(words), code=True)}".rstrip(), ".br"]
    page.lines += [r"\fBcaiafs\fP \-\-help | \-\-version"]
    page.section("Description")
    page.text(_first_paragraph())
    page.lines.append(".PP")
    page.text(head)
    page.section("Commands")
    for command, body in commands.items():
        page.text(f"## `{command}`\n{body}")
    page.section("Environment")
    page.text(_section("configuration.md", "The environment"))
    page.section("Files")
    page.text(_FILES)
    page.section("Exit status")
    page.text("0 done, 1 failed, 2 wrong usage, 32 mount failure as in mount(8).")
    page.section("Examples")
    page.text("\n".join(f"    {line}".rstrip() for line in _session()))
    _see_also(page, "mount.caiafs(8), caiafs.toml(5), git(1), mount(8), fusermount3(1)")
    return _done(page)


def _mount(moment: datetime) -> str:
    page = _page("mount.caiafs", 8, "mount a branch of a git repository as mount(8) asks", moment)
    page.section("Synopsis")
    page.lines += [
        r"\fBmount \-t caiafs\fP [\fB\-o\fP \fIOPTIONS\fP] \fIREPO\fP \fIMOUNTPOINT\fP",
        ".br",
        r"\fBmount.caiafs\fP \fIREPO\fP \fIMOUNTPOINT\fP [\fB\-sfnv\fP] [\fB\-N\fP \fINAMESPACE\fP]"
        r" [\fB\-o\fP \fIOPTIONS\fP] [\fB\-t\fP \fITYPE\fP]",
        ".br",
        r"\fBumount.caiafs\fP \fIMOUNTPOINT\fP [\fB\-flnrv\fP] [\fB\-N\fP \fINAMESPACE\fP]"
        r" [\fB\-t\fP \fITYPE\fP]",
    ]
    page.section("Description")
    _, told = sections((ROOT / "docs/cli.md").read_text())
    for title, body in told.items():
        if not title.startswith("`caiafs "):
            page.text(f"## {title}\n{body}")
    page.section("Options")
    page.text(_section("configuration.md", "Settings"))
    page.section("Words of mount(8)")
    page.text(_section("configuration.md", "Words of mount(8)"))
    page.section("Fstab")
    page.text(_section("service.md", "A line in fstab"))
    page.section("Exit status")
    page.text("0 when the mount serves, 32 on any failure.")
    _see_also(page, "caiafs(1), caiafs.toml(5), mount(8), fstab(5), systemd.mount(5)")
    return _done(page)


def _toml(moment: datetime) -> str:
    page = _page("caiafs.toml", 5, "settings of a caiafs mount", moment)
    page.section("Description")
    head, told = sections((ROOT / "docs/configuration.md").read_text())
    page.text(head)
    for title, body in told.items():
        page.section(title)
        page.text(body)
    page.section("Files")
    page.text(_FILES)
    _see_also(page, "caiafs(1), mount.caiafs(8)")
    return _done(page)


def _page(name: str, number: int, summary: str, moment: datetime) -> Writer:
    page = Writer(PAGES)
    day = moment.astimezone(UTC).strftime("%Y-%m-%d")
    page.lines += [
        r".\" Made from docs/ and the command line's own help: change those.",
        f'.TH {name.upper()} {number} "{day}" "caiafs {__version__}"',
        ".SH NAME",
        rf"{name} \- {summary}",
    ]
    return page


def _see_also(page: Writer, names: str) -> None:
    page.section("See also")
    page.text(re.sub(r"([\w.]+)(\(\d\))", r"`\1`\2", names))


def _done(page: Writer) -> str:
    return "\n".join(page.lines) + "\n"


def _section(file: str, title: str) -> str:
    return sections((ROOT / "docs" / file).read_text())[1][title]


def _first_paragraph() -> str:
    return re.sub(r"\A# .*\n", "", (ROOT / "README.md").read_text()).strip().split("\n\n")[0]


def _session() -> list[str]:
    epilog = build_parser().epilog or ""
    block = epilog.partition("\n\n")[0]
    return [line.strip() for line in block.splitlines()[1:]]
