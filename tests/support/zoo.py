"""A tree with one of everything that a filesystem can hold and git alone cannot."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from support.users import is_root


def populate(root: Path) -> None:
    """Fills *root*. As an ordinary user without devices, other owners and privileged attributes."""
    root.mkdir(exist_ok=True)
    for number, mode in enumerate((0o644, 0o600, 0o755, 0o444, 0o000, 0o4755, 0o2711, 0o1644, 0o7777)):
        if mode & 0o400 == 0 and not is_root():
            continue
        path = root / "modes" / f"{mode:04o}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"content %d\n" % number)
        path.chmod(mode)
        os.utime(path, ns=(1_500_000_000_111_111_111 + number, 1_400_000_000_222_222_222 + number))
    for name in ("empty", "empty/inside", "closed", "many", "unusual"):
        (root / name).mkdir()
    (root / "closed").chmod(0o1750)
    for number in range(300):
        (root / "many" / f"file{number:03}").write_bytes(b"%d" % number)
    for odd in (
        b"new\nline",
        b"\xff\xfe",
        b" ",
        "\u00e9".encode(),
        b"a'b\"c`$(x)",
        b"x" * 255,
        b"-rf",
        b"tab\t",
    ):
        (root / "unusual" / os.fsdecode(odd)).write_bytes(odd)
    (root / "large").write_bytes(bytes(range(256)) * 4000)
    (root / "nothing").write_bytes(b"")
    with (root / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    (root / "one").write_bytes(b"linked")
    os.link(root / "one", root / "two")
    os.link(root / "one", root / "empty" / "three")
    for name, target in (
        ("link", "one"),
        ("dangling", "no/where"),
        ("absolute", "/etc/passwd"),
        ("up", "../x"),
    ):
        (root / name).symlink_to(target)
        os.utime(
            root / name, ns=(1_300_000_000_000_000_001, 1_300_000_000_000_000_002), follow_symlinks=False
        )
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)
    os.setxattr(root / "one", "user.comment", b"of all three names")
    os.setxattr(root / "many", "user.binary", bytes(range(256)))
    if is_root():
        os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(240, 1))
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(root / "large", 1234, 5678)
        os.lchown(root / "link", 4321, 8765)
        os.chown(root / "closed", 1, 2)
        os.setxattr(root / "large", "trusted.secret", b"\0\1")
        os.setxattr(root / "closed", "security.test", b"value")
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            os.utime(path, ns=(1_600_000_000_123_456_789, 1_550_000_000_987_654_321))
    os.utime(root, ns=(1_600_000_001_000_000_000, 1_600_000_002_000_000_003))
