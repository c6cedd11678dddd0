"""Links of README.md and docs/ lead somewhere: files in the repository, and headings as GitHub names them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.docs.blocks import PAGES, ROOT


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def targets(page: Path) -> Iterator[str]:
    for token in tokens(page):
        for child in token.children or ():
            if child.type in ("link_open", "image"):
                yield str(child.attrs["href" if child.type == "link_open" else "src"])


def anchors(page: Path) -> set[str]:
    """Of headings: lower case, spaces as dashes, without punctuation; again with a number where one comes twice."""
    found: set[str] = set()
    stream = tokens(page)
    for heading, inline in pairwise(stream):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = 0
            while f"{name}-{number}".removesuffix("-0") in found:
                number += 1
            found.add(f"{name}-{number}".removesuffix("-0"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target in targets(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


def test_every_page_is_linked_from_somewhere() -> None:
    linked = set()
    for page in PAGES:
        linked |= {(page.parent / target.split("#")[0]).resolve() for target in targets(page) if target[:1] != "#"}
    assert [str(page.relative_to(ROOT)) for page in PAGES[1:] if page not in linked] == []
