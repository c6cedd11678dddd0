# SPDX-License-Identifier: Apache-2.0
"""Who splits what comes back into the rows of the pieces is handed the pieces; the proof knows which is which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.verify.pieces import verify_pieces
from tests.passes.pieces.regions import WIDTH, exchange, result, trace
from tests.passes.pieces.test_cut import cut

RANKS = 2


def returning(
    shape: Sequence[int], lengths: Sequence[int], dim: int, experts: int, slots: int
) -> Callable[..., list[Tensor]]:
    """A region whose result is returned in parts, each a value of its own."""

    def run(sent: Tensor, weights: Tensor) -> list[Tensor]:
        y = exchange(sent * 2, RANKS).view(RANKS, experts, slots, WIDTH).transpose(0, 1)
        y = y.reshape(experts, RANKS * slots, WIDTH) @ weights
        y = y.view(experts, RANKS, slots, WIDTH).transpose(0, 1).reshape(RANKS * experts, slots, WIDTH)
        return [one.clone() for one in exchange(y, RANKS).view(shape).split(list(lengths), dim)]

    return run


def traced(
    shape: Sequence[int], lengths: Sequence[int], dim: int, experts: int, slots: int
) -> tuple[fx.GraphModule, list[Tensor]]:
    inputs = [torch.randn(RANKS * experts, slots, WIDTH), torch.randn(experts, WIDTH, WIDTH)]
    return trace(returning(shape, lengths, dim, experts, slots), *inputs), inputs


def joins(module: fx.GraphModule) -> int:
    return sum(ops.op_name(node) == "cat" for node in module.graph.nodes)


@pytest.mark.parametrize(
    ("shape", "lengths", "dim", "experts", "slots"),
    [
        ((RANKS, 4, 3, WIDTH), [2, 2], 1, 4, 3),  # experts
        ((RANKS, 5, 3, WIDTH), [3, 2], 1, 5, 3),  # experts, unevenly
        ((RANKS, 4, WIDTH), [2, 2], 1, 1, 4),  # slots
    ],
)
def test_each_reader_gets_its_piece(
    shape: Sequence[int], lengths: Sequence[int], dim: int, experts: int, slots: int
) -> None:
    module, inputs = traced(shape, lengths, dim, experts, slots)
    expected = result(module, *inputs)
    assert cut(module, 2).exchanges == 1
    assert joins(module) == 0
    for ours, theirs in zip(result(module, *inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "lengths", "dim"),
    [((RANKS, 4, 3, WIDTH), [1, 3], 1), ((RANKS, 4, 3, WIDTH), [2, 1], 2), ((4, RANKS, 3, WIDTH), [1, 1], 1)],
)
def test_other_rows_are_taken_from_the_whole(shape: Sequence[int], lengths: Sequence[int], dim: int) -> None:
    module, inputs = traced(shape, lengths, dim, 4, 3)
    expected = result(module, *inputs)
    cut(module, 2)
    assert joins(module) == 1
    for ours, theirs in zip(result(module, *inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_proof_notices_a_piece_in_place_of_another() -> None:
    module, _ = traced((RANKS, 4, 3, WIDTH), [2, 2], 1, 4, 3)
    before = GraphSnapshot(module.graph)
    cut(module, 2)
    one, other = (node for node in module.graph.nodes if node.name.startswith("clone") and node.name in _names(before))
    one.args, other.args = other.args, one.args
    with pytest.raises(VerificationError, match="in place of"):
        verify_pieces(module.graph, before)


def _names(before: GraphSnapshot) -> set[str]:
    return {node.name for node in before.restore().nodes}
