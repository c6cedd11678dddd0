# SPDX-License-Identifier: Apache-2.0
"""Decoders whose layers are each written in another style: rewired as by hand, or refused, never something in between.

In:    a `Styles`: for each layer how tokens are mixed, how experts are written, and how the residual is added; and
       what the layers stand in: one stack, or something that is none (`settings`).
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Demands: if all styles are ones that are read, the compiled model is bit-equal to the FarSkip form written by hand
(`tests.handwritten.decoder`); if one of them is not, the model is refused, whatever the others are and wherever it
stands; and so is whatever is no plain stack. Under `none` every model is what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from farskip_compile.errors import FarSkipError
from tests.compile_each import compile_each
from tests.fuzz.demands import check_refusal, demand
from tests.fuzz.settings import SETTINGS
from tests.handwritten import test_adds as adds
from tests.handwritten import test_experts as experts
from tests.handwritten.decoder import Attention, Decoder, farskip_form, token_ids
from tests.verify import nets

READ_ADDS: dict[str, Any] = {"plain": lambda h, y: h + y, **adds.ADDS}
READ_ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "adapted": adds.Adapted,
    "two outputs": adds.TwoOutputs,
}
READ_EXPERTS: dict[str, Callable[[], nn.Module]] = {
    "branches": adds.TwoBranches,
    "masks": experts.Masks,
    "zeros like shared": experts.ZerosLikeShared,
    **{f"into shared, {how}": type(how, (experts.IntoShared,), {"how": how}) for how in experts.WAYS},
    **{f"alone, {how}": type(how, (experts.Alone,), {"how": how}) for how in experts.WAYS},
}
REFUSED_ADDS: dict[str, Any] = nets.ADDS
REFUSED_ATTENTION: dict[str, Callable[[], nn.Module]] = {
    how: lambda mix=mix: nets.Mixer(mix, tokens=5)  # type: ignore[misc]
    for how, mix in nets.MIXERS.items()
}
REFUSED_EXPERTS: dict[str, Callable[[], nn.Module]] = {
    **{how: lambda gates=gates: nets.Experts(gates) for how, gates in nets.SELECTIONS.items()},  # type: ignore[misc]
    "soft": nets.SoftExperts,
}


@dataclass(frozen=True)
class Styles:
    """Names of styles, layer by layer."""

    attention: tuple[str, ...]
    experts: tuple[str, ...]
    adds: tuple[str, ...]
    setting: str = ""
    """A key of `SETTINGS`; empty for one plain stack."""

    @property
    def is_read(self) -> bool:
        """Whether all of them are read."""
        known = {*READ_ADDS, *READ_ATTENTION, *READ_EXPERTS}
        return not self.setting and known.issuperset((*self.attention, *self.experts, *self.adds))

    def build(self) -> Decoder:
        """The model."""
        torch.manual_seed(len(str(self)))
        return Decoder(
            [{**READ_EXPERTS, **REFUSED_EXPERTS}[name] for name in self.experts],
            [{**READ_ATTENTION, **REFUSED_ATTENTION}[name] for name in self.attention],
            [{**READ_ADDS, **REFUSED_ADDS}[name] for name in self.adds],
            len(self.adds),
        ).double()


@st.composite
def styles(draw: st.DrawFn) -> Styles:
    """Two or three layers. Of four models two are read, one has a style that is refused, one is no plain stack."""
    layers = draw(st.integers(2, 3))
    chosen = [
        [draw(st.sampled_from(sorted(read))) for _ in range(layers)]
        for read in (READ_ATTENTION, READ_EXPERTS, READ_ADDS)
    ]
    fault = draw(st.sampled_from(["", "", "style", "setting"]))
    if fault == "style":
        kind = draw(st.integers(0, 2))
        refused = (REFUSED_ATTENTION, REFUSED_EXPERTS, REFUSED_ADDS)[kind]
        chosen[kind][draw(st.integers(0, layers - 1))] = draw(st.sampled_from(sorted(refused)))
    setting = draw(st.sampled_from(sorted(SETTINGS))) if fault == "setting" else ""
    return Styles(*map(tuple, chosen), setting=setting)  # type: ignore[arg-type]


def check_styles(example: Styles) -> Counter[str]:
    """Check one model, captured once for both wishes.

    Raises:
        Broken: a demand is not met.
    """
    decoder = example.build()
    model, args = SETTINGS[example.setting](decoder) if example.setting else (decoder, (token_ids(),))
    torch.compiler.reset()
    none, full = compile_each(model, [{"inner": "eager", "connectivity": asked} for asked in ("none", "full")])
    with torch.no_grad():
        demand(torch.equal(_seeded(none, *args), _seeded(model, *args)), "`none` changed the function")
        try:
            found = _seeded(full, *args)
        except FarSkipError as error:
            check_refusal(error)
            demand(not example.is_read, f"refused: {error}")
            return Counter({f"refused {type(error).__name__}": 1})
        demand(example.is_read, "rewired, though a layer is in a style that is not read")
        demand(torch.equal(found, farskip_form(decoder, token_ids())), "other bits than the form by hand")
    return Counter({"accepted": 1, "full: rewired": 1})


def _seeded(model: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # Gumbel noise
    return model(*args)
