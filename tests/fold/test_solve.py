# SPDX-License-Identifier: Apache-2.0
"""The matrix of a fold, against least squares by a library."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.healing.fold.solve import CHOOSING, RIDGES, Grams, NormalEquations, _changes

WIDTH = 5


def rows(seed: int, count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    now = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    mix = torch.eye(WIDTH, dtype=torch.float64) + 0.5 * torch.randn(WIDTH, WIDTH, generator=generator)
    return now, now @ mix + noise * torch.randn(count, WIDTH, generator=generator)


def least_squares(now: torch.Tensor, original: torch.Tensor, ridge: float) -> torch.Tensor:
    """Towards no change: as many more rows as there are features, which pull M to 1."""
    pull = (ridge * now.square().sum(0).mean()).sqrt() * torch.eye(WIDTH, dtype=now.dtype)
    return torch.linalg.lstsq(torch.cat([now, pull]), torch.cat([original, pull])).solution


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(RIDGES), st.floats(0.0, 2.0))
def test_each_ridge_is_least_squares(seed, ridge, noise):
    now, original = rows(seed, 40, noise)
    grams = Grams(WIDTH, now)
    for part in torch.arange(40).split(7):
        grams.add(now[part], original[part])
    scale = grams.own.diagonal().mean().item()
    ((_, change),) = _changes(grams, scale, (ridge,))
    wanted = least_squares(now, original, ridge)
    assert torch.allclose(torch.eye(WIDTH) + change, wanted, rtol=1e-9, atol=1e-9)
    assert grams.left(change) == pytest.approx((original - now @ wanted).square().sum().item(), rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3.0))
def test_the_ridge_is_chosen_by_rows_that_were_not_fitted(seed, noise):
    now, original = rows(seed, 48, noise)
    pairs = NormalEquations(WIDTH, now)
    for part in torch.arange(48).split(12):
        pairs.add(now[part], original[part])
    found = pairs.solve(lambda value: None)
    chosen = torch.arange(48) % 12 % CHOOSING == CHOOSING - 1

    def error(ridge: float) -> float:
        matrix = least_squares(now[~chosen], original[~chosen], ridge)
        return (original[chosen] - now[chosen] @ matrix).square().sum().item()

    errors = {ridge: error(ridge) for ridge in RIDGES}
    assert found is not None
    assert errors[found.ridge] == pytest.approx(min(errors.values()), rel=1e-9)
    before = (original - now)[chosen].square().sum().item()
    assert found.explained == pytest.approx(1 - min(errors.values()) / before, rel=1e-6, abs=1e-9)
    assert torch.allclose(found.matrix, least_squares(now, original, found.ridge), rtol=1e-8, atol=1e-8)


def test_what_ranks_hold_is_added_up():
    now, original = rows(1, 32, 0.3)
    whole, parts = NormalEquations(WIDTH, now), [NormalEquations(WIDTH, now) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.add(now[rank * 16 : rank * 16 + 16], original[rank * 16 : rank * 16 + 16])
        whole.add(now[rank * 16 : rank * 16 + 16], original[rank * 16 : rank * 16 + 16])
    queue = [
        value.clone()
        for grams in (parts[1].fitted, parts[1].choosing)
        for value in (grams.own, grams.cross, grams.error)
    ]
    found = parts[0].solve(lambda value: value.add_(queue.pop(0)))
    wanted = whole.solve(lambda value: None)
    assert found is not None
    assert wanted is not None
    assert found.ridge == wanted.ridge
    assert torch.allclose(found.matrix, wanted.matrix, rtol=1e-12, atol=1e-12)


def test_nothing_to_do():
    now, _ = rows(2, 16, 0.0)
    pairs = NormalEquations(WIDTH, now)
    pairs.add(now, now)
    assert pairs.solve(lambda value: None) is None


def test_narrow_numbers_are_added_up_in_float32():
    now, original = (value.bfloat16() for value in rows(3, 64, 0.1))
    pairs = NormalEquations(WIDTH, now)
    pairs.add(now, original)
    found = pairs.solve(lambda value: None)
    assert found is not None
    assert found.matrix.dtype == torch.float32
    exact = least_squares(now.double(), original.double(), found.ridge)
    assert torch.allclose(found.matrix.double(), exact, atol=1e-4)
