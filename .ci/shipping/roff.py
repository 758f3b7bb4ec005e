"""Markdown in, the man(7) language out: as much of it as docs/ uses.

Headings, paragraphs, lists, code blocks and tables. A table becomes a list of tagged paragraphs: the first
cell is the tag, the last one the text, what lies between is told after it. The output is plain ASCII, so that
it reads the same in every locale, and is free of warnings of groff and mandoc, which a test keeps true.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping

_PLAIN = {
    "…": "...",
    "→": "->",
    "←": "<-",
    "–": "-",
    "—": "-",
    "µ": "u",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
}
_INLINE = re.compile(
    r"(?P<code>`+)(?P<verbatim>.+?)(?P=code)|\*\*(?P<bold>.+?)\*\*|\[(?P<text>[^]]+)\]\((?P<link>[^)\s]+)\)"
    r"|(?<![\w*])\*(?P<italic>[^*\s][^*]*?)\*(?!\w)"
)
_BULLET = re.compile(r"(?P<mark>[-*]|\d+\.) +(?P<text>.*)")


class Writer:
    """Turns Markdown into lines of man(7). *pages* names the manual page that stands for a linked file."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages
        self._wrap = textwrap.TextWrapper(78, break_long_words=False, break_on_hyphens=False)
        self.lines: list[str] = []

    def section(self, title: str) -> None:
        """A heading of the first order."""
        self.lines.append(f".SH {_quoted(escape(title.upper()))}")

    def text(self, markdown: str) -> None:
        """Everything in *markdown*; its headings become headings of the second order."""
        lines = markdown.strip("\n").split("\n")
        after_heading = True
        while lines:
            line = lines[0]
            if not line.strip():
                lines.pop(0)
                continue
            if heading := re.match(r"#+ +(.*)", line):
                lines.pop(0)
                self.lines.append(f".SS {_quoted(self.inline(heading[1]))}")
                after_heading = True
                continue
            if line.startswith("```"):
                self._code(_fenced(lines), after_heading)
            elif line.startswith("    "):
                self._code(_indented(lines), after_heading)
            elif line.startswith("|"):
                self._table(_while(lines, lambda each: each.startswith("|")))
            elif _BULLET.match(line):
                self._list(_while(lines, lambda each: bool(_BULLET.match(each) or each.startswith("  "))))
            else:
                if not after_heading:
                    self.lines.append(".PP")
                words = _while(lines, lambda each: bool(each.strip()) and not each.startswith(("```", "|")))
                self._flow(" ".join(word.strip() for word in words))
            after_heading = False

    def tagged(self, tag: str, body: str) -> None:
        """One paragraph with a tag at its side; both are Markdown."""
        self.lines.append(".TP")
        self._flow(tag if tag.startswith(("`", "**")) else f"**{tag}**")
        self._flow(body)

    def inline(self, text: str) -> str:
        """One run of text with its code, emphasis and links."""
        out, at = "", 0
        for match in _INLINE.finditer(text):
            out += escape(text[at : match.start()])
            at = match.end()
            if match["code"]:
                out += rf"\fB{escape(match['verbatim'].strip(), code=True)}\fP"
            elif match["bold"]:
                # Emphasis within emphasis would end it too early: only the words count.
                out += rf"\fB{escape(match['bold'].replace('`', ''))}\fP"
            elif match["italic"]:
                out += rf"\fI{escape(match['italic'])}\fP"
            else:
                file = match["link"].partition("#")[0]
                page = self._pages.get(file, "")
                named = match["text"] in (file, match["link"])
                out += escape(page if page and named else match["text"] + (f" ({page})" if page else ""))
        return out + escape(text[at:])

    def _flow(self, text: str) -> None:
        # A sentence a line, as man pages are written: then no line of the source grows without end.
        for sentence in re.split(r"(?<=[.:;?!]) +(?=[A-Z`*(\[])", text):
            for line in textwrap.wrap(
                self.inline(sentence), 78, break_long_words=False, break_on_hyphens=False
            ):
                self.lines.append(rf"\&{line}" if line[:1] in (".", "'") else line)

    def _code(self, block: Iterable[str], after_heading: bool) -> None:
        if not after_heading:
            self.lines.append(".PP")
        self.lines += [".RS 4", ".nf"]
        for line in block:
            shown = escape(line, code=True)
            self.lines.append(rf"\&{shown}" if shown[:1] in (".", "'", "") else shown)
        self.lines += [".fi", ".RE"]

    def _table(self, rows: Iterable[str]) -> None:
        table = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
        head, *body = (row for row in table if not all(re.fullmatch(r":?-+:?", cell) for cell in row))
        for tag, *between, last in body:
            told = [f"{name}: {cell}." for name, cell in zip(head[1:-1], between, strict=True) if cell]
            if told and last and not last.endswith((".", "?", "!")):
                last += "."
            self.tagged(tag or "-", " ".join(filter(None, [last, *map(_sentence, told)])) or "-")

    def _list(self, lines: list[str]) -> None:
        items: list[tuple[str, str]] = []
        for line in lines:
            if match := _BULLET.match(line):
                items.append((match["mark"], match["text"]))
            else:
                mark, text = items[-1]
                items[-1] = mark, f"{text} {line.strip()}"
        for mark, text in items:
            self.lines.append(r".IP \(bu 2" if mark in "-*" else f".IP {mark} 4")
            self._flow(text)


def escape(text: str, *, code: bool = False) -> str:
    """*text* for roff: nothing in it is taken for markup."""
    for char, plain in _PLAIN.items():
        text = text.replace(char, plain)
    text = text.replace("\\", r"\e")
    if code:
        text = text.replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
        text = text.replace("~", r"\(ti").replace("^", r"\(ha")
    if not text.isascii():
        text = "".join(char if char.isascii() else rf"\[u{ord(char):04X}]" for char in text)
    return text


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', r"\(dq") + '"'


def _while(lines: list[str], belongs: Callable[[str], bool]) -> list[str]:
    taken = []
    while lines and belongs(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _fenced(lines: list[str]) -> list[str]:
    lines.pop(0)
    block = _while(lines, lambda each: not each.startswith("```"))
    del lines[:1]
    return block


def _indented(lines: list[str]) -> list[str]:
    block: list[str] = []
    while lines:
        blank = not lines[0].strip() and lines[1:2] and lines[1].startswith("    ")
        if not blank and not lines[0].startswith("    "):
            break
        block.append(lines.pop(0)[4:])
    return block
