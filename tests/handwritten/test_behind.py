# SPDX-License-Identifier: Apache-2.0
"""A convolution along tokens, applied to what attention, a feed-forward network or experts give, is part of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.residual.table import TermKind
from tests.handwritten.decoder import MLP, TOKENS, WIDTH, Attention, Decoder, assert_is_the_form_by_hand, token_ids
from tests.handwritten.test_adds import TwoBranches


class ShortConvolution(nn.Module):
    """Each channel by itself, over this token and the two before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.transpose(1, 2))[..., :TOKENS].transpose(1, 2)


class Behind(nn.Module):
    """A module, and a convolution of what it gives; `after` works on the result once more."""

    def __init__(self, inner: type[nn.Module], after: bool = False) -> None:
        super().__init__()
        self.inner, self.short = inner(), ShortConvolution()
        self.after = nn.Linear(WIDTH, WIDTH) if after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.short(self.inner(x)))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Routed and shared experts are convolved together: one term, which is left out as a whole."""
        given = self(x)
        return given, given if isinstance(self.inner, MLP) else None


class Before(Behind):
    """In front of it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.short(x))


Make = Callable[[], nn.Module]


def test_a_convolution_behind_each_of_them_is_part_of_it() -> None:
    experts = [lambda: Behind(MLP), *[lambda: Behind(TwoBranches)] * 2]
    report = assert_is_the_form_by_hand(Decoder(experts, lambda: Behind(Attention)))
    assert report.terms == ("e", "a0", "m0", "a1", "r1", "a2", "r2")


@pytest.mark.parametrize("make", [lambda: Behind(TwoBranches, after=True), lambda: Before(TwoBranches)])
def test_elsewhere_experts_and_a_convolution_are_refused(make: Make) -> None:
    torch.compiler.reset()
    with pytest.raises(UnsupportedPatternError, match=r"holds routed experts .* and mixes tokens .*conv1d"):
        torch.compile(Decoder(make), backend="farskip", fullgraph=True, options={"inner": "eager"})(token_ids())


@pytest.mark.parametrize("inner", [MLP, TwoBranches])
def test_what_is_mixed_once_more_behind_it_is_refused(inner: type[nn.Module]) -> None:
    class Shifted(Behind):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(1, 1)

    torch.compiler.reset()
    with pytest.raises(UnsupportedPatternError, match="mixes rows in it"):
        torch.compile(Decoder(lambda: Shifted(inner)), backend="farskip", fullgraph=True, options={"inner": "eager"})(
            token_ids()
        )


@pytest.mark.parametrize("make", [lambda: Before(MLP), lambda: Behind(MLP, after=True), ShortConvolution])
def test_before_a_projection_or_alone_it_is_a_mixer(make: Make) -> None:
    found: list[TermKind] = []
    model = Decoder(TwoBranches, [Attention, make, Attention])
    torch.compiler.reset()
    options = {"inner": "eager", "on_report": lambda report: found.extend(term.kind for term in report.table.terms)}
    torch.compile(model, backend="farskip", fullgraph=True, options=options)(token_ids())
    assert TermKind.MIXER in found
