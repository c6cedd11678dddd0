"""Capture a model for an assertion: as it was compiled, or, if it is not compiled, as it would be.

Contract: nothing is run (see `farskip_compile.capture`); refusals of the compiler are failures of the assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.capture import Capture, Then, capture, is_compiled_inside
from farskip_compile.config import FarSkipConfig
from farskip_compile.report.compile import Outcome
from farskip_compile.testing.failure import failure, refusals_fail


def captured(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: FarSkipConfig,
    then: Then | None = None,
) -> Capture:
    """The capture of `model(*args, **kwargs)`.

    Args:
        model: compiled with farskip, or not compiled at all.
        args: example inputs.
        kwargs: example inputs by name.
        config: for a model that is not compiled.
        then: see `capture`.

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
