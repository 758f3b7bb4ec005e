"""A fresh Debian machine for a test: the smallest Debian 12 there is, in namespaces of its own.

`debootstrap` makes the base once and keeps it under `.cache/`. Each `FreshMachine` is an overlay over it,
with its own processes, mounts and devices, and is gone afterwards without a trace. Packages come from where
this machine gets its own: its lists for apt and its settings for pip are lent to the guest.

Needs root, /dev/fuse, debootstrap and unshare(1); `need_machine()` skips and says so where one is missing.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.console import Console

SOURCE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CAIAFS_TEST_CACHE", SOURCE / ".cache"))
SUITE = "bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_INIT = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whatever ends here is forgotten at once
os.chroot(sys.argv[1])
os.chdir("/")
print("up", flush=True)
sys.stdin.read()  # ends with the test that holds the other side, and the whole guest with it
"""

_START = r"""
set -eu
root=$1 base=$2 work=$3
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    name=${node%%:*} numbers=${node#*:}
    mknod -m 666 "$root/dev/$name" c "${numbers%:*}" "${numbers#*:}"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind "$work/archives" "$root/var/cache/apt/archives"
shift 3
init=$1 && shift
for lent in "$@"; do
    if [ -d "$lent" ]; then mkdir -p "$root$lent"; else mkdir -p "$root${lent%/*}" && : >>"$root$lent"; fi
    mount --bind "$lent" "$root$lent"
done
exec "$PYTHON" -c "$init" "$root"
"""


def need_machine() -> None:
    """Skip, saying why, where a guest cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a Debian of its own in namespaces")
    for tool in ("debootstrap", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (apt-get install debootstrap util-linux)")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")


def debian_base() -> Path:
    """The folder with a minimal Debian, made by the first call on this machine."""
    base = CACHE / f"debian-{SUITE}"
    if not base.exists():
        making = CACHE / f"debian-{SUITE}.{os.getpid()}"
        making.parent.mkdir(parents=True, exist_ok=True)
        try:
            _run("debootstrap", "--variant=minbase", SUITE, making, *_mirror())
            for lent in Path("/etc/apt").glob("sources.list*"):
                if lent.is_dir():
                    shutil.copytree(lent, making / "etc/apt" / lent.name, dirs_exist_ok=True)
                else:
                    shutil.copy(lent, making / "etc/apt" / lent.name)
            for lent in Path("/etc/apt/apt.conf.d").glob("99*"):
                shutil.copy(lent, making / "etc/apt/apt.conf.d" / lent.name)
            if not Path("/etc/apt/sources.list").exists():
                (making / "etc/apt/sources.list").unlink(missing_ok=True)
            # As every installed Debian has it: fusermount3 wants it of ordinary users.
            (making / "etc/mtab").symlink_to("../proc/self/mounts")
            making.rename(base)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return base


class FreshMachine:
    """A Debian that nothing has been installed on yet; every change goes when it goes."""

    def __init__(self, base: Path, work: Path) -> None:
        self.root = work / "root"
        for name in ("root", "upper", "work"):
            (work / name).mkdir(parents=True)
        archives = CACHE / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        (work / "archives").symlink_to(archives)
        self._pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        if trusted := re.search(r"^(?:global|:env:)\.cert='(.*)'$", _pip("config", "list"), re.MULTILINE):
            # Beside the guest's own bundle, which its package of certificates makes anew.
            shutil.copy(trusted[1], base / "etc/lent-certificates.pem")
            self._pip["PIP_CERT"] = "/etc/lent-certificates.pem"
        words = ["sh", "-c", _START, "sh", self.root, base, work, _INIT, *_lent()]
        self._init = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", *map(os.fspath, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": PATH, "PYTHON": sys.executable},
        )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "up\n":
            raise RuntimeError(f"the guest did not start: {self._init.communicate()[1]}")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self._inside = children[0]

    def run(
        self,
        command: str,
        *,
        user: str = "root",
        status: int | None = 0,
        timeout: float = 2700,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the guest as *user*; fail with its output unless it exits with *status*."""
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {
            "PATH": PATH,
            "HOME": home,
            "USER": user,
            "LC_ALL": "C.UTF-8",
            **self._pip,
            **(env or {}),
        }
        inner = f"cd {home} && {command}"
        words = ["sh", "-c", inner]
        if user != "root":
            words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]
        done = subprocess.run(
            ["nsenter", "-t", self._inside, "-m", "-p", "-r", "-w", "--", *words],
            env=variables | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if status is not None and done.returncode != status:
            said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            pytest.fail(f"$ {command}\nexited {done.returncode}, not {status}\n{said}")
        return done

    def console(self, user: str) -> Console:
        """A shell of *user* in the guest, for following a page of the documentation."""
        home = f"/home/{user}"
        env = {"PATH": PATH, "HOME": home, "USER": user, "LC_ALL": "C.UTF-8", **self._pip}
        words = ["nsenter", "-t", self._inside, "-m", "-p", "-r", f"--wdns={home}", "--"]
        return Console([*words, "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"], env)

    def install(self, *packages: str) -> None:
        """apt-get install, without recommended packages."""
        self.run("apt-get update -qq")
        self.run(
            "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "
            + shlex.join(packages)
        )

    def add_user(self, name: str, *, sudo: bool = False) -> None:
        """An ordinary user, with sudo that asks for no password if wanted."""
        self.run(f"useradd --create-home --shell /bin/sh {name}")
        if sudo:
            self.run(f"echo '{name} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{name}")

    def put(self, here: Path, there: str) -> None:
        """Copy a file or a folder of this machine into the guest."""
        target = Path(f"/proc/{self._inside}/root{there}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, target, symlinks=True)
        else:
            shutil.copy(here, target)

    def get(self, there: str, here: Path) -> None:
        """Copy a folder of the guest out of it."""
        shutil.copytree(f"/proc/{self._inside}/root{there}", here, symlinks=True)

    def files(self) -> set[str]:
        """Every path that exists in the guest's own filesystem, without what is mounted over it."""
        text = self.run("find / -xdev -path /var/cache/apt/archives -prune -o -print").stdout
        return set(text.splitlines())

    def close(self) -> None:
        """End everything in the guest: its first process takes the others along."""
        os.kill(int(self._inside), 9)
        self._init.communicate(timeout=30)


@contextmanager
def fresh_machine(base: Path, work: Path) -> Iterator[FreshMachine]:
    """A guest for the length of a with block."""
    machine = FreshMachine(base, work)
    try:
        yield machine
    finally:
        machine.close()
        for _ in range(50):  # the overlay is let go by the kernel a moment after its last process
            shutil.rmtree(work, ignore_errors=True)
            if not work.exists():
                break
            time.sleep(0.1)


def copy_of_the_source(target: Path) -> Path:
    """What `git clone` of this very tree would give, with changes that are not committed yet."""
    listed = _run("git", "-C", SOURCE, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        if name and os.path.lexists(SOURCE / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, target / name, follow_symlinks=False)
    return target


def _mirror() -> list[str]:
    """Where this machine gets Debian's packages, as debootstrap wants it; [] leaves the choice to it."""
    for file in (*Path("/etc/apt").glob("sources.list.d/*.sources"), *Path("/etc/apt").glob("sources.list*")):
        if file.is_file() and (
            match := re.search(r"^(?:URIs:|deb)\s+(https?://\S+debian/?)\s", file.read_text(), re.M)
        ):
            return [match[1]]
    return []


def _lent() -> list[str]:
    """What the guest needs of this machine to reach packages: name service, and what pip is told to use."""
    lent = ["/etc/resolv.conf", *(name for name in ("/etc/pip.conf", "/etc/xdg/pip") if os.path.exists(name))]
    told = _pip("config", "list")
    for path in re.findall(r"(?:file://)?(/[\w./+-]+)", re.sub(r"https?://[^\s']*", "", told)):
        if os.path.exists(path) and not any(
            path == one or path.startswith(one + "/") for one in (*lent, "/etc")
        ):
            lent.append(path)
    return lent


def _pip(*words: str) -> str:
    words = (sys.executable, "-m", "pip", *words)
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _run(*words: str | os.PathLike[str]) -> str:
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{words[0]} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout
