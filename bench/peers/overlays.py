"""Filesystems that show a directory of another one: written in C, C++ and Go, all packaged by Debian."""

from __future__ import annotations

import subprocess

from bench.machine import version

from .base import Peer, Unavailable, Words


class Overlay(Peer):
    """Mounts `d`, a directory on the base, at `m`."""

    def start(self) -> None:
        super().start()
        self.require()
        (self.place / "d").mkdir(exist_ok=True)

    def version(self) -> str:
        return version(self.program, "--version")


class Bindfs(Overlay):
    program = package = "bindfs"

    def start(self) -> None:
        super().start()
        self.spawn(["bindfs", "-f", self.place / "d", self.place / "m"], self.place / "m")


class Mergerfs(Overlay):
    """One branch, with every cache that it has."""

    program = package = "mergerfs"
    CACHES = (
        "cache.files=auto-full,cache.writeback=true,cache.attr=3600,cache.entry=3600,"
        "cache.negative_entry=3600,cache.symlinks=true,cache.readdir=true,cache.statfs=3600"
    )

    def start(self) -> None:
        super().start()
        words: Words = ["mergerfs", "-f", "-o", self.CACHES, self.place / "d", self.place / "m"]
        self.spawn(words, self.place / "m")


class Gocryptfs(Overlay):
    program = package = "gocryptfs"

    def start(self) -> None:
        super().start()
        word, cipher = self.place / "word", self.place / "d"
        word.write_text("bench\n")
        if not (cipher / "gocryptfs.conf").exists():
            done = subprocess.run(
                ["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", word, cipher],
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            if done.returncode:
                raise Unavailable(f"gocryptfs -init: {done.stderr.strip()[-300:]}")
        words: Words = ["gocryptfs", "-fg", "-q", "-passfile", word, cipher, self.place / "m"]
        self.spawn(words, self.place / "m")


class Rclone(Overlay):
    """A full VFS cache over a local directory. Uploads follow at once, so that settling sees them."""

    program = package = "rclone"

    def start(self) -> None:
        super().start()
        words: Words = [
            "rclone", "mount", self.place / "d", self.place / "m", "--vfs-cache-mode", "full",
            "--vfs-write-back", "100ms", "--cache-dir", self.place / "cache", "--config", "/dev/null",
        ]  # fmt: skip
        self.spawn(words, self.place / "m")
