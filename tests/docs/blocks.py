# SPDX-License-Identifier: Apache-2.0
"""The code blocks of README.md and docs/, and what becomes of each.

In:    Markdown, as CommonMark reads it: fenced blocks and indented ones.
Out:   a `Block` for each, with what its mark says of it.
Never: runs anything, or imports more than a parser.

A mark is an HTML comment right before a block, so nobody sees it on a page:

    <!-- fragment: tests/FILE.py::TEST -->    a part of a program; these tests run it or the same
    <!-- shown -->                            a picture, a format, a file, or something printed: not run
    <!-- prints -->                           what the block before it, which is run, prints
    <!-- fragments: tests/FILE.py::TEST -->   once on a page: a fragment is what has no mark of its own below this line

Without any of them Python and shell are run as they stand; `text`, `json`, `yaml` and `toml` are shown; and a block
without a language is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS = ("python", "sh")
"""Languages of blocks that can be run."""
DATA = ("text", "json", "yaml", "toml")
MARK = re.compile(r"<!-- (shown|prints|fragments?: (.+)) -->\s*")
ANY_MARK = re.compile(r"<!--\s*(?:shown|prints|fragment)")


class Unclear(ValueError):
    """A block, or a mark, that says nothing or too much; the message begins with its page and line."""


@dataclass(frozen=True)
class Block:
    """`tests`: ids of tests that cover a fragment; `becomes`: "run", "fragment", "shown" or "prints"."""

    page: Path
    line: int
    language: str
    text: str
    becomes: str
    tests: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, text: str) -> Iterator[Block]:
    """All blocks of `text`, in their order; `page` is what messages name.

    Raises:
        Unclear: a block without a language or a mark, a mark without a block, two marks for a page.
    """
    name = page.relative_to(ROOT)
    mark: re.Match[str] | None = None
    rest: tuple[str, ...] = ()
    before: Block | None = None
    parser = MarkdownIt("commonmark").enable("table")
    for token in parser.parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block"):
            language = token.info.split(" ")[0]
            found = _classified(Block(page, line, language, token.content, ""), mark, rest)
            if found.becomes == "prints" and (before is None or before.becomes != "run"):
                raise Unclear(f"{found}: no block that is run stands before what it prints")
            before, mark = found, None
            yield found
            continue
        if mark is not None:
            raise Unclear(f"{name}:{line}: a block must follow {mark.group().strip()}")
        if token.type in ("html_block", "html_inline") and ANY_MARK.search(token.content):
            mark = MARK.fullmatch(token.content)
            if mark is None:
                raise Unclear(f"{name}:{line}: not a mark: {token.content.strip()}")
            if mark.group(1).startswith("fragments"):
                if rest:
                    raise Unclear(f"{name}:{line}: the page has two marks for the rest of it")
                rest, mark = _names(mark.group(2)), None
        elif any(ANY_MARK.search(child.content) for child in token.children or () if child.type == "html_inline"):
            raise Unclear(f"{name}:{line}: a mark stands on lines of its own, with an empty one before it")
    if mark is not None:
        raise Unclear(f"{name}: a block must follow {mark.group().strip()}")


def all_blocks() -> list[Block]:
    """Those of README.md and of every page."""
    return [block for page in PAGES for block in blocks(page, page.read_text(encoding="utf-8"))]


def commands(block: Block) -> Iterator[str]:
    """The lines of a block of shell, or of one without a language, without prompts, comments and continuations."""
    if block.language not in ("", "sh"):
        return
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        bare = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
        if bare:
            yield bare


def inline_code(text: str) -> Iterator[str]:
    """What stands between backticks in paragraphs and tables; not in quotes, which say what a program says."""
    quotes = 0
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        quotes += token.nesting if token.type.startswith("blockquote") else 0
        for child in () if quotes else token.children or ():
            if child.type == "code_inline":
                yield child.content


def _classified(block: Block, mark: re.Match[str] | None, rest: tuple[str, ...]) -> Block:
    """The block with what becomes of it."""
    if mark is not None:
        word = mark.group(1).split(":")[0]
        return replace(block, becomes=word, tests=_names(mark.group(2)) if word == "fragment" else ())
    if rest:
        return replace(block, becomes="fragment", tests=rest)
    if block.language in PROGRAMS:
        return replace(block, becomes="run")
    if block.language in DATA:
        return replace(block, becomes="shown")
    raise Unclear(f"{block}: a block of {block.language or 'no language'} needs a mark, see tests/docs/blocks.py")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
