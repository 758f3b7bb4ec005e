"""A repository in which every way to have git run a program is open: what is run leaves a mark."""

from __future__ import annotations

from pathlib import Path

HOOKS = """
pre-commit post-commit prepare-commit-msg commit-msg post-checkout post-merge pre-push pre-receive update
post-receive post-update reference-transaction push-to-checkout pre-auto-gc post-rewrite post-index-change
fsmonitor-watchman proc-receive pre-merge-commit pre-rebase applypatch-msg sendemail-validate
"""

PROGRAMS = """
[core]
    hooksPath = {hooks}
    fsmonitor = {evil}
    sshCommand = {evil}
    gitProxy = {evil}
    askPass = {evil}
    editor = {evil}
    pager = {evil}
    alternateRefsCommand = {evil}
[pager]
    repack = {evil}
[alias]
    repack = !{evil}
    pack-objects = !{evil}
    multi-pack-index = !{evil}
[credential]
    helper = !{evil}
[diff]
    external = {evil}
[diff "x"]
    textconv = {evil}
    command = {evil}
[filter "x"]
    clean = {evil}
    smudge = {evil}
    process = {evil}
[merge "x"]
    driver = {evil}
[gpg]
    program = {evil}
[gpg "ssh"]
    program = {evil}
[commit]
    gpgSign = true
[gc]
    recentObjectsHook = {evil}
[uploadpack]
    packObjectsHook = {evil}
[remote "origin"]
    url = ext::{evil}
    uploadpack = {evil}
    vcs = evil
[trailer "x"]
    command = {evil}
[sequence]
    editor = {evil}
"""


def plant(repository: Path, place: Path) -> Path:
    """Every way to have git run a program from inside a repository; the file that shows that one was."""
    mark = place / "was-run"
    evil = place / "evil"
    evil.write_text(f"#!/bin/sh\necho $0 $* >> {mark}\n")
    evil.chmod(0o755)
    for folder in (repository / "hooks", place / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in HOOKS.split():
            hook = folder / name
            hook.unlink(missing_ok=True)
            hook.symlink_to(evil)
    with (repository / "config").open("a") as file:
        file.write(PROGRAMS.format(evil=evil, hooks=place / "hooks"))
    (repository / "info").mkdir(exist_ok=True)
    (repository / "info" / "attributes").write_text("* filter=x diff=x merge=x\n")
    return mark
