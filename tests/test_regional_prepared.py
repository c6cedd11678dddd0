# SPDX-License-Identifier: Apache-2.0
"""Layers that are only prepared, and compiled by someone who gives no options: those of `regional` hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.models import build
from farskip_compile.models.generic_form import GenericFarSkipForm


def prepared(connectivity: str, **options: object) -> tuple[nn.Module, farskip_compile.Regional]:
    torch.compiler.reset()
    model = build("mixtral", layers=("moe", "moe")).eval()
    made = farskip_compile.regional(model, connectivity, compile=False, inner="eager", **options)
    for name in made.names:
        model.get_submodule(name).compile(backend="farskip", fullgraph=True)
    return model, made


@pytest.mark.parametrize("connectivity", ["none", "full"])
def test_options_of_regional_hold(connectivity: str) -> None:
    ids = torch.arange(6).view(1, 6)
    with torch.no_grad():
        model, made = prepared(connectivity)
        found = model(ids)
        reports = farskip_compile.reports().compiles
        made.undo()
        plain = build("mixtral", layers=("moe", "moe")).eval()
        plain.load_state_dict(model.state_dict())
        expected = plain(ids) if connectivity == "none" else GenericFarSkipForm(plain, connectivity)(ids)
    assert torch.equal(found, expected)
    assert {report.config["connectivity"] for report in reports} == {connectivity}
    assert {report.config["inner"] for report in reports} == {"eager"}
    assert reports[-1].outcome is (Outcome.UNCHANGED if connectivity == "none" else Outcome.REWIRED)


def test_options_of_the_compile_come_first() -> None:
    torch.compiler.reset()
    model = build("mixtral", layers=("moe", "moe")).eval()
    seen: list[object] = []
    made = farskip_compile.regional(model, "full", compile=False, inner="eager")
    for name in made.names:
        model.get_submodule(name).compile(
            backend="farskip", fullgraph=True, options={"inner": "aot_eager", "on_report": seen.append}
        )
    with torch.no_grad():
        model(torch.arange(6).view(1, 6))
    assert [report.config["inner"] for report in seen] == ["aot_eager"] * len(seen)  # type: ignore[attr-defined]
    assert seen
