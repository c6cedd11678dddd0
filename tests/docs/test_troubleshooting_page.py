# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md: every class of error has a section, in the tree and below it; every quote is in the source.

A quote is an example: where the source puts a value into a message, the page has one.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from farskip_compile import errors
from tests.docs.blocks import ROOT, blocks

PAGE = ROOT / "docs" / "troubleshooting.md"
TEXT = PAGE.read_text(encoding="utf-8")
CLASSES = {
    name: one
    for name, one in vars(errors).items()
    if inspect.isclass(one) and issubclass(one, (errors.FarSkipError, Warning)) and one.__module__ == errors.__name__
}
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL))
QUOTES = [(name, quote) for name, text in SECTIONS.items() for quote in re.findall(r"^> `(.*)`$", text, re.MULTILINE)]
FIXED = 14
"""Characters of a message that must not come from values, or anything would fit."""


def messages(file: Path) -> Iterator[re.Pattern[str]]:
    """Yield the strings of a source file, with anything for values, which may be empty; the first line of several."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else None for part in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node.value]
        else:
            continue
        first, _, _ = "".join("\0" if part is None else part for part in parts).partition("\n")
        if len(first.replace("\0", "")) >= FIXED:
            yield re.compile(re.escape(first).replace(re.escape("\0"), ".*?"))


@functools.cache
def all_messages() -> list[re.Pattern[str]]:
    """Return what each source file can say; not at import, since every process that collects tests would wait."""
    folders = ("farskip_compile", "passes", "models")
    return [found for folder in folders for file in sorted((ROOT / folder).rglob("*.py")) for found in messages(file)]


def test_every_class_has_a_section() -> None:
    assert sorted(SECTIONS) == sorted(CLASSES)


def test_the_tree_is_the_tree() -> None:
    (tree,) = [block.text for block in blocks(PAGE, TEXT) if block.text.startswith("FarSkipError\n")]
    path: list[str] = []
    for line in tree.splitlines():
        lead, name = re.fullmatch(r"(.*?)(\w+)", line).groups()  # type: ignore[union-attr]
        del path[len(lead) // 4 :]
        if path:
            assert CLASSES[name].__bases__[0].__name__ == path[-1], name
        path.append(name)
    assert sorted(re.findall(r"\w+", tree)) == sorted(set(CLASSES) - {"FarSkipWarning"})


@pytest.mark.parametrize(("name", "quote"), QUOTES)
def test_the_source_says_what_is_quoted(name: str, quote: str) -> None:
    assert any(message.fullmatch(quote) for message in all_messages()), f"{name}: nothing says {quote!r}"


def test_every_error_that_is_raised_is_quoted() -> None:
    unquoted = set(SECTIONS) - {name for name, _ in QUOTES}
    # the base, which is not raised, and a line made of names, which tests/cli/test_extras.py has as it is
    assert unquoted == {"FarSkipError", "MissingPackageError"}
