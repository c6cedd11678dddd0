# SPDX-License-Identifier: Apache-2.0
"""Generated architectures: a manifest is accepted by its own model, and refused by every other one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import farskip_compile
from farskip_compile import Manifest, describe
from farskip_compile.errors import ManifestError
from farskip_compile.testing.strategies import cases, nothing_to_leave_out
from farskip_compile.testing.strategies.architectures import GeneratedCase
from farskip_compile.tools.describe import from_report


def compiled(case: GeneratedCase, manifest: Manifest) -> torch.Tensor:
    torch.compiler.reset()
    options = {"inner": "eager", "manifest": manifest}
    with torch.no_grad():
        return torch.compile(case.model(), backend="farskip", fullgraph=True, options=options)(case.ids())


def same_to_a_manifest(left: GeneratedCase, right: GeneratedCase) -> bool:
    """Written from what a manifest is for, without it: the same sub-blocks, parameters and reads as written."""

    def seen(case: GeneratedCase) -> object:
        config = case.config
        parameters = {name: tuple(p.shape) for name, p in case.model().named_parameters()}
        shared = config.shared_experts if "moe" in config.layers else 0
        return config.layers, config.parallel_block, shared, parameters

    return seen(left) == seen(right)


@settings(max_examples=6)
@given(cases(max_layers=3), st.data())
def test_accepted_by_its_own_model_and_refused_by_others(case: GeneratedCase, data: st.DataObject) -> None:
    assume(not nothing_to_leave_out(case))
    options = case.options()
    manifest = Manifest.from_json(describe(case.model(), case.ids(), **options).to_json())
    torch.compiler.reset()
    farskip_compile.reports().clear()
    with torch.no_grad():
        assert torch.equal(compiled(case, manifest), case.oracle(case.model())(case.ids()))
    assert from_report(farskip_compile.reports().compiles[-1], case.model()) == manifest
    other = data.draw(cases(max_layers=3))
    if same_to_a_manifest(case, other):
        compiled(other, manifest)
        return
    with pytest.raises(ManifestError) as caught:
        compiled(other, manifest)
    assert caught.value.way_out
