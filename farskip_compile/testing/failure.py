"""What a failed assertion says, and refusals of the compiler as failed assertions.

Contract: plain text, no wider than 80 columns where it is ours; the text of an error is given as it is. pytest and
unittest show it as the message of an `AssertionError`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from farskip_compile._compat import BackendCompilerFailed, TorchDynamoException
from farskip_compile.errors import FarSkipError
from farskip_compile.explain import not_captured

WIDTH = 80


def failure(headline: str, *parts: str, way_out: str = "") -> AssertionError:
    """An error with a headline, indented parts and a way out.

    Args:
        headline: what was asserted and is not so; wrapped.
        parts: paragraphs, each line of which is wrapped; drawings stay as they are, since they are narrow.
        way_out: what the user can do; wrapped.
    """
    lines = textwrap.wrap(headline, WIDTH)
    for part in filter(None, parts):
        for line in part.splitlines():
            room = len(line) - len(line.lstrip()) + 4
            wrapped = textwrap.wrap(line, WIDTH - 2, subsequent_indent=" " * room) if len(line) > WIDTH - 2 else [line]
            lines += [f"  {one}".rstrip() for one in wrapped]
    if way_out:
        indent = "  way out: "
        lines += textwrap.wrap(way_out, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
    return AssertionError("\n".join(lines))


@contextmanager
def refusals_fail() -> Iterator[None]:
    """Turn what the compiler refuses within the block into an `AssertionError` with the same text."""
    try:
        yield
    except FarSkipError as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    except BackendCompilerFailed:
        raise  # a defect of a compiler, whose traceback is needed
    except TorchDynamoException as error:
        refusal = not_captured(error)
        more = [
            f"  {label} {text}" for label, text in (("where:  ", refusal.where), ("way out:", refusal.way_out)) if text
        ]
        raise AssertionError("\n".join([f"{refusal.error}: {refusal.reason}", *more])) from error


def some(names: list[str], most: int = 5) -> str:
    """Names in a row, the first few of them."""
    head = ", ".join(names[:most])
    return f"{head} and {len(names) - most} more" if len(names) > most else head
