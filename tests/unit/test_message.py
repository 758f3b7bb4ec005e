"""What commits are called: as a person would, in git's own manner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiafs.committer.message import LISTED, SUBJECT, Line, PathChange, compose, lines_of, subject
from caiafs.store import show

A = (0o100644, b"a" * 20)
B = (0o100644, b"b" * 20)


def added(*paths: bytes) -> list[PathChange]:
    return [PathChange(path, None, (0o100644, b"%20d" % n)) for n, path in enumerate(paths)]


def text(changes: list[PathChange], asked: str | None = None, **more: object) -> str:
    return compose(changes, asked, more.get("outside"), more.get("notes", [])).decode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (PathChange(b"a.txt", None, A), "Add a.txt"),
        (PathChange(b"a.txt", A, B), "Update a.txt"),
        (PathChange(b"docs/a.txt", A, None), "Remove docs/a.txt"),
        (PathChange(b"run.sh", A, (0o100755, A[1])), "Update run.sh"),
        (PathChange(b"\xc3\xa4.txt", None, A), "Add ä.txt"),
        (PathChange(b"\xff.txt", None, A), r'Add "\377.txt"'),
        (PathChange(b"two\nlines", None, A), r'Add "two\012lines"'),
        (PathChange(b"\x1b[31mred", None, A), r'Add "\033[31mred"'),
        (PathChange("\u202egpj.exe".encode(), None, A), r'Add "\342\200\256gpj.exe"'),
    ],
)
def test_one_change_is_named(change: PathChange, expected: str) -> None:
    assert text([change]) == expected + "\n"


def test_a_rename_is_one_line() -> None:
    changes = [PathChange(b"old", A, None), PathChange(b"new", None, A)]
    assert lines_of(changes) == [Line("R", b"old", b"new")]
    assert text(changes) == "Rename old to new\n"


def test_a_move_between_folders_is_a_rename() -> None:
    assert text([PathChange(b"a/f", A, None), PathChange(b"b/f", None, A)]) == "Rename a/f to b/f\n"


def test_of_two_equal_copies_one_is_the_renamed_one() -> None:
    changes = [PathChange(b"old", A, None), PathChange(b"x", None, A), PathChange(b"y", None, A)]
    assert sorted(line.status for line in lines_of(changes)) == ["A", "R"]


def test_of_two_equal_files_that_went_each_is_named() -> None:
    changes = [PathChange(b"p", A, None), PathChange(b"q", A, None), PathChange(b"x", None, A)]
    lines = lines_of(changes)
    assert sorted(line.status for line in lines) == ["D", "R"]
    assert {line.path for line in lines} == {b"p", b"q"}


def test_an_editors_save_is_one_update() -> None:
    """Write a temporary file, rename it over the old one: of the two names one is left."""
    assert text([PathChange(b"notes.txt", A, B)]) == "Update notes.txt\n"


def test_several_changes_of_a_kind_are_counted() -> None:
    assert text(added(b"docs/a", b"docs/sub/b", b"docs/c")) == (
        "Add 3 files under docs/\n\nA docs/a\nA docs/c\nA docs/sub/b\n"
    )


def test_changes_of_several_kinds_are_changes() -> None:
    changes = [PathChange(b"a", None, A), PathChange(b"b", B, None)]
    assert text(changes) == "Change 2 files\n\nA a\nD b\n"


def test_a_common_folder_is_made_of_whole_names() -> None:
    assert subject(lines_of(added(b"doc1/a", b"doc2/b"))) == "Add 2 files"
    assert subject(lines_of(added(b"x/doc1/a", b"x/doc2/b"))) == "Add 2 files under x/"


def test_both_ends_of_a_rename_count_for_the_folder() -> None:
    changes = [PathChange(b"in/a", A, None), PathChange(b"out/a", None, A), PathChange(b"in/b", A, B)]
    assert subject(lines_of(changes)) == "Change 2 files"


def test_a_long_list_is_cut_and_counted() -> None:
    message = text(added(*(b"f%04d" % n for n in range(LISTED + 7))))
    assert message.startswith(f"Add {LISTED + 7} files\n\n")
    assert message.endswith("\n... and 7 more\n")
    assert len(message.splitlines()) == 2 + LISTED + 1


def test_a_long_path_keeps_its_end() -> None:
    line = subject(lines_of(added(b"folder/" * 20 + b"name.txt")))
    assert len(line) <= SUBJECT
    assert line.startswith("Add …")
    assert line.endswith("name.txt")


def test_what_a_person_asked_for_stands_alone() -> None:
    assert (
        text(added(b"a", b"b"), "Before the upgrade\n\nAll of it.\n") == "Before the upgrade\n\nAll of it.\n"
    )


def test_a_merge_says_so_and_what_it_decided() -> None:
    message = text(added(b"a"), outside="1234567890abcdef", notes=["a: changed on both sides"])
    assert message == "Merge changes from outside (1234567890ab)\n\na: changed on both sides\n\nA a\n"


def test_notes_stay_with_a_message_that_was_asked_for() -> None:
    assert text(added(b"a"), "Mine", notes=["a: kept"]) == "Mine\n\na: kept\n"


def test_no_changes_have_a_name_too() -> None:
    assert text([]) == "Record the state of the directory\n"


paths = st.binary(min_size=1, max_size=255).filter(lambda path: b"\0" not in path)


@given(
    st.lists(st.tuples(paths, st.sampled_from([None, A, B]), st.sampled_from([None, A, B])), max_size=8),
    st.none() | st.text("0123456789abcdef", min_size=40, max_size=40),
)
def test_any_names_give_a_message_that_git_takes(
    changes: list[tuple[bytes, tuple[int, bytes] | None, tuple[int, bytes] | None]], outside: str | None
) -> None:
    several = [PathChange(*change) for change in changes if change[1] != change[2]]
    message = compose(several, None, outside, [])
    assert message.endswith(b"\n")
    first, *rest = message.decode().split("\n")
    if outside is None:
        assert 0 < len(first) <= SUBJECT
        assert first.isprintable()
    assert not rest[0]
    assert b"\0" not in message or (outside is not None and "\0" in outside)


@given(
    st.lists(
        st.tuples(paths, st.sampled_from([None, A, B]), st.sampled_from([None, A, B])),
        max_size=8,
        unique_by=lambda change: change[0],
    )
)
def test_every_changed_path_is_on_one_line(
    changes: list[tuple[bytes, tuple[int, bytes] | None, tuple[int, bytes] | None]],
) -> None:
    several = [PathChange(*change) for change in changes if change[1] != change[2]]
    named = [path for line in lines_of(several) for path in (line.path, line.target) if path]
    assert sorted(named) == sorted(change.path for change in several)


@given(paths)
def test_a_shown_path_is_one_printable_line(path: bytes) -> None:
    assert show(path).isprintable()
