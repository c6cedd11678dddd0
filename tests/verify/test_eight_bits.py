# SPDX-License-Identifier: Apache-2.0
"""Products in 8 bits, by a scale for each row, and operators inside an `autograd.Function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import farskip_compile
from farskip_compile import Outcome, declare, declare_op
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.models import FarSkipForm, build

IDS = torch.arange(16).view(2, 8)
FLOAT8, LARGEST = torch.float8_e4m3fn, 448.0


@torch.library.custom_op("farskip_tests::rounded", mutates_args=())
def rounded(x: Tensor) -> Tensor:
    return x.to(FLOAT8).to(x.dtype)


rounded.register_fake(torch.empty_like)


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})


def by_row(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True).float()


def of_the_row_before(rows: Tensor) -> Tensor:
    return by_row(rows).roll(1, 0)


def of_all_rows(rows: Tensor) -> Tensor:
    return rows.abs().amax().float().expand(rows.shape[0], 1).contiguous()


class EightBits(nn.Linear):
    """`scale_of`: rows [N, D] -> a scale [N, 1] for each."""

    scale_of: Callable[[Tensor], Tensor] = staticmethod(by_row)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        a, b = type(self).scale_of(rows) / LARGEST, by_row(self.weight) / LARGEST
        found = torch._scaled_mm(
            (rows.float() / a).to(FLOAT8), (self.weight.float() / b).to(FLOAT8).t(), a, b.t(), out_dtype=x.dtype
        )
        return found.unflatten(0, x.shape[:-1])


class _Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Rounded(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Rounds.apply(super().forward(x))


def model(kind: type[nn.Linear], place: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Shared experts, one of whose products is of this kind."""
    found = build("deepseek_v3", layers=("moe", "moe"), vocab_size=32, dtype=dtype)
    for layer in found.layers:
        getattr(layer.feed_forward.shared_experts[0], place).__class__ = kind
    return found


def run(of: nn.Module, **options: Any) -> Tensor:
    return torch.compile(of, backend=farskip_compile.backend(inner="eager", **options), fullgraph=True)(IDS)


@pytest.mark.parametrize("place", ["gate", "down"])
def test_products_in_8_bits_are_rewired(place: str) -> None:
    """Before torch 2.13 CPUs have no such product: then it is rewired, and can't be run."""
    of = model(EightBits, place).requires_grad_(False)
    try:
        expected = FarSkipForm(of)(IDS)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="only supports per-tensor"):
            run(of)
    else:
        assert torch.equal(run(of), expected)
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED


@pytest.mark.parametrize("scale_of", [of_all_rows, of_the_row_before])
def test_a_scale_of_other_rows_mixes_them(scale_of: Callable[[Tensor], Tensor]) -> None:
    kind = type("Mixing", (EightBits,), {"scale_of": staticmethod(scale_of)})
    with pytest.raises(UnsupportedPatternError, match=r"mixes (its )?rows"):
        run(model(kind, "down").requires_grad_(False))


def test_an_operator_inside_an_autograd_function_is_not_understood() -> None:
    with pytest.raises(UnsupportedPatternError, match="nothing is known of 'farskip_tests::rounded'"):
        run(model(Rounded, "down", torch.float32))


@pytest.mark.parametrize("how", ["operator", "option", "module"])
def test_and_can_be_declared(how: str) -> None:
    of = model(Rounded, "down", torch.float32)
    kinds = {
        "operator": {},
        "option": {"farskip_tests::rounded": "dense"},
        "module": {"layers.*.feed_forward.shared_experts.*.down": "dense"},
    }
    if how == "operator":
        declare_op("farskip_tests::rounded", "dense")
    assert torch.equal(run(of, kinds=kinds[how]), FarSkipForm(of)(IDS))
