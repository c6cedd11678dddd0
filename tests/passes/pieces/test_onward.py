# SPDX-License-Identifier: Apache-2.0
"""Pieces of tokens that come in go on to the exchanges of their layer, each by itself, where that can be shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.pieces.tokens.onward import hand_on
from farskip_compile.verify.tokens import verify_tokens
from tests.passes.pieces import layers_without_drops as layers
from tests.passes.pieces.layers_without_drops import TOKENS, captured
from tests.passes.pieces.test_by_token import cut, launched

FUNCTIONS = (torch.sin, torch.cos, torch.tanh, torch.exp)
"""Of each piece that comes in another one, by which it is told."""
Between = Callable[[Tensor, Tensor], Tensor]


def norm(x: Tensor, joined: Tensor) -> Tensor:
    h = x + joined
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def layer(lengths: list[int], between: Between = norm) -> Callable[[Tensor], Tensor]:
    """The experts of `layers.grouped` on the stream, of which one term is given in pieces; they, and it, are added."""

    def run(x: Tensor) -> Tensor:
        parts = [function(part) for function, part in zip(FUNCTIONS, x.split(lengths), strict=False)]
        h = between(x, torch.cat(parts))
        return x + h + layers.grouped(h)

    return run


def handed_on(module: fx.GraphModule) -> int:
    """Hand on, and verify."""
    before = GraphSnapshot(module.graph)
    found = hand_on(module.graph)
    module.graph.lint()
    verify_tokens(module.graph, before)
    return found


def came_in(launch: fx.Node) -> set[str]:
    """The functions of the pieces that `launch` waits for."""
    names = {function.__name__ for function in FUNCTIONS}
    return {name for node in walk_back([launch]) if (name := ops.op_name(node)) in names}


@pytest.mark.parametrize(("lengths", "tokens"), [([6, 6], 12), ([3, 3, 3, 3], 12), ([4, 3], 7)])
def test_each_piece_goes_on_by_itself(lengths: list[int], tokens: int) -> None:
    module = captured(layer(lengths), tokens)
    count = len(lengths)
    cut(module, count)
    every = {function.__name__ for function in FUNCTIONS[:count]}
    assert [came_in(launch) for launch in launched(module)[:count]] == [every] * count
    assert handed_on(module) > 0
    assert [came_in(launch) for launch in launched(module)[:count]] == [{name.__name__} for name in FUNCTIONS[:count]]


def test_what_is_taken_from_the_pieces_themselves() -> None:
    module = captured(layer([6, 6], lambda x, joined: joined))
    cut(module)
    assert handed_on(module) > 0
    assert [came_in(launch) for launch in launched(module)[:2]] == [{"sin"}, {"cos"}]


@pytest.mark.parametrize(
    ("lengths", "between"),
    [
        ([4, 8], norm),  # other rows
        ([6, 6], lambda x, joined: norm(x, joined).softmax(0)),  # rows meet
        ([6, 6], lambda x, joined: norm(x, joined.flip(0))),  # rows change places
        ([6, 6], lambda x, joined: F.dropout(norm(x, joined))),  # drawn for all of them
        ([6, 6], lambda x, joined: norm(x, joined).view(3, 4, -1).sin().view(12, -1)),  # no half of three sequences
    ],
)
def test_what_does_not_go_on_is_left_as_it_was(lengths: list[int], between: Between) -> None:
    module = captured(layer(lengths, between))
    cut(module)
    text = str(module.graph)
    assert handed_on(module) == 0
    assert str(module.graph) == text


def test_rows_that_others_take_are_not_pieces() -> None:
    def run(x: Tensor) -> Tensor:
        joined = torch.cat([x[:6].sin(), x[6:].cos()])
        h = norm(x, joined)
        return layers.grouped(h) + torch.narrow(h, dim=0, start=0, length=12) + h.narrow(0, 0, 12)

    module = captured(run)
    cut(module)
    assert handed_on(module) > 0


def test_the_proof_notices_a_piece_in_place_of_another() -> None:
    module = captured(layer([TOKENS // 2] * 2))
    cut(module)
    before = GraphSnapshot(module.graph)
    hand_on(module.graph)
    sums = [node for node in module.graph.nodes if node.name not in {one.name for one in before.restore().nodes}]
    one, other = (node for node in sums if ops.op_name(node) == "mean")
    one.args, other.args = (other.args[0], *one.args[1:]), (one.args[0], *other.args[1:])
    with pytest.raises(VerificationError, match="its rows are not those of"):
        verify_tokens(module.graph, before)
