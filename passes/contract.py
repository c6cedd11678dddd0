# SPDX-License-Identifier: Apache-2.0
"""The table of all passes: their order, names, stages and purposes, and what each may change. Data only."""

from __future__ import annotations

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


PASSES = (
    Pass(
        "arrive",
        Stage.DYNAMO,
        Changes.FORM,
        "open activation checkpoints; in a part of a model, write out what an earlier part has left to do",
    ),
    Pass("normalize", Stage.DYNAMO, Changes.FORM, "give each value one name", requires=("arrive",)),
    Pass(
        "residual", Stage.DYNAMO, Changes.NOTHING, "read the connectivity table off the graph", requires=("normalize",)
    ),
    Pass(
        "request",
        Stage.DYNAMO,
        Changes.NOTHING,
        "translate the connectivity asked for into the terms that each row leaves out",
    ),
    Pass(
        "rewire",
        Stage.DYNAMO,
        Changes.FUNCTION,
        "edit the graph to match the request",
        requires=("residual", "request"),
    ),
    Pass(
        "merge_reductions",
        Stage.DYNAMO,
        Changes.ROUNDING,
        "on request: one all-reduce for the attention and the shared experts, or for all of a layer",
        requires=("rewire",),
    ),
    Pass(
        "tags",
        Stage.DYNAMO,
        Changes.NOTHING,
        "note on each node which terms it computes, for reports and for the first order that is tried",
    ),
    Pass(
        "depart",
        Stage.DYNAMO,
        Changes.INTERFACE,
        "in a part of a model: return apart, and in flight, the terms that the next part leaves out",
    ),
    Pass(
        "micro_batches",
        Stage.REWIRED,
        Changes.ROUNDING,
        "on request: cut the batch in parts, each with exchanges of its own through the whole stack",
    ),
    Pass(
        "pieces_by_expert",
        Stage.REWIRED,
        Changes.ROUNDING,
        "on request: cut exchanges without drops in pieces, each the rows of some local experts",
    ),
    Pass(
        "pieces_by_token",
        Stage.REWIRED,
        Changes.ROUNDING,
        "on request: cut exchanges without drops in pieces, each the rows of some tokens",
    ),
    Pass(
        "pieces_go_on",
        Stage.REWIRED,
        Changes.ROUNDING,
        "in a part of a model: hand pieces of tokens that come in on to its exchange, each by itself",
    ),
    Pass(
        "custom_collectives",
        Stage.POST_GRAD,
        Changes.ORDER,
        "mark collectives by the user's own operators: launches, and waits that hold what is in flight",
    ),
    Pass(
        "host_reads",
        Stage.POST_GRAD,
        Changes.FORM,
        "on a device: copy the numbers that the host reads of one tensor at once, with compute under the copy",
    ),
    Pass(
        "pieces",
        Stage.POST_GRAD,
        Changes.ROUNDING,
        "on request: cut exchanges and what lies between them in pieces, along local experts or slots",
    ),
    Pass(
        "in_flight",
        Stage.POST_GRAD,
        Changes.ORDER,
        "in a part of a model: leave to the next part the waits that only it needs",
    ),
    Pass(
        "collectives",
        Stage.POST_GRAD,
        Changes.FORM,
        "leave one launch and one wait for each collective; on request, move all-to-alls to their own group",
        requires=("custom_collectives",),
    ),
    Pass("schedule_graph", Stage.POST_GRAD, Changes.ORDER, "order the graph for overlap", requires=("collectives",)),
    Pass(
        "pin_waits",
        Stage.POST_GRAD,
        Changes.ORDER,
        "keep each wait after the products that hide its collective, through fusion",
        requires=("collectives",),
    ),
    Pass(
        "pin_products",
        Stage.BEFORE_FUSION,
        Changes.FORM,
        "keep the products that hide a collective after its launch, through fusion",
    ),
    Pass("schedule_kernels", Stage.AFTER_FUSION, Changes.ORDER, "order the fused kernels for overlap"),
)
"""All passes, in the order in which they run."""


def why_indispensable(name: str) -> str:
    """Return the reason why the pass called `name` can't be left out; empty if it can."""
    one = next(one for one in PASSES if one.name == name)
    if one.changes is Changes.FUNCTION:
        return "it makes the function that is asked for"
    if one.changes is Changes.INTERFACE:
        return "the graph after it takes what it returns"
    for other in PASSES:
        if name in other.requires:
            return f"{other.name} needs what it provides"
    return ""
