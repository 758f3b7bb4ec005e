"""The status page in a browser, over a real mount: with scripts and without, and with hostile names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, need_chromium
from support.mounts import Mount, Mounts, need_fuse, wait_until

HOSTILE = "<script>document.title='taken'<\\script>&\"'<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> Iterator[Mount]:
    """One mount with HTTP and two commits, for every look at it."""
    need_chromium()
    need_fuse()
    base = scratch / "page"
    base.mkdir()
    made = Mounts(base)
    mount = made("http=127.0.0.1:0", "commit_interval=1h", "commit_quiet=1h")
    for number in range(8):
        (mount.path / f"chapter {number}.txt").write_text("words")
    mount.commit("-m", "Eight chapters")
    (mount.path / HOSTILE).write_text("x")
    mount.commit("-m", HOSTILE)
    yield mount
    made.finish()


def url(mount: Mount) -> str:
    found: str = mount.stats("config.json")["http"]["url"]
    return found


def shown(browser: Browser, name: str) -> str:
    found: str = browser.evaluate(f"document.querySelector('[data-f=\"{name}\"]').textContent")
    return found


def test_the_page_lives_and_follows_the_mount(served: Mount) -> None:
    with Browser() as browser:
        browser.open(url(served))
        browser.wait("document.documentElement.classList.contains('live')")
        assert shown(browser, "state") == "healthy"
        assert shown(browser, "changes") == "0"
        (served.path / "new").write_text("x")
        browser.wait("document.querySelector('[data-f=changes]').textContent !== '0'")
        assert "the oldest" in shown(browser, "lag")
        served.commit("-m", "Something new")
        browser.wait("document.querySelector('.subject').textContent === 'Something new'")
        browser.wait("document.querySelector('[data-f=changes]').textContent === '0'")
        browser.wait(
            "document.querySelectorAll('[data-chart=rate] .line')[0].getAttribute('d').includes('L')"
        )
        for name in ("memory", "journal", "lag"):
            assert browser.evaluate(f"document.querySelector('[data-chart={name}] .line').getAttribute('d')")
        assert "/s" in shown(browser, "rate")
        assert browser.problems == []
        own = url(served)
        assert {one for one in browser.asked if not one.startswith((own, "data:"))} == set()


def test_names_from_files_and_commits_are_only_text(served: Mount) -> None:
    with Browser() as browser:
        browser.open(url(served))
        for _ in range(2):  # as the server wrote it, and as the script does
            assert browser.evaluate("document.querySelectorAll('img, .commits script').length") == 0
            texts = browser.evaluate("document.querySelector('.commits').textContent")
            assert texts.count(HOSTILE) == 2
            served.caiafs("commit", "-m", "Again", served.path)
            (served.path / "again").write_text(str(os.getpid()))
            served.commit("-m", "Again")
            browser.wait("document.querySelector('.subject').textContent === 'Again'")
        assert browser.evaluate("document.title").startswith("healthy")
        assert browser.problems == []


def test_without_scripts_there_are_the_same_figures(served: Mount) -> None:
    with Browser(scripts=False) as browser:
        browser.open(url(served))
        page = browser.text()
        for words in (
            "healthy",
            "Not in git yet",
            "budget 256 MiB",
            "Latest commits",
            "chapter 0.txt",
            "3 more files",
        ):
            assert words in page
        assert browser.problems == []


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (True, 320)])
def test_it_fits_and_can_be_read(served: Mount, dark: bool, width: int, tmp_path: Path) -> None:
    with Browser(dark=dark, width=width) as browser:
        browser.open(url(served))
        browser.wait("document.documentElement.classList.contains('live')")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(_CONTRAST) == []
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


# Every text against what is behind it: at least 4.5 to 1, as WCAG wants it for reading.
_CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.body.querySelectorAll("*:not(script, style)")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push(`${e.className || e.tagName} ${e.textContent}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
})()"""


def test_a_mount_that_does_not_answer_is_said(mounts: Mounts) -> None:
    need_chromium()
    mount = mounts("http=127.0.0.1:0")
    with Browser() as browser:
        browser.open(url(mount))
        browser.wait("document.documentElement.classList.contains('live')")
        mount.umount()
        browser.wait("document.querySelector('[data-f=state]').dataset.state === 'silent'", 40)
        assert "did not answer" in shown(browser, "reasons")
        assert browser.evaluate("document.title").startswith("no answer")
    wait_until(lambda: mount.daemon is None)
