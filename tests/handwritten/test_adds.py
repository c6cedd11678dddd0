# SPDX-License-Identifier: Apache-2.0
"""How residual adds and output projections are written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from farskip_compile import CompileReport, FarSkipError
from farskip_compile.errors import UnsupportedPatternError
from tests.handwritten.decoder import (
    WIDTH,
    Attention,
    Decoder,
    Experts,
    assert_is_the_form_by_hand,
)


class TwoBranches(Experts):
    """Experts on all tokens, gated; a shared expert in a plain add."""

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y = y + (weights * (chosen == number)).sum(-1, keepdim=True) * expert(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        return self.routed(x) + self.shared(x)


def stems(report: CompileReport) -> list[str]:
    """Kind and layer of the terms; each expert that is added by itself is a term `r`."""
    return list(dict.fromkeys(name.split(".")[0] for name in report.terms))


ADDS = {
    "sum": lambda h, y: sum([h, y]),
    "rsub": lambda h, y: torch.rsub(-y, h),
    "keywords": lambda h, y: torch.add(input=h, other=y),
    "method_keyword": lambda h, y: h.add(other=y),
    "in_place": lambda h, y: h.clone().add_(y),
    "in_place_keyword": lambda h, y: h.clone().add_(other=y),
    "reversed": lambda h, y: y + h,
    "minus_minus": lambda h, y: h - (-y),
    "half_twice": lambda h, y: h + 0.5 * (2.0 * y),
}


@pytest.mark.parametrize("how", ADDS)
def test_ways_to_add(how: str) -> None:
    report = assert_is_the_form_by_hand(Decoder(TwoBranches, add=ADDS[how]))
    assert stems(report) == ["e", "a0", "r0", "s0", "a1", "r1", "s1", "a2", "r2", "s2"]


class Adapted(Attention):
    """LoRA on the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(x)
        return self.out(heads) + self.b(self.a(heads)) * 2.0


class TwoOutputs(Attention):
    """The output is a sum of two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(x)
        return self.out(heads) + self.second(heads)


@pytest.mark.parametrize("attention", [Adapted, TwoOutputs])
@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp"])
def test_an_output_projection_that_is_a_sum_is_one_term(attention: type[Attention], connectivity: str) -> None:
    if connectivity == "full":
        report = assert_is_the_form_by_hand(Decoder(TwoBranches, attention=attention))
    else:
        torch.compiler.reset()
        reports: list = []
        options = {"inner": "eager", "connectivity": connectivity, "on_report": reports.append}
        torch.compile(Decoder(TwoBranches, attention=attention), backend="farskip", options=options)(
            torch.arange(10).view(2, 5)
        )
        report = reports[-1]
    assert stems(report) == ["e", "a0", "r0", "s0", "a1", "r1", "s1", "a2", "r2", "s2"]


class WithoutBatch(Attention):
    """Gives [S, D] for a batch of one, which the residual add broadcasts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def test_a_residual_add_that_broadcasts() -> None:
    model = Decoder(TwoBranches, attention=WithoutBatch)
    try:
        ids = torch.arange(5).view(1, 5)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
        compiled(ids)
    except FarSkipError as error:
        pytest.fail(str(error))


class WithASkip(TwoBranches):
    """Routed and shared experts, and the value that both read, added in the order of `JOINS[how]`."""

    how = ""

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        return JOINS[self.how][0](self.routed(x), self.shared(x), x)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.shared is not None
        return self(x), JOINS[self.how][1](self.shared(x), x)


def with_a_skip(how: str) -> Decoder:
    return Decoder(type(how, (WithASkip,), {"how": how}))


JOINS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "s + (f + r)": (lambda r, s, f: s + (f + r), lambda s, f: s),
    "(f + r) + s": (lambda r, s, f: (f + r) + s, lambda s, f: s),
    "(s + f) + r": (lambda r, s, f: (s + f) + r, lambda s, f: s + f),
    "r + (f + s)": (lambda r, s, f: r + (f + s), lambda s, f: f + s),
    "(r + s) + f": (lambda r, s, f: (r + s) + f, lambda s, f: s + f),
}
"""All that is added, and the part of it that routed experts are no part of: a skip belongs to what it is added to."""


@pytest.mark.parametrize("how", [*JOINS][:-1])
def test_a_skip_connection_of_experts_goes_with_those_that_it_is_added_to(how: str) -> None:
    assert_is_the_form_by_hand(with_a_skip(how))


def test_a_skip_connection_of_nobody_is_refused() -> None:
    with pytest.raises(UnsupportedPatternError, match="whose skip connection it is") as caught:
        assert_is_the_form_by_hand(with_a_skip("(r + s) + f"))
    assert "shared(f) + (f + experts(f))" in caught.value.way_out


class CastWrite(TwoBranches):
    """Comparisons and logic in place, on floats, keep these floats."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.clone().gt_(0.0).logical_and_(x.abs() < 2.0)
        return super().forward(x) * (1.0 + mask / 2)


def test_comparisons_in_place_keep_their_type() -> None:
    model = Decoder(CastWrite).double()
    torch.compiler.reset()
    ids = torch.arange(10).view(2, 5)
    compiled = torch.compile(model, backend="farskip", options={"inner": "eager", "connectivity": "none"})
    assert torch.equal(compiled(ids), model(ids))
