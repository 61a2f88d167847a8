"""What the documents hold that can be tried: commands, Python blocks, links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NAMES = [page.name for page in PAGES]
_FENCE = re.compile(r"^```([\w]*)([^\n]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4,}|\t)[^\n]*\n|^\n)+", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELLS = ("", "bash", "sh", "console")
# A word or a bracket ends what is a command of ours on a shell line.
_ENDS = {"|", "||", "&&", ";", ">", "&"}


class Block(NamedTuple):
    """line: of its first line in the page, from 1.  title: of the file it stands for, or ""."""

    language: str
    title: str
    line: int
    text: str


class Command(NamedTuple):
    """words: after `cddnet`.  whole: stands in a block; else quoted in a sentence or a table."""

    words: tuple[str, ...]
    whole: bool

    @property
    def text(self):
        return shlex.join(self.words)

    @property
    def partial(self):
        return "..." in self.words


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    """Fenced blocks of a page."""
    text = text_of(page)
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match[2])
        line = text.count("\n", 0, match.start(3)) + 1
        yield Block(match[1], title[1] if title else "", line, match[3])


def shell_text(page):
    """Everything in the page that somebody might type: blocks that are no program or file."""
    rest = _FENCE.sub("\n", text_of(page))
    fenced = [block.text for block in blocks(page) if block.language in _SHELLS]
    return "\n".join([*fenced, *(match[0] for match in _INDENTED.finditer(rest))])


def spans(page):
    """Code quoted in sentences and tables, in one line each."""
    rest = _INDENTED.sub("\n", _FENCE.sub("\n", text_of(page)))
    return [" ".join(match[1].split()) for match in _SPAN.finditer(rest)]


def commands(page):
    """Every command of ours in a page, in order: those in blocks, then those in sentences."""
    for line in shell_text(page).replace("\\\n", " ").splitlines():
        yield from _of_line(line, whole=True)
    for span in spans(page):
        yield from _of_line(span, whole=False)


def _of_line(line, *, whole):
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line.strip().removeprefix("$ "))
    if not re.match(r"(\.venv/bin/)?(cddnet|torchrun [^|]*--no-python cddnet) [a-z.-]", line):
        return
    words = shlex.split(line, comments=True)
    start = next(n for n, word in enumerate(words) if word.split("/")[-1] == "cddnet") + 1
    ends = [n for n, word in enumerate(words) if word in _ENDS]
    yield Command(tuple(words[start : min([*ends, len(words)])]), whole)


def anchors(page):
    """Names of the headings of a page, as both MkDocs and GitHub make them of plain words."""
    text = _FENCE.sub("\n", text_of(page))
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower()) for name in headings
    }


def links(page):
    """Targets of the links and pictures of a page."""
    rest = _INDENTED.sub("\n", _FENCE.sub("\n", text_of(page)))
    return re.findall(r"\]\(([^)\s]+)\)", _SPAN.sub("", rest))
