"""The passes, installed as `farskip_compile.passes`; the folder stands at the top level for the reader.

`PASSES` is the only place where passes and their order are written down; `driver` runs any part of it. A pass is a
function of what it `takes`, by name: a graph, the configuration, and what earlier passes provide. It returns what it
`provides`. None of them keeps state or reads the configuration by itself.

What has to be verified is verified by `farskip_compile.verify`, which no option can switch off: the driver delivers no
graph whose function or order has changed and that was not verified since.

Common ground of all passes: `graph.ops` and `graph.effects` (the only files that know operator names), and
`residual.termset` and `residual.table` (the data structure that they hand on).
"""

from __future__ import annotations

from farskip_compile.passes.contract import Changes, Pass, Stage

PASSES = (
    Pass(
        "arrive",
        "boundary.arrive:write_boundary",
        Stage.DYNAMO,
        "open activation checkpoints; in a part of a model, write out what an earlier part has left to do",
        takes=("module", "autocast"),
        provides=("boundary",),
        changes=Changes.FORM,
    ),
    Pass(
        "normalize",
        "normalize:normalize",
        Stage.DYNAMO,
        "give each value one name",
        takes=("module",),
        requires=("boundary",),
        provides=("normalized",),
        changes=Changes.FORM,
    ),
    Pass(
        "residual",
        "residual:read_table",
        Stage.DYNAMO,
        "read the connectivity table off the graph",
        takes=("graph",),
        requires=("normalized",),
        provides=("reading",),
        may_decline=True,
    ),
    Pass(
        "request",
        "rewire.request:ask",
        Stage.DYNAMO,
        "translate the connectivity asked for into the terms that each row leaves out",
        takes=("table", "connectivity", "layers", "leaving"),
        provides=("request",),
    ),
    Pass(
        "rewire",
        "rewire:rewire",
        Stage.DYNAMO,
        "edit the graph to match the request",
        takes=("module", "reading", "request"),
        provides=("collectives_split",),
        changes=Changes.FUNCTION,
    ),
    Pass(
        "merge_reductions",
        "rewire.merge_reductions:merge_reductions",
        Stage.DYNAMO,
        "on request: one all-reduce for the attention and the shared experts, or for all of a layer",
        takes=("module", "connectivity"),
        requires=("collectives_split",),
        provides=("reductions_merged",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "tags",
        "residual.tags:tag_terms",
        Stage.DYNAMO,
        "note on each node which terms it computes, for reports and for the first order that is tried",
        takes=("stream", "regions", "term_names"),
    ),
    Pass(
        "depart",
        "boundary.depart:cut",
        Stage.DYNAMO,
        "in a part of a model: return apart, and in flight, what the next part leaves out",
        takes=("graph", "stream", "term_names", "table_as_wired", "boundary", "leaving", "autocast", "pieces_later"),
        provides=("departure",),
        changes=Changes.INTERFACE,
    ),
    Pass(
        "micro_batches",
        "pieces.tokens.batch:cut_batch",
        Stage.REWIRED,
        "on request: the batch in parts through the whole stack, each with exchanges of its own",
        takes=("graph", "parts"),
        provides=("pairs",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "pieces_by_expert",
        "pieces.by_expert:cut_by_expert",
        Stage.REWIRED,
        "on request: exchanges without drops in pieces, each the rows of some local experts",
        takes=("graph", "how_many"),
        provides=("stay_whole",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "pieces_by_token",
        "pieces.tokens:cut_by_token",
        Stage.REWIRED,
        "on request: exchanges without drops in pieces, each the rows of some tokens",
        takes=("graph", "pieces_of"),
        provides=("tokens_cut",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "pieces_go_on",
        "pieces.tokens.onward:hand_on",
        Stage.REWIRED,
        "in a part of a model: pieces of tokens that come in go on to its exchange, each by itself",
        takes=("graph",),
        provides=("handed_on",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "pieces",
        "pieces:cut_exchanges",
        Stage.POST_GRAD,
        "on request: exchanges and what lies between them in pieces, along local experts or slots",
        takes=("graph", "pieces"),
        provides=("pieces_cut",),
        changes=Changes.ROUNDING,
    ),
    Pass(
        "in_flight",
        "schedule.in_flight:leave_in_flight",
        Stage.POST_GRAD,
        "in a part of a model: leave the waits to the next part that are its",
        takes=("graph", "training"),
        provides=("left_in_flight",),
        changes=Changes.ORDER,
    ),
    Pass(
        "collectives",
        "schedule.collectives:normalize_collectives",
        Stage.POST_GRAD,
        "one launch and one wait for each collective; all-to-alls move to their own process group on request",
        takes=("graph", "regroup"),
        provides=("collapsed",),
        changes=Changes.FORM,
    ),
    Pass(
        "schedule_graph",
        "schedule.graph:schedule_graph",
        Stage.POST_GRAD,
        "order the graph for overlap",
        takes=("graph", "estimate", "limits", "in_place", "backward"),
        requires=("collapsed",),
        provides=("schedule",),
        changes=Changes.ORDER,
    ),
    Pass(
        "pin_waits",
        "schedule.graph:pin_waits",
        Stage.POST_GRAD,
        "keep each wait after the products that hide its collective, through fusion",
        takes=("graph",),
        requires=("collapsed",),
        provides=("waits_pinned",),
        changes=Changes.ORDER,
    ),
    Pass(
        "pin_products",
        "schedule.kernels:pin_products",
        Stage.BEFORE_FUSION,
        "keep the products that hide a collective after its launch, through fusion",
        takes=("kernels",),
        changes=Changes.FORM,
    ),
    Pass(
        "schedule_kernels",
        "schedule.kernels:schedule_kernels",
        Stage.AFTER_FUSION,
        "order the fused kernels for overlap",
        takes=("kernels", "estimate", "limits", "input_bytes"),
        provides=("kernels", "schedule"),
        changes=Changes.ORDER,
    ),
)
