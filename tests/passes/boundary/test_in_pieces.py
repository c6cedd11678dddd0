# SPDX-License-Identifier: Apache-2.0
"""Which waits leave in pieces, and as which rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile.passes.boundary.in_pieces import in_pieces
from farskip_compile.passes.pieces.notes import note


def waiting(shape: tuple[int, ...], splits: Any, dtype: torch.dtype = torch.float32) -> fx.Node:
    """The wait for an all-to-all."""
    graph = fx.Graph()
    launch = graph.call_function(
        torch.ops._c10d_functional.all_to_all_single, (graph.placeholder("rows"), splits, splits, "0")
    )
    wait = graph.call_function(torch.ops._c10d_functional.wait_tensor, (launch,))
    for node in graph.nodes:
        node.meta["example_value"] = torch.empty(shape, dtype=dtype, device="meta")
    graph.output((wait,))
    return wait


def refuse(launch: fx.Node) -> int:
    raise AssertionError("asked of an exchange that stays whole")


@pytest.mark.parametrize("splits", [None, [3, 5], ["size", 4]])
def test_an_exchange_without_equal_shares_stays_whole_and_is_not_asked_about(splits: Any) -> None:
    assert in_pieces(waiting((8, 3, 4), splits), refuse) is None


def test_counts_stay_whole() -> None:
    assert in_pieces(waiting((8, 3), [4, 4], torch.int64), refuse) is None


@pytest.mark.parametrize(
    ("number", "shape", "dim", "lengths"),
    [(2, [2, 4, 3, 4], 1, [2, 2]), (3, [8, 3, 4], 1, [1, 1, 1]), (4, [2, 4, 3, 4], 1, [1, 1, 1, 1])],
)
def test_rows_of_each_rank_or_slots(number: int, shape: list[int], dim: int, lengths: list[int]) -> None:
    found = in_pieces(waiting((8, 3, 4), [4, 4]), lambda launch: number)
    assert found is not None
    assert (list(found.shape), found.dim, list(found.lengths), list(found.whole)) == (shape, dim, lengths, [8, 3, 4])


def test_one_piece_is_the_whole() -> None:
    assert in_pieces(waiting((8, 3, 4), [4, 4]), lambda launch: 1) is None


def test_a_piece_is_not_cut_again() -> None:
    wait = waiting((8, 3, 4), [4, 4])
    note(wait.all_input_nodes[0], "2")
    assert in_pieces(wait, refuse) is None
