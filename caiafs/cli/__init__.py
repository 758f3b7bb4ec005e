"""The command line: words in, exit code out.

`main` is the `caiafs` command, `mount_helper` what mount(8) runs as mount.caiafs. Exit codes:
0 done, 1 failed, 2 usage, 32 mount failure as in mount(8). Every error that a person can cause or
mend is a CaiafsError, printed here as one line on standard error.

Nothing heavy is imported until a command needs it: `caiafs doctor` must run where libraries are
missing, and `caiafs commit` should not wait for an event loop it does not use.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from caiafs.cli.parser import build_parser
from caiafs.errors import CaiafsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `caiafs` command and return its exit code."""
    _open_standard_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] in (["mount.caiafs"], ["umount.caiafs"]):
        # How the helpers in /sbin find their way here, wherever this is installed.
        return (mount_helper if words[0] == "mount.caiafs" else umount_helper)(words[1:])
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]  # as git has it
    parser = build_parser()
    arguments, more = parser.parse_known_args(words)
    if arguments.command is None:
        if more:
            parser.unknown(more)
        parser.print_help(sys.stderr)
        return 2
    if more and arguments.command == "mount" and not any(word.startswith("-") for word in more):
        # argparse wants positional words in one run; people write `mount REPO -o ro MOUNTPOINT`.
        arguments.places += more
    elif more:
        arguments.parser.unknown(more)
    if getattr(arguments, "action", "") is None:
        arguments.parser.print_help(sys.stderr)
        return 2
    code = guarded(lambda: _find(arguments.command)(arguments), "caiafs")
    # What cannot be mounted cannot be checked either, but only mount and umount fail as mount(8) does.
    return 1 if code == 32 and arguments.command not in ("mount", "umount") else code


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """Run as mount.caiafs or mount.fuse.caiafs: SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]."""
    from caiafs.cli import helpers

    _open_standard_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    # mount(8) hands our exit code on, and there 1 and 2 mean other things.
    return 32 if guarded(lambda: helpers.mount(words), "mount.caiafs") else 0


def umount_helper(argv: Sequence[str] | None = None) -> int:
    """Run as umount.caiafs or umount.fuse.caiafs: DIR [-flnrv] [-N NAMESPACE] [-t TYPE]."""
    from caiafs.cli import helpers

    _open_standard_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    return 32 if guarded(lambda: helpers.umount(words), "umount.caiafs") else 0


def guarded(command: Callable[[], int], name: str) -> int:
    """Call *command*, and turn what people can cause into a line on standard error and an exit code."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except CaiafsError as problem:
        print(_error_line(name, str(problem)), file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:
        # `caiafs status | head`: the reader has seen enough. Python's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FileNotFoundError:
        try:
            os.getcwd()
        except FileNotFoundError:
            message = (
                "the current directory is gone: change to another one (`cd`), or name paths from the root on"
            )
            print(_error_line(name, message), file=sys.stderr)
            return 1
        raise
    except KeyboardInterrupt:
        return 130


def _open_standard_streams() -> None:
    """Point what the caller closed (`caiafs mount … 2>&-`) at /dev/null, as git does (sanitize_stdfds).

    Python leaves None in the stream's place, which has no flush(). The descriptor would go to the next
    file that is opened, a lock or /dev/fuse, which is then taken for the terminal.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, so the one that was closed
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))


def _error_line(name: str, message: str) -> str:
    """As a person reads it; in the journal one line, with the mark that makes it an error (sd-daemon(3))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if device:
        found = os.fstat(2)
        if (device, inode) == (str(found.st_dev), str(found.st_ino)):
            return f"<3>{name}: {' '.join(message.split())}"
    return f"{name}: {message}"


def _find(command: str) -> Callable[[argparse.Namespace], int]:
    if command == "doctor":
        from caiafs.cli import doctor

        return doctor.run
    if command == "install-units":
        from caiafs.cli import units

        return units.run
    if command in ("mount", "umount"):
        from caiafs.cli import mounting

        return mounting.mount if command == "mount" else mounting.umount
    if command == "config":
        from caiafs.cli import settings

        return settings.run
    if command == "completion":
        from caiafs.cli import completion

        return completion.run
    from caiafs.cli import asking

    return {
        "commit": asking.commit,
        "sync": asking.sync,
        "status": asking.status,
        "check": asking.check,
        "reload": asking.reload,
    }[command]
