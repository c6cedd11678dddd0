# SPDX-License-Identifier: Apache-2.0
"""The record of a pass in `PASSES`: its name, stage and purpose, and what it may change. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The form of the program that a pass edits, and the time at which it runs."""

    DYNAMO = "Dynamo graph"
    """Before differentiation; `compiler/pipeline.py` runs these passes."""
    REWIRED = "Dynamo graph, rewired or not"
    """Before differentiation, after all passes that change the function; `compiler/inductor_passes` runs the rest."""
    POST_GRAD = "post-grad graph"
    """Inside Inductor, once each for forward and backward."""
    BEFORE_FUSION = "kernels before fusion"
    AFTER_FUSION = "kernels after fusion"


class Changes(StrEnum):
    """The most that a pass may change."""

    NOTHING = "analysis only"
    FORM = "same function"
    ORDER = "same function, another order"
    INTERFACE = "same function, returned in parts"
    ROUNDING = "same function up to rounding"
    FUNCTION = "new function"

    @property
    def must_be_verified(self) -> bool:
        """Return whether `farskip_compile.verify` has to check the result before it is delivered."""
        return self is not Changes.NOTHING


@dataclass(frozen=True)
class Pass:
    """One pass."""

    name: str
    """The name in logs, traces and `disable_passes`."""
    stage: Stage
    changes: Changes
    purpose: str
    requires: tuple[str, ...] = ()
    """Names of the passes that must have run on the same graph before."""


def why_indispensable(passes: Sequence[Pass], name: str) -> str:
    """Return the reason why the pass called `name` can't be left out; empty if it can."""
    one = next(one for one in passes if one.name == name)
    if one.changes is Changes.FUNCTION:
        return "it makes the function that is asked for"
    if one.changes is Changes.INTERFACE:
        return "the graph after it takes what it returns"
    for other in passes:
        if name in other.requires:
            return f"{other.name} needs what it provides"
    return ""
