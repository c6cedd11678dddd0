# SPDX-License-Identifier: Apache-2.0
"""The batch in parts: what is there once for each part, what stays whole, and what is refused.

That results are the same on real ranks is shown in tests/distributed/test_pieces_by_token_ranks.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import cut_earlier
from farskip_compile.passes.pieces.notes import is_piece, noted_along
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.batch import cut_batch
from farskip_compile.verify.tokens import verify_tokens
from tests.passes.pieces import layers_without_drops as layers
from tests.passes.pieces import sliced_layers as sliced
from tests.passes.pieces.layers_without_drops import TOKENS, Layer, captured


def cut(module: fx.GraphModule, parts: int = 2) -> int:
    before = GraphSnapshot(module.graph)
    pairs = cut_batch(module.graph, parts)
    module.graph.lint()
    verify_tokens(module.graph, before)
    module.recompile()
    return pairs


def sizes_of(module: fx.GraphModule, holds: object) -> list[tuple[int, ...]]:
    found = [ops.tensor(node) for node in module.graph.nodes if ops.op_name(node) == holds]
    return [tuple(value.shape) for value in found if value is not None]


@pytest.mark.parametrize(("batch", "parts"), [(2, 2), (3, 2), (4, 2), (4, 4)])
def test_each_part_goes_through_the_whole_stack(batch: int, parts: int) -> None:
    module = captured(layers.stack, batch=batch)
    assert cut(module, parts) == 2
    pieces = [node for node in ops.calls(module.graph, comms.is_all_to_all) if is_piece(node)]
    assert len(pieces) == 2 * 2 * parts
    assert {noted_along(node) for node in pieces} == {"batch"}
    attentions = sizes_of(module, "scaled_dot_product_attention")
    assert len(attentions) == 2 * parts
    assert sum(shape[0] for shape in attentions) == 2 * batch
    # joined once, at the end
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    assert [ops.op_name(arg) for arg in output.all_input_nodes] == ["cat"]
    assert sizes_of(module, "cat")[-1] == (batch, TOKENS, layers.WIDTH)


def test_parts_take_turns() -> None:
    """One part's dispatch is launched, then the other's, then their combines: layer by layer."""
    module = captured(layers.stack, batch=2)
    cut(module)
    launches = [node for node in ops.calls(module.graph, comms.is_all_to_all) if is_piece(node)]
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    attentions = [place[node] for node in module.graph.nodes if ops.is_attention(node)]
    order = sorted([*((place[node], "exchange") for node in launches), *((at, "attention") for at in attentions)])
    assert [kind for _, kind in order] == (["attention"] * 2 + ["exchange"] * 4) * 2


def test_a_loss_is_that_of_the_whole_batch() -> None:
    module = captured(layers.stack_with_loss, batch=2)
    assert cut(module) == 2
    (mean,) = [node for node in module.graph.nodes if ops.op_name(node) == "mean"]
    assert ops.tensor(mean.all_input_nodes[0]).shape[0] == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize(
    "part", [sliced.dense, sliced.with_slots, sliced.sorted_rows, sliced.back_in_place, sliced.each_expert]
)
def test_sums_over_slices(part: sliced.Part, batch: int) -> None:
    """Nothing is exchanged: an all-reduce for each part in place of each that was there."""
    module = captured(sliced.stack_of(part, part), batch=batch)
    assert cut(module) == 4
    sums = ops.calls(module.graph, comms.is_all_reduce)
    assert len(sums) == 4 * 2
    assert sum(ops.tensor(node).shape[0] for node in sums) == 4 * batch  # type: ignore[union-attr]
    assert all(map(is_piece, sums))
    said = cut_earlier(module.graph)
    assert (said.pieces, said.exchanges, said.along) == (2, 4, ("batch",))


def test_sums_beside_exchanges() -> None:
    module = captured(sliced.beside_exchanges, batch=2)
    assert cut(module) == 2 + 2
    pieces = [node for node in ops.calls(module.graph, comms.is_collective) if is_piece(node)]
    assert len(pieces) == 2 * (2 * 2 + 2)


def test_sums_may_be_over_other_ranks_than_exchanges() -> None:
    module = captured(sliced.beside_exchanges, batch=2)
    for launch in ops.calls(module.graph, comms.is_all_reduce):
        launch.update_arg(2, "others")
    assert cut(module) == 2 + 2


def test_how_often_experts_were_chosen_is_counted_of_the_whole_batch() -> None:
    module = captured(sliced.with_load, batch=2)
    cut(module)
    counted = [node.all_input_nodes[0] for node in module.graph.nodes if ops.op_name(node) == "sum"]
    assert (2 * TOKENS, 2, layers.EXPERTS) in [tuple(ops.tensor(node).shape) for node in counted]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("layer", "batch", "reason"),
    [
        (layers.stack_with_room, 2, "it has room for a fixed number of rows"),
        (layers.stack_that_joins, 2, "it is not known to keep sequences apart, and '.*' needs it"),
        (layers.stack_across, 2, "it is not known to keep sequences apart, and 'scaled_dot_product_attention' needs"),
        (layers.attention, 2, "no exchange of tokens and no all-reduce"),
        (layers.stack, 1, "more than one sequence"),
        (sliced.stack_of(sliced.with_drops), 2, "experts have room for 21 of 24 rows"),
        (sliced.stack_of(sliced.across), 2, "it is not known to keep sequences apart, and 'linear' needs it"),
        (sliced.stack_of(sliced.next_to_each_other), 2, "its rows are not those of"),
        (sliced.stack_of(sliced.summed_in_order), 2, "its rows are not those of"),
        (sliced.summed_across, 2, "it is not known to keep sequences apart, and 'tensor' needs it"),
    ],
)
def test_what_can_not_be_cut_is_refused(layer: Layer, batch: int, reason: str) -> None:
    with pytest.raises((NotSeparableError, VerificationError), match=reason):
        cut(captured(layer, batch=batch))


def test_a_refusal_names_where_sequences_are_joined() -> None:
    with pytest.raises(NotSeparableError) as refusal:
        cut(captured(sliced.stack_of(sliced.across), batch=2))
    assert ops.op_name(refusal.value.node) == "cumsum"


def test_a_part_that_takes_the_other_ones_sequences_is_noticed() -> None:
    module = captured(layers.stack, batch=2)
    before = GraphSnapshot(module.graph)
    cut_batch(module.graph, 2)
    first, second = [node for node in module.graph.nodes if node.target is torch.narrow][:2]
    second.update_arg(2, first.args[2])
    with pytest.raises(VerificationError, match="its rows are not those of"):
        verify_tokens(module.graph, before)


@pytest.mark.parametrize("other", ["max", None])
def test_a_part_with_another_sum_or_none_is_noticed(other: str | None) -> None:
    module = captured(sliced.stack_of(sliced.dense), batch=2)
    before = GraphSnapshot(module.graph)
    cut_batch(module.graph, 2)
    launch = ops.calls(module.graph, comms.is_all_reduce)[0]
    if other is not None:
        launch.update_arg(1, other)
    else:
        next(iter(launch.users)).replace_all_uses_with(launch.args[0])  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="its rows are not those of"):
        verify_tokens(module.graph, before)
