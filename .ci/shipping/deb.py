"""A Debian package out of the tree: `python3 -m shipping.deb [FOLDER]` leaves caiafs_VERSION_ARCH.deb there.

pyfuse3 and dulwich of the versions needed are not in Debian 12. So the package brings its libraries along,
in a Python environment of its own below /usr/lib/caiafs that uses the system's interpreter: nothing that
Debian's own Python packages do can break it, and it breaks none of them. Weighed: dh-virtualenv (not in
Debian 12), and wheels that postinst installs (wants a network, and leaves files that dpkg does not know).

To be run by the Python of the Debian that the package is for. Needs dpkg-deb, and what pyfuse3 needs to be
built; pip fetches the libraries.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from caiafs import __version__
from shipping.manual import ROOT
from shipping.share import moment, write

HOME = "usr/lib/caiafs"
SUMMARY = "directory that remembers everything, with git as its record"
DESCRIPTION = """\
caiafs mounts a branch of a git repository as an ordinary directory: programs
read and write it at the speed of memory, and every change becomes git history
in the background. What a program was told is saved survives a crash; what came
out is plain git that any tool can read.
"""
POSTINST = f"""\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    /{HOME}/bin/python -m compileall -q /{HOME}/lib
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
fi
"""
PRERM = f"""\
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    # What is mounted is committed and unmounted while the program for it is still there.
    while read -r _ mountpoint type _; do
        if [ "$type" = fuse.caiafs ]; then
            caiafs umount "$(printf '%b' "$mountpoint")" ||
                echo "caiafs: $mountpoint stays mounted, and its journal keeps everything" >&2
        fi
    done </proc/self/mounts
fi
find /{HOME} -name __pycache__ -type d -prune -exec rm -rf {{}} +
"""
POSTRM = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
    # Logs are ours. Files in /etc/caiafs that an administrator wrote are not, nor is any repository.
    rm -rf /var/log/caiafs
fi
"""


def build(folder: Path) -> Path:
    """Make the package in *folder*; gives its path."""
    architecture = _said("dpkg", "--print-architecture")
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / f"caiafs_{__version__}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="caiafs-deb-") as name:
        scratch, stage = Path(name), Path(name) / "stage"
        stage.mkdir()
        _libraries(scratch, stage)
        _beside_the_code(stage)
        _units(stage)
        _control(stage, architecture)
        stamp = moment().timestamp()
        for path in [stage, *stage.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            os.utime(path, (stamp, stamp), follow_symlinks=False)
        _run("dpkg-deb", "--root-owner-group", "--build", stage, package)
    return package


def _libraries(scratch: Path, stage: Path) -> None:
    """caiafs and what it needs, as wheels first, then into an environment whose place is /usr/lib/caiafs."""
    python = Path("/usr/bin") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not python.exists():
        raise SystemExit(f"deb: run this with the system's Python: {python} is not there")
    _run(python, "-m", "venv", scratch / "tools")
    pip: list[str | Path] = [scratch / "tools/bin/python", "-m", "pip", "--disable-pip-version-check"]
    _run(*pip, "wheel", "--quiet", "--wheel-dir", scratch / "wheels", ROOT)

    home = stage / HOME
    site = home / "lib" / python.name / "site-packages"
    offline: list[str | Path] = ["--no-index", "--no-compile", "--find-links", scratch / "wheels"]
    _run(*pip, "install", "--quiet", *offline, "--ignore-installed", "--prefix", home, "caiafs")
    shutil.rmtree(home / "share")
    for script in (home / "bin").iterdir():
        if script.name == "caiafs":
            _, _, body = script.read_text().partition("\n")
            script.write_text(f"#!/{HOME}/bin/python\n{body}")
        else:
            script.unlink()
    (home / "bin/python").symlink_to(python)
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_version()}\n"
    )
    for record in site.glob("*.dist-info/RECORD"):
        record.unlink()  # lists files of this build; dpkg knows what is installed
    for library in site.rglob("*.so"):
        if shutil.which("strip"):
            _run("strip", "--strip-unneeded", library)
    (stage / "usr/bin").mkdir(parents=True)
    (stage / "usr/bin/caiafs").symlink_to("../lib/caiafs/bin/caiafs")


def _beside_the_code(stage: Path) -> None:
    """Manual pages, completions and documents, as Debian wants them."""
    for path in write(stage / "usr"):
        if "/share/man/" in str(path) or path.name == "CHANGELOG.md":
            name = "changelog.gz" if path.name == "CHANGELOG.md" else f"{path.name}.gz"
            path.with_name(name).write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
            path.unlink()
        elif path.name == "LICENSE":
            path.rename(path.with_name("copyright"))
    zsh = stage / "usr/share/zsh/site-functions"
    zsh.rename(zsh.with_name("vendor-completions"))


def _units(stage: Path) -> None:
    """systemd's units and the helpers of mount(8), as `caiafs install-units` writes them."""
    _run(sys.executable, "-m", "caiafs", "install-units", "--root", stage, "--prefix", "/usr", cwd=ROOT)
    shutil.rmtree(stage / "etc/caiafs")
    (stage / "etc/caiafs").mkdir()


def _control(stage: Path, architecture: str) -> None:
    files = [path for path in sorted(stage.rglob("*")) if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    major, minor = sys.version_info[:2]
    glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.36").split()[1]
    control = f"""\
Package: caiafs
Version: {__version__}
Architecture: {architecture}
Maintainer: {_maintainer()}
Installed-Size: {size}
Depends: fuse3, libfuse3-3, libc6 (>= {glibc}), python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})
Recommends: git
Section: utils
Priority: optional
Description: {SUMMARY}
{"".join(f" {line}" for line in DESCRIPTION.splitlines(keepends=True))}"""
    about = stage / "DEBIAN"
    about.mkdir()
    (about / "control").write_text(control)
    for name, script in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        (about / name).write_text(script)
        (about / name).chmod(0o755)
    (about / "md5sums").write_text("".join(_sums(stage, files)))


def _sums(stage: Path, files: list[Path]) -> Iterator[str]:
    for path in files:
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        yield f"{digest}  {path.relative_to(stage)}\n"


def _maintainer() -> str:
    """Who pyproject.toml says the authors are, as Debian writes it."""
    authors = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["authors"]
    return ", ".join(
        f"{each['name']} <{each['email']}>" if "email" in each else each["name"] for each in authors
    )


def _version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _run(*words: str | os.PathLike[str], cwd: Path | None = None) -> None:
    done = subprocess.run([os.fspath(word) for word in words], cwd=cwd, check=False)
    if done.returncode != 0:
        raise SystemExit(f"deb: {' '.join(map(str, words))} exited {done.returncode}")


def _said(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
