# SPDX-License-Identifier: Apache-2.0
"""Exchanges without drops in pieces, cut before differentiation and proved; what stays whole is logged.

In:    the module of a Dynamo graph, rewired or not; what was asked for.
Out:   its graph, cut.
Never: takes a cut that is not shown.

Algorithm:
1. By local experts, where each has products of its own: their rows, and the gradients of their weights, stay whole.
2. What is left, or all if asked for, by tokens. Exchanges by all-gather have no other way.
3. What stays whole is an error if a number of pieces was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import fx

from farskip_compile.compiler.config import PieceCount, Resolved
from farskip_compile.compiler.inductor_passes.how_many import best_by_expert, best_by_token
from farskip_compile.compiler.inductor_passes.uncut import LEAVE_WHOLE, leave_whole, place_of
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.errors import VerificationError, Where
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.graph import comms, user_calls
from farskip_compile.passes.pieces.by_expert import cut_by_expert
from farskip_compile.passes.pieces.gathered import BY_GATHER, gathered_exchanges
from farskip_compile.passes.pieces.notes import is_piece, note
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens import cut_by_token
from farskip_compile.passes.pieces.tokens.facts import sizes_of
from farskip_compile.passes.pieces.tokens.onward import hand_on
from farskip_compile.passes.runner import log
from farskip_compile.passes.safe_edit import GraphCopy
from farskip_compile.verify.tokens import verify_tokens
from farskip_compile.verify.tokens.by_expert import verify_by_expert

UncutReasons = dict[str, tuple[str, Where]]
"""The reason and the place, by the launch of each exchange that is not cut."""


def cut_without_drops(module: fx.GraphModule, config: Resolved, profile: HardwareProfile) -> None:
    """Cut the exchanges of a Dynamo graph whose sizes data decides.

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut by expert does not compute the same.
    """
    pieces, along, skip = config.pieces, config.pieces_along, config.disable_passes
    if pieces == 1:
        return
    whole: UncutReasons = {}
    if along != "tokens" and "pieces_by_expert" not in skip:
        whole = _by_expert(module, pieces, profile)
    if along == "experts":
        for launch in (one.launch for one in gathered_exchanges(module.graph)):
            whole[launch.name] = BY_GATHER, user_calls.where(launch)
            note(launch, BY_GATHER)
    if along != "experts" and "pieces_by_token" not in skip:
        whole = _by_token(module, pieces, profile, whole)
    kind = "by all-gather" if gathered_exchanges(module.graph) else "whose sizes data decides"
    for reason, where in whole.values() if pieces != "auto" else ():
        refusal = f"an exchange {kind} can't be cut in {pieces} pieces: {reason}"
        leave_whole(refusal, f"an exchange stays whole: {reason}", LEAVE_WHOLE, where, strict=config.strict)


def hand_on_pieces(module: fx.GraphModule, config: Resolved) -> None:
    """Let pieces of tokens that come in go on, in a part of a model, to its exchange as they are.

    Where that can't be done, or is not proved, the pieces are joined, as they came.
    """
    if "pieces_by_token" in config.disable_passes or "pieces_go_on" in config.disable_passes:
        return
    copy = GraphCopy(module, Stage.REWIRED)
    try:
        if copy.passes.apply("pieces_go_on", hand_on, copy.graph):
            copy.verify_and_swap(verify_tokens)
    except (NotSeparableError, VerificationError) as error:
        log.warning("pieces of tokens that came in from the layer before are joined: %s", error.reason)


def _by_expert(module: fx.GraphModule, pieces: PieceCount, profile: HardwareProfile) -> UncutReasons:
    """Cut exchanges by local experts. Return the reasons for those that stay whole."""
    how_many = partial(best_by_expert, profile) if pieces == "auto" else lambda _: pieces
    copy = GraphCopy(module, Stage.REWIRED)
    whole = copy.passes.apply("pieces_by_expert", cut_by_expert, copy.graph, how_many)
    copy.verify_and_swap(verify_by_expert)
    return {one.node.name: (one.reason, user_calls.where(one.node)) for one in whole}


def _by_token(
    module: fx.GraphModule, pieces: PieceCount, profile: HardwareProfile, uncut: UncutReasons
) -> UncutReasons:
    """Cut by tokens the exchanges that are `uncut`. Return the reasons for those that stay so, and note these."""
    how_many = partial(best_by_token, profile) if pieces == "auto" else lambda _: pieces
    left: UncutReasons = {}
    copy = GraphCopy(module, Stage.REWIRED)
    try:
        cut = copy.passes.apply("pieces_by_token", cut_by_token, copy.graph, how_many)
        for one in cut.whole:
            left[(one.launch or one.node).name] = one.reason, user_calls.where(one.node)
        if cut.pairs:
            copy.verify_and_swap(verify_tokens)
    except (NotSeparableError, VerificationError) as error:
        left[_uncut_launches(module.graph)[0].name] = error.reason, place_of(error)
    reasons: UncutReasons = {}
    for launch in _uncut_launches(module.graph):
        found = _found(launch.name, uncut, left)
        if found:
            reasons[launch.name] = "; by token: ".join(reason for reason, _ in found), found[-1][1]
            note(launch, reasons[launch.name][0])
    return reasons


def _found(name: str, *reasons: Mapping[str, tuple[str, Where]]) -> list[tuple[str, Where]]:
    return [known[name] for known in reasons if name in known]


def _uncut_launches(graph: fx.Graph) -> list[fx.Node]:
    """Return the launches of exchanges that are no pieces and whose sizes data decides, or that gather tokens."""
    sized = [node for node in graph.nodes if comms.is_all_to_all(node) and not is_piece(node) and sizes_of(node)]
    return [*sized, *(one.launch for one in gathered_exchanges(graph))]
