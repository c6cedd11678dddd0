# SPDX-License-Identifier: Apache-2.0
"""Faults in the passes that cut exchanges in pieces: one line is another, and rows go elsewhere, silently. What was cut
is right by shape in each of them; the proof must refuse it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import blocks, by_expert
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens import batch, copies, cut_by_token, region, sliced
from farskip_compile.verify.tokens import verify_tokens
from farskip_compile.verify.tokens.by_expert import verify_by_expert
from tests.mutation.bench import Fault, Verdict, code, mutated
from tests.passes.pieces import layers_without_drops as layers
from tests.passes.pieces import sliced_layers
from tests.passes.pieces import test_by_expert as by_hand

Capture = Callable[[], fx.GraphModule]
Cut = tuple[Callable[[fx.Graph], object], Callable[[fx.Graph, GraphSnapshot], object], str]
"""What cuts, what proves, and what that is called."""

BY_TOKEN: Cut = (lambda graph: cut_by_token(graph, lambda _: 2), verify_tokens, "proof of tokens")
OF_THE_BATCH: Cut = (lambda graph: batch.cut_batch(graph, 2), verify_tokens, "proof of tokens")
BY_EXPERT: Cut = (lambda graph: by_expert.cut_by_expert(graph, lambda _: 2), verify_by_expert, "proof by expert")

OURS: Capture = functools.cache(lambda: layers.captured(layers.ours))
MIXED: Capture = functools.cache(lambda: layers.captured(layers.two_layers_that_mix))
JOINED: Capture = functools.cache(lambda: layers.captured(layers.stack_that_joins, batch=2))
DROPPING: Capture = functools.cache(lambda: layers.captured(sliced_layers.stack_of(sliced_layers.with_drops), batch=2))
EXPERTS: Capture = functools.cache(lambda: by_hand.captured(by_hand.ours))
TURNED: Capture = functools.cache(
    lambda: by_hand.captured(lambda x, e: by_hand.by_hand(x, e, order=lambda blocks: blocks[::-1]))
)
COUNTED_OTHERWISE: Capture = functools.cache(
    lambda: by_hand.captured(lambda x, e: by_hand.by_hand(x, e, counted=lambda counts: counts.flip(0)))
)


def whole(capture: Capture) -> fx.Graph:
    """The graph before it is cut; a new one each time."""
    module = capture()
    graph = GraphSnapshot(module.graph).restore()
    graph.owning_module = module
    return graph


def cut_code(capture: Capture, cut: Cut) -> list[str]:
    """What the right pass makes of it."""
    graph = whole(capture)
    try:
        cut[0](graph)
    except NotSeparableError:  # refused, where the fault does not see why
        return []
    return code(graph)


def in_pieces(name: str, function: Callable[..., Any], old: str, new: str, capture: Capture, cut: Cut) -> Fault:
    """`old` is replaced by `new` in the source of `function`."""

    def judge() -> Verdict | None:
        right, graph = cut_code(capture, cut), whole(capture)
        before = GraphSnapshot(graph)
        with mutated(function, old, new):
            cut[0](graph)
        graph.lint()
        assert code(graph) not in (right, code(whole(capture))), "an equivalent mutant"
        try:
            cut[1](graph, before)
        except VerificationError as error:
            return Verdict.of(cut[2], error)
        return None

    where = f"pieces.{function.__module__.rpartition('.')[2]}.{function.__name__}"
    return Fault(name, where, judge)


ALL_KEEP_ROWS = "all(ops.op_name(node) in MADE or keeps_rows(node) for node in between)"

FAULTS: list[Fault] = [
    in_pieces("pieces: each has the first rows", copies._Copies._narrow, "low * each", "0", OURS, BY_TOKEN),
    in_pieces(
        "pieces: put together in reverse",
        copies._Copies._joined,
        "list(self.of[node])",
        "list(reversed(self.of[node]))",
        OURS,
        BY_TOKEN,
    ),
    in_pieces(
        "pieces: tokens that meet between two layers",
        region._between,
        f"not {ALL_KEEP_ROWS}",
        "False",
        MIXED,
        BY_TOKEN,
    ),
    in_pieces(
        "micro-batches: what joins sequences is cut",
        batch._may_copy,
        "keeps_batch(node)",
        "True",
        JOINED,
        OF_THE_BATCH,
    ),
    in_pieces(
        "micro-batches: rows that have no room are others in parts",
        sliced._region,
        "refuse_drops(window.ordered(inside), rows)",
        "pass",
        DROPPING,
        OF_THE_BATCH,
    ),
    in_pieces(
        "pieces by expert: each expert gets the rows of another",
        by_expert._Cut._dispatch,
        "for expert in range(low, high):",
        "for expert in reversed(range(low, high)):",
        EXPERTS,
        BY_EXPERT,
    ),
    in_pieces(
        "pieces by expert: rows put where another piece's belong",
        by_expert._Cut._combine,
        "places[number :: len(arrived)]",
        "places[len(arrived) - 1 - number :: len(arrived)]",
        EXPERTS,
        BY_EXPERT,
    ),
    in_pieces(
        "pieces by expert: the order of what goes back is not read",
        blocks._made_of,
        "not all(map(same_dim, lengths, wanted))",
        "False",
        TURNED,
        BY_EXPERT,
    ),
    in_pieces(
        "pieces by expert: counts that the other rank does not have",
        blocks._is_exchange_of,
        "given is not counts or",
        "",
        COUNTED_OTHERWISE,
        BY_EXPERT,
    ),
]
