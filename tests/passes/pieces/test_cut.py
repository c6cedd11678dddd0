# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces: what can be kept apart is cut and computes the same, everything else is refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import PiecesCut, cut_exchanges
from farskip_compile.verify.pieces import verify_pieces
from tests.passes.pieces.regions import EXPERTS, SLOTS, STEPS, WIDTH, Region, exchange, regions, result, trace


def cut(module: fx.GraphModule, pieces: int) -> PiecesCut:
    """Cut, verify, and see to it that the graph can be run."""
    before = GraphSnapshot(module.graph)
    found = cut_exchanges(module.graph, pieces)
    verify_pieces(module.graph, before)
    module.graph.lint()
    module.recompile()
    return found


def launches(module: fx.GraphModule) -> list[fx.Node]:
    return ops.calls(module.graph, comms.is_all_to_all)


@given(regions(), st.sampled_from([2, 4]))
def test_any_region(region: Region, pieces: int) -> None:
    inputs = torch.randn(region.shape(), dtype=torch.float64), region.tensors()
    module = trace(region.run, *inputs)
    expected = result(module, *inputs)
    found = cut(module, pieces)
    possible = [name for name in region.apart if region.sizes()[name] >= pieces]
    assert found.exchanges == bool(possible), (found, possible)
    assert len(found.refused) == (not possible)
    assert len(launches(module)) == (2 * pieces if possible else 2)
    for ours, theirs in zip(result(module, *inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("form", ["flat", "rows", "blocks"])
def test_each_step_keeps_apart_what_it_should(step: str, form: str) -> None:
    for sizes, axis in (((4, 1), EXPERTS), ((1, 4), SLOTS)):
        region = Region(2, *sizes, form, (step,), kept=(0,))
        inputs = torch.randn(region.shape(), dtype=torch.float64), region.tensors()
        module = trace(region.run, *inputs)
        expected = result(module, *inputs)
        assert cut(module, 2).exchanges == (axis in STEPS[step].apart)
        for ours, theirs in zip(result(module, *inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_all_dispatches_are_launched_before_the_first_combine() -> None:
    region = Region(2, 4, 3, "rows", ("weights", "gate"))
    module = trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())
    cut(module, 4)
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    products = [place[node] for node in module.graph.nodes if ops.op_name(node) == "bmm"]
    *dispatches, first = [place[node] for node in launches(module)[:5]]
    assert max(dispatches) < min(products) < first
    # of the experts along which it is cut, each piece gets its own: no row is computed twice
    assert len(products) == 2 * 4
    assert {tuple(ops.tensor(node).shape) for node in launches(module)} == {(2, 3, WIDTH)}  # type: ignore[union-attr]


def test_pieces_that_can_not_be_equal_are_nearly_so() -> None:
    region = Region(2, 1, 5, "rows", ("weights",))
    inputs = torch.randn(region.shape(), dtype=torch.float64), region.tensors()
    module = trace(region.run, *inputs)
    expected = result(module, *inputs)
    cut(module, 4)
    assert [int(ops.tensor(node).shape[1]) for node in launches(module)[:4]] == [2, 1, 1, 1]  # type: ignore[union-attr]
    torch.testing.assert_close(result(module, *inputs), expected, rtol=1e-12, atol=1e-12)


def test_experts_are_cut_before_slots_and_what_divides_evenly_before_what_does_not() -> None:
    for experts, slots, shape in ((2, 4, (2, 4, WIDTH)), (3, 4, (6, 2, WIDTH))):
        region = Region(2, experts, slots, "rows", ("weights",))
        module = trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())
        cut(module, 2)
        assert tuple(ops.tensor(launches(module)[0]).shape) == shape  # type: ignore[union-attr]


REFUSED = {
    "random numbers": (lambda y: torch.nn.functional.dropout(y, 0.5, True), "draws random numbers"),
    "a running sum over rows": (lambda y: y.cumsum(1), "it works along the rows"),
    "rows in another order": (lambda y: y.flip(1), "flip is not known to keep rows apart"),
    "a sort of rows": (lambda y: y.sort(1).values, "sort is not known to keep rows apart"),
    "rows of others": (lambda y: y + y.roll(1, 1), "not known to keep rows apart"),
    "bits of another type": (lambda y: y.view(torch.int32).view(torch.float32), "numbers of another type"),
    "rows torn apart": (lambda y: y.reshape(1, WIDTH, -1).mT.reshape(y.shape), "the view tears rows apart"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_refused_is_named(how: str) -> None:
    mix, reason = REFUSED[how]

    def run(x: torch.Tensor) -> torch.Tensor:
        y = exchange(x, 2).view(1, 2 * 6, WIDTH)
        return exchange(mix(y * 2).reshape(x.shape), 2)

    module = trace(run, torch.randn(2, 6, WIDTH))
    before = str(module.graph)
    found = cut(module, 2)
    assert str(module.graph) == before
    (refused,) = found.refused
    assert reason in str(refused)


def test_shares_that_differ_are_refused() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        sent = torch.ops._c10d_functional.all_to_all_single(x, [4, 2], [2, 4], "pieces")
        y = torch.ops._c10d_functional.wait_tensor(sent) * 2
        return torch.ops._c10d_functional.all_to_all_single(y, [2, 4], [4, 2], "pieces")

    (refused,) = cut(trace(run, torch.randn(6, WIDTH)), 2).refused
    assert "its split sizes differ: [4, 2]" in refused.reason


def test_another_number_of_rows_than_were_sent_is_refused() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        sent = torch.ops._c10d_functional.all_to_all_single(x, [4, 4], [2, 2], "pieces")
        y = torch.ops._c10d_functional.wait_tensor(sent) * 2
        return torch.ops._c10d_functional.all_to_all_single(y, [2, 2], [4, 4], "pieces")

    (refused,) = cut(trace(run, torch.randn(4, 3, WIDTH)), 2).refused
    assert "it brings another number of rows than it sends" in refused.reason


def test_an_exchange_alone_is_left_as_it_is() -> None:
    module = trace(lambda x: exchange(x, 2) * 2, torch.randn(4, WIDTH))
    assert cut(module, 2) == PiecesCut(2, 0)


def test_one_piece_is_no_cut() -> None:
    region = Region(2, 4, 3, "rows", ("weights",))
    module = trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())
    before = str(module.graph)
    assert cut(module, 1) == PiecesCut(1, 0)
    assert str(module.graph) == before


@pytest.mark.parametrize("layers", [1, 4])
def test_each_layer_has_a_region_of_its_own(layers: int) -> None:
    region = Region(2, 2, 3, "rows", ("weights",))
    tensors = region.tensors()

    def run(x: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
        for _ in range(layers):
            x = x + region.run(x.sigmoid(), tensors)[0].view_as(x) * x.sum(1, keepdim=True)
        return x

    inputs = torch.randn(region.shape(), dtype=torch.float64), tensors
    module = trace(run, *inputs)
    expected = result(module, *inputs)
    assert cut(module, 2).exchanges == layers
    torch.testing.assert_close(result(module, *inputs), expected, rtol=1e-12, atol=1e-12)
