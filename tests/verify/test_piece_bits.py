# SPDX-License-Identifier: Apache-2.0
"""Whether products in pieces have the same bits is measured, for each different product once."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import cut_exchanges
from farskip_compile.verify import piece_bits
from farskip_compile.verify.pieces import CutProduct, verify_pieces
from tests.passes.pieces.regions import Region, trace


def products(*steps: str, experts: int = 4, slots: int = 3) -> list[CutProduct]:
    region = Region(2, experts, slots, "rows", steps)
    module = trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())
    before = GraphSnapshot(module.graph)
    assert cut_exchanges(module.graph, 2).exchanges == 1
    return verify_pieces(module.graph, before)


@pytest.mark.parametrize("sizes", [(4, 3), (1, 6)])
def test_products_that_compute_each_row_alone_have_the_same_bits(sizes: tuple[int, int]) -> None:
    """Whole numbers: every order of additions gives the same bits, so what is compared are the right rows."""

    def whole_numbers(value: torch.Tensor) -> torch.Tensor:
        return torch.arange(value.numel(), dtype=value.dtype).remainder(7).view(value.shape)

    found = products("weights", "columns", experts=sizes[0], slots=sizes[1])
    assert len(found) == 4
    with mock.patch.object(piece_bits, "_random", whole_numbers):
        assert piece_bits.same_bits(found) is True


def test_a_kernel_that_rounds_by_shape_is_seen() -> None:
    real = torch.ops.aten.bmm.default
    found = products("weights")

    def by_shape(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return real(a, b) * (1 + 1e-15 * a.shape[0])

    for one in found:
        one.old.target = by_shape
    assert piece_bits.same_bits(found) is False


def test_each_product_is_computed_once() -> None:
    found = products("weights")
    with mock.patch.object(piece_bits, "_compare", return_value=True) as compare:
        assert piece_bits.same_bits([*found, *found]) is True
    assert compare.call_count == 2  # one for each piece


def test_what_is_not_known_is_not_said(monkeypatch: Any) -> None:
    assert piece_bits.same_bits([]) is None
    monkeypatch.setattr(piece_bits, "MOST_BYTES", 8)
    assert piece_bits.same_bits(products("weights")) is None


def test_random_numbers_of_the_user_stay_what_they_are() -> None:
    found = products("weights")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    piece_bits.same_bits(found)
    assert torch.equal(torch.get_rng_state(), before)
