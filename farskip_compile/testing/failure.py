# SPDX-License-Identifier: Apache-2.0
"""What all assertions share: a model is captured, and what a failed one says.

Contract: nothing is run (see `farskip_compile.tools.capture`); refusals of the compiler are failures of the assertion.
Text is plain, no wider than 80 columns where it is ours; that of an error is given as it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import FarSkipError
from farskip_compile.records.compile import Outcome
from farskip_compile.tools.capture import Capture, Then, capture, is_compiled_inside
from farskip_compile.tools.explain import not_captured

WIDTH = 80


def captured(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: FarSkipConfig,
    then: Then | None = None,
) -> Capture:
    """The capture of `model(*args, **kwargs)`: as it was compiled, or with `config` if it is not compiled at all.

    Raises:
        AssertionError: it can't be captured or rewired, or was compiled unchanged.
    """
    with refusals_fail():
        found = capture(model, args, kwargs, None if is_compiled_inside(model) else config, then=then)
    if found.report.outcome is Outcome.REFUSED:
        raise failure("the model is compiled unchanged, because of strict=False:", found.report.reason)
    return found


def in_words(config: FarSkipConfig | Mapping[str, Any]) -> str:
    """A connectivity and its layers, in words."""
    plain = config.to_json() if isinstance(config, FarSkipConfig) else config
    asked, layers = plain["connectivity"], plain["layers"]
    return (f"connectivity {asked!r}" if isinstance(asked, str) else "a user's table") + (
        f", layers {layers[0]} to {layers[1]}" if layers else ", all layers"
    )


def failure(headline: str, *parts: str, way_out: str = "") -> AssertionError:
    """An error with a headline, indented paragraphs and a way out; all lines but those of drawings are wrapped."""
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
    except CAPTURE_ERRORS as error:
        refusal = not_captured(error)
        more = [
            f"  {label} {text}" for label, text in (("where:  ", refusal.where), ("way out:", refusal.way_out)) if text
        ]
        raise AssertionError("\n".join([f"{refusal.error}: {refusal.reason}", *more])) from error


def some(names: list[str], most: int = 5) -> str:
    """Names in a row, the first few of them."""
    head = ", ".join(names[:most])
    return f"{head} and {len(names) - most} more" if len(names) > most else head
