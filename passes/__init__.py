# SPDX-License-Identifier: Apache-2.0
"""The passes, installed as `farskip_compile.passes`; the folder stands at the top level for the reader.

`PASSES` is the only place where the order of the passes is written down. A pass is a plain function with typed
arguments and a typed result; `compiler/pipeline.py` and `compiler/inductor_passes` call it through
`passes/runner.py`, which refuses any other order. No pass keeps state or reads the configuration by itself.

`farskip_compile.verify` checks each pass that changes a graph, and no option switches that off: the runner delivers no
graph that was changed and not verified since.

All passes stand on `graph.ops` and `graph.effects`, and on `residual.termset` and `residual.table`, the data structure
that they hand on.
"""

from __future__ import annotations

from farskip_compile.passes.contract import Changes, Pass, Stage

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
