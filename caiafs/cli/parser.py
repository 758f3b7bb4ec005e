"""What the command line understands, and its --help, written so that daily work needs no manual."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from caiafs import __version__
from caiafs.config import OPTIONS, Config, Option, format_bytes, format_seconds, suggest

UMOUNT_TIMEOUT = 60.0
SHELLS = ("bash", "zsh", "fish")


class Parser(argparse.ArgumentParser):
    """An argparse parser whose answer to a wrong word is the nearest right one."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if isinstance(action, argparse._SubParsersAction) else str(action.metavar)
            raise argparse.ArgumentError(
                None, f"{value!r} is no {what.lower()}{suggest(str(value), action.choices)}"
            )

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """End with exit code 2 because of *words* that nothing takes."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            self.error(f"there is no place for {' '.join(words)}")
        near = difflib.get_close_matches(flag.replace("_", "-"), self._option_string_actions, n=1)
        self.error(f"{flag} is no option" + (f"; did you mean {near[0]}?" if near else ""))


class _SetOption(argparse.Action):
    """A flag that is another spelling of -o: it joins the same list, so that the later word wins."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        text = str(self.const if self.nargs == 0 else values)
        value = "".join(f"\\{char}" if char in '\\,"' else char for char in text)
        namespace.options = [*namespace.options, f"{self.setting}={value}"]

    @property
    def setting(self) -> str:
        """The setting that the flag stands for."""
        return self.option_strings[0].removeprefix("--").removeprefix("no-").replace("-", "_")


def build_parser() -> Parser:
    """The parser of `caiafs`; `command` is None when no word was given.

    In what it reads, `parser` is the parser of the command, for errors that are found later.
    """
    parser = Parser(
        prog="caiafs",
        description="A directory that remembers everything: a filesystem at the speed of memory,\n"
        "with ordinary git commits as its record.",
        epilog=_text(
            """
            a first session:
              mkdir ~/notes
              caiafs mount -o init ~/notes.git ~/notes    create a repository and mount it
              echo hello > ~/notes/hello.txt              work with any program
              caiafs status ~/notes                       see what git does not have yet
              caiafs commit -m "First note" ~/notes       or wait: commits happen by themselves
              git -C ~/notes.git log --stat               it is ordinary git
              caiafs umount ~/notes                       commit everything, then unmount

            exit status: 0 done, 1 failed, 2 wrong usage, 32 mount failure (as mount(8)).
            `caiafs COMMAND --help` explains each command; `caiafs doctor` finds out what is missing.
            """
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"caiafs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _mount(commands)
    _umount(commands)
    _commit(commands)
    _sync(commands)
    _status(commands)
    _reload(commands)
    _check(commands)
    _config(commands)
    _doctor(commands)
    _completion(commands)
    _install_units(commands)
    return parser


def _mount(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "mount",
        "mount a branch of a git repository",
        """
        Mount a branch of the git repository REPO on the empty directory MOUNTPOINT. The command
        returns once the mount serves; the daemon goes on in the background. Every change is
        journaled before it is acknowledged, and committed to the branch a moment later.

        REPO is a bare or an ordinary repository on this machine. A branch that is checked out in
        a work tree is refused, as git refuses it. Without REPO, CAIA_REPO_PATH names it.

        A mount that a killed daemon left at MOUNTPOINT is cleared, and its journal replayed:
        what was acknowledged is there again.
        """,
        _options_help()
        + _text(
            """
            Each is a flag, too: --commit-interval 5m, --ro, --no-enable-fallback.
            Sizes: 65536, 64k, 256MiB, 1g. Times: 500ms, 5s, 1m, 2h; a plain number counts seconds.
            The words of mount(8) are understood too: ro, rw, nodev, nosuid, noexec, noatime, …
            Each option can also stand in a TOML file (--config), or in the environment in capitals
            after CAIAFS_, such as CAIAFS_BRANCH=main. -o wins over the file, the file over the
            environment.

            examples:
              caiafs mount -o init ~/notes.git ~/notes
              caiafs mount -o branch=drafts,commit_interval=5m ~/site.git /srv/drafts
              caiafs mount -o ro,branch=v1 ~/site.git /srv/v1
              caiafs mount -f -o log_level=debug ~/notes.git ~/notes
              caiafs mount --config /etc/caiafs/site.toml

            In /etc/fstab:
              /srv/site.git  /srv/site  fuse.caiafs  branch=main,nofail  0  0
            """
        ),
        usage="caiafs mount [-f] [-o OPTION[,OPTION…]]… [--OPTION [VALUE]]… [--config FILE]\n"
        "                    [REPO] [MOUNTPOINT]",
    )
    parser.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground; log to standard error"
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION[,…]",
        help="mount options, see below",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="read settings (also repo and mountpoint) from a TOML file"
    )
    for option in OPTIONS:
        _flag_of(parser, option)
    parser.add_argument("places", nargs="*", metavar="REPO MOUNTPOINT", help="what to mount, and where")


def _umount(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "umount",
        "commit everything, then unmount",
        """
        Commit all that git does not have yet, unmount, and wait until the daemon has ended: then
        everything is in git. A mount whose daemon is dead is cleared; what it acknowledged is in
        its journal, and the next mount replays it.
        """,
        """
        examples:
          caiafs umount ~/notes
          caiafs umount --timeout 600 /srv/site     a slow disk and a lot to commit
        """,
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=UMOUNT_TIMEOUT,
        metavar="SECONDS",
        help="give up after so long without any progress (default: %(default)g)",
    )
    parser.add_argument(
        "--stale", action="store_true", help="only clear what a dead daemon left; do nothing to a live mount"
    )
    parser.add_argument("--config", metavar="FILE", help="unmount what this TOML file mounts")
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT")


def _commit(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "commit",
        "commit now",
        """
        Commit what has changed so far, as it is at this moment, and print the id of the commit
        that holds it. When this returns, the changes are in git and survive power loss. Where
        nothing has changed, that is the commit before, and no failure.
        """,
        """
        examples:
          caiafs commit ~/notes
          caiafs commit -m "Chapter one" -m "First complete draft." ~/notes
        """,
    )
    parser.add_argument(
        "-m",
        "--message",
        action="append",
        metavar="MESSAGE",
        help="the commit's message; repeat it for further paragraphs (default: it says what changed)",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="the mount, or any path in it")


def _sync(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "sync",
        "make everything so far survive power loss",
        """
        Write the journal through to the disk. When this returns, every change made so far
        survives power loss, whether or not git has it yet.
        """,
        """
        example:
          caiafs sync ~/notes
        """,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="the mount, or any path in it")


def _status(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "status",
        "health, tiers, and what is not yet in git",
        """
        Show how a mount is: its health, which tier answers, what git does not have yet, memory
        against its budget, the journal, the last commit. Without MOUNTPOINT, all caiafs mounts
        of this machine. The same figures are in MOUNTPOINT/.stats.

        With --watch, one mount as it works, anew every second; without a terminal, a line every five.

        The exit status is 1 if a mount has failed, is dead or does not answer.
        """,
        """
        examples:
          caiafs status
          caiafs status --json ~/notes | jq .health.state
          caiafs status --watch ~/notes
        """,
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on showing one mount until Ctrl-C: rates, latency, lag, commits",
    )
    parser.add_argument(
        "--json", action="store_true", help="print health.json, stats.json and config.json in one"
    )
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="the mount, or any path in it")


def _reload(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "reload",
        "read a mount's settings again",
        """
        Let the daemon of a mount read its TOML file again, and obey what can change while it
        serves: log_level, commit_quiet, commit_interval, operation_timeout, enable_fallback,
        memory, journal_max, author. Prints what changed, and what only a new mount changes. A
        file that does not hold is refused, and nothing changes. SIGHUP does the same.
        """,
        """
        examples:
          caiafs reload /srv/site
          caiafs reload --config /etc/caiafs/site.toml
        """,
    )
    parser.add_argument("--config", metavar="FILE", help="the mount that this TOML file makes")
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="the mount, or any path in it")


def _check(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "check",
        "verify journal, side ref and objects of an unmounted repository",
        """
        Verify what caiafs keeps in the repository REPO: that the journal reads back, that the side
        ref fits its branch, that the objects they name exist. Nothing is changed without --repair.
        For git's own part, run git fsck.
        """,
        """
        examples:
          caiafs check ~/notes.git
          caiafs check --branch drafts --repair ~/site.git
        """,
    )
    parser.add_argument(
        "--repair", action="store_true", help="mend what can be mended, and say what was done"
    )
    parser.add_argument(
        "--branch", metavar="NAME", help="only this branch (default: all that have been mounted)"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where the mount kept its state, if state_dir= was set"
    )
    parser.add_argument("repo", metavar="REPO")


def _config(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "config",
        "check a settings file, or show what is in force",
        """
        Work with settings. `check` reads TOML files as a mount would, and names everything that is
        wrong: unknown words with the nearest right one, values with what is allowed. `show` asks a
        running mount what is in force, and where each value came from. `example` prints a file with
        every setting, explained, at its default.
        """,
        """
        examples:
          caiafs config example > /etc/caiafs/site.toml
          caiafs config check /etc/caiafs/site.toml
          caiafs config show ~/notes

        check exits with 2 if anything is wrong.
        """,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    check = _command(
        actions,
        "check",
        "say what is wrong with settings files",
        """
        Read each FILE as `caiafs mount --config FILE` would, without mounting anything, and print
        one line for everything that is wrong: FILE:LINE, the word, and the way out.
        The exit status is 2 if anything is wrong.
        """,
        """
        example:
          caiafs config check /etc/caiafs/*.toml
        """,
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a TOML file of settings")
    show = _command(
        actions,
        "show",
        "what is in force in a mount, and where each value came from",
        """
        Ask the mount's daemon for its settings. Each line is a setting, its value, and where that
        came from: -o, a file, a variable of the environment, or default.
        """,
        """
        examples:
          caiafs config show ~/notes
          caiafs config show --json ~/notes | jq .memory
        """,
    )
    show.add_argument("--json", action="store_true", help="print it as in .stats/config.json")
    show.add_argument("mountpoint", metavar="MOUNTPOINT", help="the mount, or any path in it")
    _command(
        actions,
        "example",
        "print a settings file to begin with",
        """
        Print a TOML file in which every setting is explained, with its default commented out.
        """,
        """
        example:
          caiafs config example > ~/notes.toml
        """,
    )


def _completion(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "completion",
        "print the completion of commands for a shell",
        """
        Print a script that completes commands, flags, and the words of -o. A package of the system
        has it in place; otherwise put it where the shell looks.
        """,
        """
        examples:
          caiafs completion bash > ~/.local/share/bash-completion/completions/caiafs
          caiafs completion zsh > ~/.zsh/_caiafs              a folder in $fpath
          caiafs completion fish > ~/.config/fish/completions/caiafs.fish
        """,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _flag_of(parser: argparse.ArgumentParser, option: Option) -> None:
    """The flag --commit-interval for the setting commit_interval."""
    flag = f"--{option.name.replace('_', '-')}"
    # Not listed one by one in --help: the options of -o are, right below.
    if option.is_switch:
        parser.add_argument(flag, action=_SetOption, nargs=0, const="true", help=argparse.SUPPRESS)
        if option.metavar == "BOOL":
            no = flag.replace("--", "--no-", 1)
            parser.add_argument(no, action=_SetOption, nargs=0, const="false", help=argparse.SUPPRESS)
    else:
        parser.add_argument(flag, action=_SetOption, metavar=option.metavar, help=argparse.SUPPRESS)


def _doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    _command(
        commands,
        "doctor",
        "what this machine lacks, and the command that mends it",
        """
        Look for everything that mounting needs: Python, FUSE, fusermount3, libraries, limits.
        Prints one line for each, and the command that mends what is missing.
        The exit status is 1 if something that is required is missing.
        """,
        "",
    )


def _install_units(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(
        commands,
        "install-units",
        "put units, mount helpers and an example where the system looks for them",
        """
        Write systemd's units, the helpers of mount(8) and umount(8), and an example of a
        configuration, and say which files that are. Files of somebody else, and those that were
        changed since, are left alone. Done twice, it changes nothing.

        For the system (as root): caiafs@NAME.service mounts what /etc/caiafs/NAME.toml says.
        With --user: the same for `systemctl --user` and the files in ~/.config/caiafs.
        """,
        """
        examples:
          sudo caiafs install-units
          caiafs install-units --user
          caiafs install-units --root /tmp/package --prefix /usr
          sudo caiafs install-units --remove
        """,
    )
    parser.add_argument("--user", action="store_true", help="for this user's own service manager")
    parser.add_argument("--remove", action="store_true", help="take back what was written")
    parser.add_argument(
        "--root", metavar="DIR", default="/", help="below this directory, for packages and images"
    )
    parser.add_argument(
        "--prefix", metavar="DIR", help="units and helpers in DIR/lib and DIR/sbin, such as /usr for packages"
    )


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    short: str,
    description: str,
    epilog: str,
    usage: str | None = None,
) -> Parser:
    parser = commands.add_parser(
        name,
        help=short,
        description=_text(description),
        epilog=_text(epilog),
        usage=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    return parser


def _options_help() -> str:
    defaults = Config("", "")
    lines = ["options of -o:"]
    for option in OPTIONS:
        word = f"{option.name}={option.metavar}" if option.metavar else option.name
        default = getattr(defaults, option.name, None)
        shown = ""
        if isinstance(default, bool):
            shown = f" (default: {str(default).lower()})" if option.metavar else ""
        elif isinstance(default, int):
            shown = f" (default: {format_bytes(default).replace(' ', '')})"
        elif isinstance(default, float):
            shown = f" (default: {format_seconds(default).replace(' ', '')})"
        elif isinstance(default, str):
            shown = f" (default: {default})"
        text = textwrap.wrap(option.help + shown, 62)
        if len(word) > 25:
            lines.append(f"  {word}")
            word = ""
        lines += [f"  {word if number == 0 else '':<27} {line}" for number, line in enumerate(text)]
    return "\n".join(lines) + "\n\n"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("a positive number of seconds")
    return value


def _text(block: str) -> str:
    return textwrap.dedent(block).strip("\n")
