"""What git takes into a tree: every verdict is compared with `git fsck --strict` itself."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store_support import ENVIRONMENT, new_store, tmp_of

from caiafs.store import (
    BLOB,
    CONTENT_CHECK_LIMIT,
    DIRECTORY,
    GITLINK,
    REGULAR,
    SYMLINK,
    TREE,
    Oid,
    Store,
    TreeEntry,
    encode_tree,
    needs_content_check,
    storable_content,
    storable_entry,
    storable_name,
)
from caiafs.store import names as rules

IGNORED = ["\u200c", "\u200d", "\u200e", "\u200f", "\u202a", "\u202e", "\u206a", "\u206f", "\ufeff"]
NOT_IGNORED = ["\u200b", "\u2010", "\u2029", "\u202f", "\u2069", "\u2070", "\u00ad", "\ufffd"]


def hostile_names() -> list[bytes]:
    rng = random.Random(7)
    words = [".git", "git~1", ".gitmodules", ".gitattributes", ".gitignore", ".mailmap"]
    words += ["gitmod~1", "gitatt~2", "gitign~4", "mailma~3", "GI7EBA~1", "gi7d29~1", "gi250a~9", "maba30~1"]
    words += [
        "gi7eb~10",
        "gi7e~123",
        "~1000000",
        "gi7~1234",
        "g~100000",
        "gi7eba~0",
        "gitmod~5",
        "gi7ebA~11",
        "git~2",
    ]
    words += [".gi", "git", ".gitx", ".git~1", "gitmodules", "gitmodul~1", "mailmap", ".mailmap2"]
    names: set[bytes] = {
        b"...",
        b" ",
        b"\\",
        b":",
        b"a",
        b".\\.git",
        b"..\\a",
        b".git\xff",
        b".gi\xfft",
        b"\xff.git",
    }
    for word in words:
        forms = [
            word,
            word.upper(),
            word.capitalize(),
            word[:3].upper() + word[3:],
            word[:-1] + word[-1].upper(),
        ]
        for form in forms:
            for tail in [
                "",
                " ",
                ".",
                ". .",
                ":",
                ":x",
                "::$INDEX_ALLOCATION",
                "x",
                "\\",
                "\\x",
                " :",
                "x:",
                ". x",
                "\t",
            ]:
                names.add((form + tail).encode())
            for head in ["a\\", "\\", "a:\\", "a:", ":", "..\\", "a\\b\\", " ", "."]:
                names.add((head + form).encode())
                names.add((head + form + ".").encode())
        for char in IGNORED + NOT_IGNORED:
            at = rng.randrange(len(word) + 1)
            names.add((word[:at] + char + word[at:]).encode())
            names.add((char + word.upper() + char).encode())
        for raw in (
            b"\xff",
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"\xef\xbf\xbe",
            b"\xef\xbf\xbf",
            b"\xe2\x80",
            b"\xf4\x90\x80\x80",
        ):
            at = rng.randrange(len(word) + 1)
            names.add(word.encode() + raw)
            names.add(raw + word.encode())
            names.add(word[:at].encode() + raw + word[at:].encode())
    names.add(".g\u0131t".encode())
    names.add(".G\u0130T".encode())
    names.add("\u212a.git".encode())
    alphabet = b".gGiItT~1 :\\\xe2\x80\x8c\xfe"
    for _ in range(1500):
        names.add(bytes(rng.choices(alphabet, k=rng.randrange(1, 9))))
    return sorted(name for name in names if b"/" not in name and name not in (b".", b".."))


def complaints(store: Store, trees: Iterable[tuple[int, bytes]]) -> dict[Oid, str]:
    """What `git fsck --strict` says about each object of the repository."""
    with store.pack_writer(tmp_of(store)) as writer:
        for kind, data in trees:
            writer.add(kind, data)
        kept = writer.finish()
    assert kept is not None
    kept.release()
    done = subprocess.run(
        ["git", "fsck", "--strict", "--full", "--no-dangling", "--no-progress"],
        cwd=store.git_dir,
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    found: dict[Oid, str] = {}
    for line in (done.stdout + done.stderr).decode(errors="replace").splitlines():
        match = re.search(r"(?:error|warning) in (?:tree|blob|commit) ([0-9a-f]{40}): (.*)", line)
        if match:
            found[bytes.fromhex(match.group(1))] = match.group(2)
        elif not line.startswith(("notice", "missing", "broken link", "              to")):
            raise AssertionError(line)
    return found


def test_names_are_storable_exactly_when_git_takes_them(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    blob = b"harmless"
    oid = store.pack_writer(tmp_of(store)).add(BLOB, blob)
    trees = {name: encode_tree([TreeEntry(name, REGULAR, oid)]) for name in hostile_names()}
    found = complaints(store, [(BLOB, blob), *((TREE, data) for data in trees.values())])
    with store.pack_writer(tmp_of(store)) as writer:
        refused = {name for name, data in trees.items() if writer.add(TREE, data) in found}
    assert len(refused) > 150
    assert {name for name in trees if not storable_name(name)} == refused
    assert {name for name in trees if not storable_entry(name, REGULAR)} == refused


def test_names_that_no_tree_has_are_not_storable() -> None:
    for name in (b"", b".", b"..", b"a/b", b"/", b"a\0", b"x" * 5000):
        assert not storable_name(name)
        assert not storable_entry(name, REGULAR)
    for name in (b"a", b"\xff", b"a b", b"x" * 255, b"...", b".gitfoo", "é".encode()):
        assert storable_name(name)


@pytest.mark.parametrize("mode", [SYMLINK, DIRECTORY, GITLINK])
def test_special_names_are_storable_only_as_the_kind_git_takes(tmp_path: Path, mode: int) -> None:
    store = new_store(tmp_path)
    names = [name for name in hostile_names() if storable_name(name)]
    writer = store.pack_writer(tmp_of(store))
    target = writer.add(TREE, b"") if mode == DIRECTORY else writer.add(BLOB, b"target")
    writer.abort()
    refused_or_doubtful = set()
    # One object per entry: what is wrong with a target (a directory as .gitmodules) is said of the target.
    trees = {}
    extras: list[tuple[int, bytes]] = []
    for n, name in enumerate(names):
        if mode == DIRECTORY:
            content = encode_tree([TreeEntry(b"f%d" % n, REGULAR, _oid(store, BLOB, b"x"))])
            extras.append((TREE, content))
            target = _oid(store, TREE, content)
        elif mode == SYMLINK:
            extras.append((BLOB, b"target %d" % n))
            target = _oid(store, BLOB, b"target %d" % n)
        else:
            target = (n + 1).to_bytes(20, "big")
        trees[name] = (encode_tree([TreeEntry(name, mode, target)]), target)
    extras.append((BLOB, b"x"))
    found = complaints(store, [*extras, *((TREE, data) for data, _ in trees.values())])
    for name, (data, target) in trees.items():
        if _oid(store, TREE, data) in found or target in found:
            refused_or_doubtful.add(name)
    assert refused_or_doubtful
    ours = {name for name in names if not storable_entry(name, mode)}
    assert refused_or_doubtful <= ours
    if mode != GITLINK:  # a gitlink's target is missing anyway: here git says less than it means
        assert ours == refused_or_doubtful


def _oid(store: Store, kind: int, data: bytes) -> Oid:
    with store.pack_writer(tmp_of(store)) as writer:
        return writer.add(kind, data)


MODULES = [
    b"",
    b"\n\n  # comment\n; other\n",
    b'[submodule "a"]\n\tpath = a\n\turl = https://example.org/a.git\n',
    b'[submodule "a"]\n\tpath = a\n\turl = ../a.git\n\tbranch = main\n\tupdate = rebase\n',
    b'[submodule "a/b"] path = a\nurl = "https://example.org/x" # why\n',
    b'[SubModule "a"]\n\tURL = git@example.org:a/b.git\n',
    b'[submodule "a"]\n\tshallow\n',
    b'[submodule "a"]\n\turl = file:///tmp/x\n\tpath = "with space "\n',
    b'[submodule "a"]\n\turl = ssh://host/x\n\tupdate = none\n',
    b'[core]\n\tfoo = bar\n[submodule "x"]\n\tpath = x\n\turl = ./x\n',
    b'[submodule "a"]\n\tpath = a\\tb\n\turl = ../a.git\n',
    b'[submodule "a"]\n\tpath = one\\\ntwo\n\turl = ../a.git\n',
    b'[submodule "a\\"b"]\n\tpath = a\n\turl = ../a.git\n',
    b'[submodule ".."]\n\tpath = a\n',
    b'[submodule "a/../b"]\n\tpath = a\n',
    b'[submodule "a\\\\..\\\\b"]\n\tpath = a\n',
    b'[submodule ""]\n\tpath = a\n',
    b'[submodule "a"]\n\turl = -u./payload\n',
    b'[submodule "a"]\n\turl = "-u./payload"\n',
    b'[submodule "a"]\n\tpath = -a\n',
    b'[submodule "a"]\n\tpath = "\\"-a"\n',
    b'[submodule "a"]\n\tupdate = !command\n',
    b'[submodule "a"]\n\tupdate = \\\n!command\n',
    b'[submodule "a"]\n\turl = https://example.org/%0ahost=evil\n',
    b'[submodule "a"]\n\turl = https://example.org/%0Ahost=evil\n',
    b'[submodule "a"]\n\turl = http://\n',
    b'[submodule "a"]\n\turl = https:///x\n',
    b'[submodule "a"]\n\turl = https:x\n',
    b'[submodule "a"]\n\turl = http::https://example.org/%0a\n',
    b'[submodule "a"]\n\turl = https::example.org\n',
    b'[submodule "a"]\n\turl = ../../:/x\n',
    b'[submodule "a"]\n\turl = .././../:x\n',
    b'[submodule "a"]\n\turl = ..\\\\../:x\n',
    b'[submodule "a"]\n\turl = ./%0ahost=x\n',
    b'[submodule "a"]\n\turl = ../%0ahost=x\n',
    b'[submodule "a"]\n\turl = git://host/%0ax\n',
    b'[submodule "a"]\n\turl = "a\\nb"\n',
    b'[submodule "a"]\n\turl\n',
    b"[submodule\n",
    b'[submodule "a]\n',
    b"path = before\n",
    b'[submodule "a"]\n\t9path = x\n',
    b'[submodule "a"]\n\tpath = "open\n',
    b'[submodule "a"]\n\tpath = bad\\q\n',
    b'[submodule "a"]\n\tpa_th = x\n',
    b'[submodule "a"] \xff\n',
    b"\xef\xbb\xbf[core]\n",
    b'[submodule "a"]\r\n\tpath = a\r\n',
    b"[submodule.a]\n\turl = -x\n",
    b"[submodule.-a]\n\tpath = x\n",
    b"<html>not found</html>",
    b"\0\0\0",
    b'[submodule "a"]\n\turl = -x\0\n',
    b"[include]\n\tpath = -x\n",
    b'[submodule "a"]\n\tpath = x ; [submodule "b"] url = -x\n',
]
CERTAIN = 13  # that many at the start are ordinary files and have to be taken


def test_only_contents_that_git_takes_are_storable(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rng = random.Random(11)
    contents = {b".gitmodules": list(MODULES), b".gitattributes": [b"", b"* text\n", b"a " + b"x" * 1900]}
    contents[b".gitattributes"] += [b"a " + b"x" * n for n in range(2040, 2052)] + [
        b"\n" * 5000,
        b"\0",
        b"a" * 3000,
    ]
    pieces = [
        b'[submodule "a"]',
        b"[core]",
        b"\n",
        b"\t",
        b"url",
        b"path",
        b"update",
        b" = ",
        b"=",
        b"-x",
        b"!c",
        b'"',
        b"\\",
    ]
    pieces += [
        b"..",
        b"/",
        b":",
        b"http://h/",
        b"%0a",
        b"#",
        b";",
        b'[submodule ".."]',
        b"x",
        b" ",
        b"[",
        b"]",
        b"\\\n",
    ]
    contents[b".gitmodules"] += [b"".join(rng.choices(pieces, k=rng.randrange(1, 14))) for _ in range(1500)]
    objects: list[tuple[int, bytes]] = []
    oids: dict[tuple[bytes, bytes], Oid] = {}
    for name, datas in contents.items():
        for data in datas:
            oid = oids[name, data] = _oid(store, BLOB, data)
            objects += [(BLOB, data), (TREE, encode_tree([TreeEntry(name, REGULAR, oid)]))]
    found = complaints(store, objects)
    wrong = {key: found[oid] for key, oid in oids.items() if oid in found and storable_content(*key)}
    # One blob may be both a .gitmodules and a .gitattributes here: git complains about it once for both.
    shared = {
        data
        for (name, data) in oids
        if (b".gitmodules" if name != b".gitmodules" else b".gitattributes", data) in oids
    }
    assert {key: why for key, why in wrong.items() if key[1] not in shared} == {}
    assert len([oid for oid in oids.values() if oid in found]) > 100
    taken = [key for key, oid in oids.items() if oid not in found and storable_content(*key)]
    assert len(taken) > 50
    for data in MODULES[:CERTAIN]:
        assert storable_content(b".gitmodules", data), data
        assert oids[b".gitmodules", data] not in found


def test_content_matters_only_under_special_names() -> None:
    bad = b'[submodule ".."]\n\turl = -x\n' + b"x" * 3000
    assert storable_content(b"README", bad)
    for name in (
        b".gitmodules",
        b".GITMODULES",
        b"gitmod~1",
        b"GI7EBA~1",
        b".gitattributes. ",
        ".git\u200cmodules".encode(),
    ):
        assert needs_content_check(name)
        assert not storable_content(name, bad)
    for name in (b".gitignore", b".mailmap", b"gitmodules", b".gitmodules2"):
        assert not needs_content_check(name)


def test_a_special_file_beyond_the_limit_is_not_storable() -> None:
    for name, line in itertools.product((b".gitmodules", b".gitattributes"), (b"# x\n",)):
        assert not storable_content(name, line * (CONTENT_CHECK_LIMIT // len(line) + 1))
        assert storable_content(name, line * 1000)


@given(st.from_regex(rules._PLAIN, fullmatch=True))
def test_plain_names_are_what_the_rules_would_find(name: bytes) -> None:
    """The short way for most names. off: a name in `_PLAIN` that a rule is about."""
    assert rules.storable_name(name)
    assert not rules._is_modules(name)
    assert not rules._is_attributes(name)
    assert not rules._is_ignore_or_mailmap(name)


@pytest.mark.parametrize(
    "name", [b"GIT~1", b"gitmod~1", b"GI7EBA~1", b"a:.git", b"a\\.git", b".git", b"gi7d2~12"]
)
def test_what_a_rule_is_about_is_not_plain(name: bytes) -> None:
    assert rules._PLAIN.fullmatch(name) is None
