# SPDX-License-Identifier: Apache-2.0
"""What a pass is: its place, its function, what it takes and provides, and what it may change. Data only."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    """On what a pass runs, and when."""

    DYNAMO = "Dynamo graph"
    """Before differentiation; run by `farskip_compile.compiler.pipeline`."""
    REWIRED = "Dynamo graph, rewired or not"
    """Still before differentiation, after all that changes the function; run, like the next, by `inductor_passes`."""
    POST_GRAD = "post-grad graph"
    """Inside Inductor, once each for forward and backward."""
    BEFORE_FUSION = "kernels before fusion"
    AFTER_FUSION = "kernels after fusion"


class Changes(StrEnum):
    """What a pass may change."""

    NOTHING = "analysis only"
    FORM = "same function"
    ORDER = "same function, another order"
    INTERFACE = "same function, returned in parts"
    ROUNDING = "same function up to rounding"
    FUNCTION = "new function"

    @property
    def must_be_verified(self) -> bool:
        """Whether the result is delivered only after `farskip_compile.verify` has looked at it."""
        return self is not Changes.NOTHING


@dataclass(frozen=True)
class Pass:
    """One pass."""

    name: str
    """In logs, traces and `disable_passes`."""
    function: str
    """`module:function` in `farskip_compile.passes`. Loaded when it runs, so that the table of passes imports none."""
    stage: Stage
    purpose: str
    takes: tuple[str, ...]
    """Arguments of the function, in order."""
    provides: tuple[str, ...] = ()
    """What it returns: one value, or a tuple of several."""
    requires: tuple[str, ...] = ()
    """What earlier passes must have provided besides: a property of the graph that no argument shows."""
    changes: Changes = Changes.NOTHING
    may_decline: bool = False
    """It may return None: the graph does not concern this package, and no further pass runs."""

    def load(self) -> Callable[..., Any]:
        """The function."""
        function: Callable[..., Any] = pkgutil.resolve_name(f"farskip_compile.passes.{self.function}")
        return function


def why_indispensable(passes: Sequence[Pass], name: str) -> str:
    """Why the pass called `name` can't be left out; empty if it can."""
    place = next(place for place, one in enumerate(passes) if one.name == name)
    one = passes[place]
    if one.changes is Changes.FUNCTION:
        return "it makes the function that is asked for"
    if one.changes is Changes.INTERFACE:
        return "the graph after it takes what it returns"
    for other in passes[place + 1 :]:
        if other.stage is one.stage and not {*other.takes, *other.requires}.isdisjoint(one.provides):
            return f"{other.name} needs what it provides"
    return ""
