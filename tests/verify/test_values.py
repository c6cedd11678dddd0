# SPDX-License-Identifier: Apache-2.0
"""The numbers of parts: a whole put together from all of its parts is that whole, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.passes.residual.sums import read_dataflow
from farskip_compile.verify import values
from farskip_compile.verify.field import joining, taking
from farskip_compile.verify.steps import evaluate
from farskip_compile.verify.values import read_steps
from tests.graphs import dynamo

X = torch.randn(4, 6)


def number(function: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """Of what a function returns."""
    module, _ = dynamo(function, X)
    flow = read_dataflow(module.graph)
    (output,) = module.graph.find_nodes(op="output")
    numbers = evaluate(read_steps(flow).steps)
    return numbers[flow.order[output.args[0][0]]]


def whole(x: torch.Tensor) -> torch.Tensor:
    return x * 2


SAME: dict[str, Callable[..., Any]] = {
    "in order": lambda x: torch.cat((x * 2).split([2, 4], 1), 1),
    "from the end": lambda x: torch.cat((x * 2).split([2, 4], -1), 1),
    "copies": lambda x: torch.cat([one.clone() for one in (x * 2).split([1, 3])]),
    "of a view": lambda x: torch.cat((x * 2).view(2, 2, 6).split([1, 1], 1), 1).view(4, 6),
    "equal parts": lambda x: torch.cat((x * 2).split(2)),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "out of order": lambda x: torch.cat((x * 2).split(2)[::-1]),
    "a part twice": lambda x: torch.cat([(x * 2).split(2)[0]] * 2),
    "other lengths": lambda x: torch.cat([(x * 2).split([1, 3])[0], (x * 2).split([3, 1])[0]]),
    "another dimension": lambda x: torch.cat((x * 2).view(2, 2, 6).split([1, 1], 1), 0).view(4, 6),
    "of another whole": lambda x: torch.cat([(x * 2).split(2)[0], (x * 3).split(2)[1]]),
}


@pytest.mark.parametrize("name", SAME)
def test_all_parts_in_order_are_the_whole(name: str) -> None:
    assert number(SAME[name]) == number(whole)


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_not(name: str) -> None:
    assert number(OTHERS[name]) != number(whole)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.permutations(range(4)))
def test_only_the_order_of_the_parts_is_that_of_the_whole(lengths: Sequence[int], order: Sequence[int]) -> None:
    parts = torch.empty(sum(lengths), 2).split(list(lengths))
    taken = [taking(parts, place, 0) for place in range(len(parts))]
    put = [place for place in order if place < len(parts)]
    factors = joining([parts[place] for place in put], 0)
    total = sum(factor * number for factor, number in zip(factors, (taken[place] for place in put), strict=True))  # type: ignore[operator]
    assert (total % ((1 << 61) - 1) == 1) == (put == sorted(put))


@pytest.mark.parametrize(
    ("wide", "narrow", "holds"),
    [
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.bfloat16, False),
        (torch.float8_e4m3fn, torch.float8_e4m3fn, True),
        (torch.float8_e4m3fn, torch.float8_e5m2, False),
        (torch.float32, torch.float8_e4m3fn, True),
        (torch.float16, torch.float8_e8m0fnu, False),
        (torch.float8_e4m3fn, torch.float32, False),
        (torch.int64, torch.float8_e4m3fn, False),
    ],
)
def test_a_cast_keeps_numbers_that_the_new_type_holds(wide: torch.dtype, narrow: torch.dtype, holds: bool) -> None:
    assert values._holds(wide, narrow) is holds
