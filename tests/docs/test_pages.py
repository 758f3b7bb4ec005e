"""The tutorial and the how-tos, followed word by word in an empty home with real mounts."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console import Console, follow, matches, need_tools, steps
from support.mounts import need_fuse

pytestmark = pytest.mark.timeout(300)

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]


@pytest.fixture
def console(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Console]:
    need_fuse()
    name = request.node.name.partition("[")[2].rstrip("]")
    base = Path(tempfile.mkdtemp(dir=scratch, prefix=f"page-{name}"))
    made = Console.here(base)
    yield made
    made.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_works_word_by_word(page: Path, console: Console) -> None:
    need_tools(page)
    done = list(follow(page, console))
    assert len(done) >= 5
    status, printed = console.run("caiafs status")
    assert (status, printed) == (0, ["no caiafs mounts"]), "a page ends by unmounting what it mounted"


def test_the_session_that_the_readme_opens_with_works(tmp_path: Path, console: Console) -> None:
    readme = (DOCS.parent / "README.md").read_text()
    session = [line.strip() for line in readme.splitlines() if line.startswith("    $ ")]
    page = tmp_path / "README.md"
    page.write_text("\n".join(["```console", *session, "```"]))
    assert len(list(follow(page, console))) >= 8
    assert console.run("cat notes/groceries.txt") == (0, ["honey, bread"]), "in the clone that it ends with"
    assert console.run("caiafs status")[1] == ["no caiafs mounts"]


def test_every_page_is_listed_in_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in PAGES:
        assert f"({page.relative_to(DOCS.parent)})" in readme


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a"], ["a", "b"], False),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["on ... day"], ["on a fine day"], True),
        (["on ... day"], ["on a fine night"], False),
        (["[main 1a2b3c4] x"], ["[main 99aabbcc] x"], True),
        (["[main 1a2b3c4] x"], ["[main 99aabbcc] y"], False),
        (["a"], [], False),
    ],
)
def test_output_is_compared_loosely_only_where_the_page_says_so(
    shown: list[str], printed: list[str], fits: bool
) -> None:
    assert matches(shown, printed) is fits


def test_a_page_that_lies_is_found(tmp_path: Path, console: Console) -> None:
    for text in ("$ false", "$ echo one\ntwo", "$ true\n[exit 3]"):
        page = tmp_path / "page.md"
        page.write_text(f"```console\n{text}\n```\n")
        with pytest.raises(pytest.fail.Exception, match=r"page\.md:2"):
            list(follow(page, console))


def test_steps_are_read_with_their_continuations(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console install\n$ cat <<END\n> text\n> END\ntext\n```\n```toml\n$ no\n```\n")
    (step,) = steps(page)
    assert (step.command, step.shown, step.install) == ("cat <<END\ntext\nEND", ["text"], True)
    assert subprocess.run(step.command, shell=True, capture_output=True).stdout == b"text\n"
