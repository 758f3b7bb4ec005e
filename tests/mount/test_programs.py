"""Programs that people use, at work in a mount: git, databases, copiers, editors, compilers, installers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from support.mounts import Mount, environment, run
from support.snapshots import assert_same, differences, settled, snapshot
from support.users import is_root, need_root, together
from support.zoo import populate


def need(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def shell(where: Path, script: str) -> str:
    """Runs a script there; it stops at the first failure, which fails the test."""
    return run("bash", "-euo", "pipefail", "-c", textwrap.dedent(script), cwd=where).stdout


# git inside the mount, whose history is git itself


def test_git_works_inside(room: Path) -> None:
    script = """
        git init -q repo && cd repo
        mkdir -p src && for n in $(seq 60); do echo "line $n" > src/f$n; done
        git add . && git commit -qm first
        git checkout -q -b side && echo changed > src/f1 && rm src/f2 && git mv src/f3 src/moved
        git commit -qam second
        git checkout -q main && test "$(cat src/f1)" = "line 1" && test -e src/f2
        git merge -q --no-ff -m merged side && test ! -e src/f2 && test "$(cat src/f1)" = changed
        git gc -q --prune=now && git fsck --strict --full
        test -z "$(git status --porcelain)"
        git log --oneline | wc -l
        git clone -q . ../clone && git clone -q --no-local . ../far
        cd ../clone && test -z "$(git status --porcelain)" && git fsck --strict
        git checkout -q -b more && echo x >> src/f9 && git commit -qam third && git push -q origin more
        git stash list && git worktree add -q ../tree side && git -C ../tree status --porcelain
    """
    shell(room, script)
    run("diff", "-r", "--no-dereference", "-x", ".git", room / "clone", room / "far", status=None)


def test_git_sees_a_quiet_tree(room: Path) -> None:
    """The index of git believes inode numbers and times: an untouched file must not look touched."""
    shell(room, "git init -q r && cd r && for n in $(seq 40); do echo $n > $n; done")
    shell(room, "cd r && git add . && git commit -qm one")
    before = (room / "r" / ".git" / "index").stat().st_mtime_ns
    shell(room, "cd r && sleep 1.1 && git status --porcelain && git diff-files --quiet")
    shell(room, "cd r && git diff-files --quiet && git status --porcelain")
    assert (room / "r" / ".git" / "index").stat().st_mtime_ns >= before


def test_nested_repository_survives_a_remount(mount: Mount) -> None:
    """Names that git refuses to track, .git above all, come back; the outer history stays valid git."""
    shell(
        mount.path,
        """
        git init -q nested && cd nested
        for n in $(seq 30); do echo $n > f$n; done
        git add . && git commit -qm inner && git gc -q
        echo uncommitted > f1 && git branch topic && git tag -a v1 -m v1
        mkdir -p deep/sub && git init -q deep/sub && echo y > deep/sub/y
        git -C deep/sub add y && git -C deep/sub commit -qm sub
        """,
    )
    before = settled(mount.path)
    mount.remount()
    assert_same(before, snapshot(mount.path))
    out = shell(
        mount.path / "nested", "git fsck --strict --full && git status --porcelain && git log --oneline"
    )
    shell(mount.path / "nested", "git -C deep/sub fsck --strict && git -C deep/sub diff --quiet")
    assert " M f1" in out
    assert "inner" in out
    assert ".git" not in mount.git("ls-tree", "-r", "--name-only", "HEAD").replace(".gitignore", "")
    shell(
        mount.path / "nested",
        "git add f1 && git commit -qm more && git checkout -q topic && git gc -q --prune=now",
    )


# Databases


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite(room: Path, journal: str) -> None:
    path = room / "data.db"
    with sqlite3.connect(path, isolation_level=None, timeout=30) as db:
        assert db.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        db.execute("create table t (id integer primary key, who int, text text)")
    db.close()

    def work(me: int) -> None:
        mine = sqlite3.connect(path, isolation_level=None, timeout=30)
        for number in range(15):
            mine.execute("begin immediate")
            mine.executemany("insert into t (who, text) values (?, ?)", [(me, "x" * (number * 50))] * 10)
            mine.execute("rollback" if number % 5 == 4 else "commit")
        mine.close()

    together(3, work)
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select count(*) from t").fetchone() == (3 * 12 * 10,)
    db.execute("delete from t where who = 1")
    db.execute("vacuum")
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()


def test_sqlite_survives_the_end_of_its_writer(room: Path) -> None:
    """The writer dies inside a transaction; the next one rolls back."""
    path = room / "data.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("create table t (n int)")
    db.execute("insert into t values (1)")
    db.close()
    program = (
        "import sqlite3, os, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('pragma cache_size=5'); db.execute('begin');"
        "[db.execute('insert into t values (2)') for n in range(20000)]; os._exit(9)"
    )
    run(sys.executable, "-c", program, path, status=9)
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("select count(*) from t").fetchone() == (1,)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()


# Copies


COPIED = ("inode", "ctime_ns", "atime_ns")


def test_rsync_transfers_once(room: Path, disk: Path) -> None:
    need("rsync")
    populate(disk)
    flags = "-aHAX" if is_root() else "-aH"
    words = ["rsync", flags, "--out-format=%i %n", f"{disk}/", f"{room}/copy/"]
    assert "many/file001" in run(*words).stdout
    assert run(*words).stdout == "", "the second run found something to do"
    # rsync leaves the times of devices, FIFOs and sockets alone, on any filesystem.
    special = ("'block'", "'char'", "'fifo'", "'socket'")
    lines = differences(snapshot(disk), snapshot(room / "copy"), ignore=COPIED)
    assert not [line for line in lines if not line.startswith(special)]
    back = disk.parent / f"{disk.name}-back"
    run("rsync", flags, f"{room}/copy/", f"{back}/")
    lines = differences(snapshot(disk), snapshot(back), ignore=COPIED)
    assert not [line for line in lines if not line.startswith(special)]


def test_rsync_updates_what_changed(room: Path, disk: Path) -> None:
    need("rsync")
    for number in range(20):
        (disk / f"f{number}").write_text(f"{number}\n" * 1000)
    run("rsync", "-a", f"{disk}/", room)
    (disk / "f3").write_text("changed\n" * 900)
    (disk / "f4").unlink()
    out = run(
        "rsync", "-a", "--delete", "--inplace", "--no-whole-file", "--out-format=%n", f"{disk}/", room
    ).stdout
    assert "f3" in out
    assert "f5" not in out
    assert (room / "f3").read_bytes() == (disk / "f3").read_bytes()
    assert not (room / "f4").exists()


def test_tar_round_trip(room: Path, disk: Path) -> None:
    populate(disk)
    flags = ["--xattrs", "--xattrs-include=*", "--acls"] if is_root() else []
    archive = disk.parent / f"{disk.name}.tar"
    run("tar", "--format=posix", *flags, "-C", disk, "-cf", archive, ".", status=None)
    (room / "in").mkdir()
    run("tar", *flags, "-C", room / "in", "-xpf", archive)
    left = [
        line for line in differences(snapshot(disk), snapshot(room / "in"), COPIED) if "socket" not in line
    ]
    assert not left, "\n".join(left[:30])
    run("tar", "--format=posix", *flags, "-C", room / "in", "-cf", room / "again.tar", ".")
    out = disk.parent / f"{disk.name}-out"
    out.mkdir()
    run("tar", *flags, "-C", out, "-xpf", room / "again.tar")
    assert_same(snapshot(room / "in"), snapshot(out), ignore=COPIED)


def test_cp_archive(room: Path, disk: Path) -> None:
    populate(disk)
    run("cp", "-a", f"{disk}/.", room / "in")
    ignore = COPIED
    left = [
        line for line in differences(snapshot(disk), snapshot(room / "in"), ignore) if "socket" not in line
    ]
    assert not left, "\n".join(left[:30])
    run("cp", "-a", room / "in", room / "again")
    run("cp", "-a", room / "in", disk.parent / f"{disk.name}-out")
    assert_same(snapshot(room / "in"), snapshot(room / "again"), ignore=ignore)
    assert_same(snapshot(room / "in"), snapshot(disk.parent / f"{disk.name}-out"), ignore=ignore)


# Editors and tools


def test_editor_saves_by_renaming(room: Path) -> None:
    """Backup by link, new content in a temporary file, fsync, rename: as vim and emacs do it."""
    path = room / "text"
    path.write_text("first\n")
    path.chmod(0o640)
    for number in range(20):
        mode = path.stat().st_mode
        temporary = room / f".text.{number}.swp"
        with temporary.open("w") as file:
            file.write(f"version {number}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        backup = room / "text~"
        backup.unlink(missing_ok=True)
        os.link(path, backup)
        os.rename(temporary, path)
        folder = os.open(room, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        assert path.read_text() == f"version {number}\n"
    assert backup.read_text() == "version 18\n"
    assert sorted(os.listdir(room)) == ["text", "text~"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_sed_in_place(room: Path) -> None:
    for number in range(10):
        (room / f"f{number}").write_text("the old word\nthe old world\n")
        (room / f"f{number}").chmod(0o600)
    shell(room, "sed -i 's/old/new/' f* && sed -i.bak '1d' f0")
    assert (room / "f9").read_text() == "the new word\nthe new world\n"
    assert (room / "f0").read_text() == "the new world\n"
    assert (room / "f0.bak").exists()
    assert (room / "f9").stat().st_mode & 0o777 == 0o600


def test_make_builds_and_rebuilds_what_changed(room: Path) -> None:
    need("make", "cc")
    (room / "main.c").write_text('#include "part.h"\nint main(void) { return answer() != 42; }\n')
    (room / "part.c").write_text('#include "part.h"\nint answer(void) { return 42; }\n')
    (room / "part.h").write_text("int answer(void);\n")
    rules = "program: main.o part.o\n\tcc -o $@ $^\n%.o: %.c part.h\n\tcc -c -o $@ $<\n"
    (room / "Makefile").write_text(rules + "clean:\n\trm -f *.o program\n")
    assert shell(room, "make -j2").count("cc -c") == 2
    shell(room, "./program")
    assert "up to date" in shell(room, "make")
    shell(room, "touch part.c")
    assert shell(room, "make").count("cc -c") == 1
    shell(room, "touch part.h")
    assert shell(room, "make").count("cc -c") == 2
    shell(room, "make clean && test ! -e program")


def test_python_venv_and_pip(room: Path) -> None:
    wheel = room / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {
            "tiny/__init__.py": "def hello():\n    print('hello from the mount')\n",
            "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
            "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "tiny-1.0.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:hello\n",
            "tiny-1.0.dist-info/RECORD": "",
        }.items():
            archive.writestr(name, text)
    env = environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INDEX="1", HOME=str(room))
    env.pop("PYTHONPATH")
    env.pop("PYTHONDONTWRITEBYTECODE")
    # A pip of its own would be a thousand files more to unpack: test_trees.py has such trees.
    run(sys.executable, "-m", "venv", "--without-pip", room / "env", env=env)
    python = room / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", wheel, env=env)
    assert run(room / "env" / "bin" / "tiny", env=env).stdout == "hello from the mount\n"
    assert run(python, "-c", "import tiny; print(tiny.__file__)", env=env).stdout.startswith(str(room))
    run(*pip, "uninstall", "-y", "-q", "tiny", env=env)
    run(python, "-c", "import tiny", env=env, status=1)


def test_looking_around(room: Path) -> None:
    """find, grep -r, du, df, wc, sort, ls: they see what is there and nothing else."""
    for folder in range(5):
        (room / f"d{folder}").mkdir()
        for number in range(20):
            (room / f"d{folder}" / f"f{number}").write_text(
                f"needle {number}\n" if number == 7 else "hay\n" * 300
            )
    (room / "empty").mkdir()
    (room / "link").symlink_to("d0/f7")
    assert len(shell(room, "find . -type f").split()) == 100
    assert shell(room, "find . -type d -empty").split() == ["./empty"]
    assert shell(room, "find . -type l -printf '%l'") == "d0/f7"
    assert len(shell(room, "find . -newermt '1 hour ago' -size 2k -type f").split()) == 5 * 19
    assert len(shell(room, "grep -rl needle .").split()) == 5
    assert shell(room, "ls -la | wc -l").strip() == "10"
    apparent = int(shell(room, "du -sb --apparent-size .").split()[0])
    assert apparent >= 5 * 19 * 1200
    assert int(shell(room, "du -sk .").split()[0]) * 1024 >= 5 * 19 * 1200
    assert shell(room, "cat d*/f7 | sort -u | wc -l").strip() == "1"
    size, used, free = map(int, shell(room, "df --output=size,used,avail . | tail -1").split())
    assert size >= used >= 0
    assert size >= free > 0
    assert shell(room, "df -i . | tail -1")
    assert shell(room, "stat -f -c %l .").strip() == "255"


def test_stats_are_not_walked_into(shared_mount: Mount, room: Path, disk: Path) -> None:
    """Reachable by name, absent from listings: tar, rsync, find, grep -r and du do not meet it."""
    (room / "file").write_text("content")
    assert ".stats" not in os.listdir(shared_mount.path)
    assert (shared_mount.path / ".stats" / "health.json").exists()
    top = shared_mount.path
    assert ".stats" not in shell(top, "find . -maxdepth 1")
    assert ".stats" not in shell(top, "tar -cf - . | tar -tf - | cut -d/ -f2 | sort -u")
    assert ".stats" not in shell(top, "grep -rl healthy . || true")
    if shutil.which("rsync"):
        run("rsync", "-a", "--include=/.*", "--exclude=/room*", f"{top}/", disk / "copy")
        assert not (disk / "copy" / ".stats").exists()
    shutil.copytree(top / ".stats", disk / "stats")
    wanted = {"health.json", "stats.json", "metrics.json", "config.json", "caiafs.prom"}
    assert wanted <= set(os.listdir(disk / "stats"))


def test_shell_redirections_and_pipes(room: Path) -> None:
    script = """
        echo one > f && echo two >> f && cat f f > g && test "$(wc -l < g)" = 4
        (for n in 1 2 3; do echo $n; done) | tee t | sort -r > s && test "$(head -1 s)" = 3
        exec 3<> rw && echo hello >&3 && exec 3>&- && test "$(cat rw)" = hello
        mkfifo p && (cat f > p &) && test "$(cat p | wc -l)" = 2
        dd if=/dev/urandom of=big bs=64k count=40 status=none conv=fsync && cmp big <(cat big)
        mkdir sub && cp big sub/ && cmp big sub/big && mv sub/big moved && cmp big moved
        truncate -s 1M big && cmp big <(head -c 1M moved)
        truncate -s 3M big && test "$(stat -c %s big)" = 3145728
        ln -s nowhere dangling && ln -sfn f dangling && test "$(readlink dangling)" = f
        install -m 600 f installed && test "$(stat -c %a installed)" = 600
        split -l 1 g part. && cat part.* | cmp - g && test "$(ls part.* | wc -l)" = 4
        gzip -k big && gunzip -t big.gz
    """
    shell(room, script)


def test_a_process_watches_with_inotify(room: Path) -> None:
    """Local changes are told by the kernel; tail -f lives on it."""
    path = room / "log"
    path.write_text("start\n")
    with subprocess.Popen(["tail", "-n", "+1", "-f", path], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout
        assert tail.stdout.readline() == "start\n"
        with path.open("a") as log:
            log.write("more\n")
        assert tail.stdout.readline() == "more\n"
        tail.terminate()


def test_rm_recursive(room: Path, disk: Path) -> None:
    populate(room / "tree")
    run("rm", "-rf", room / "tree")
    assert os.listdir(room) == []


def test_ownership_tools(room: Path) -> None:
    need_root()
    shell(room, "mkdir -p a/b && touch a/b/c && chown -R 12:34 a && chmod -R g+s,u+X a && ls -ln a/b")
    assert (room / "a" / "b" / "c").stat().st_uid == 12
