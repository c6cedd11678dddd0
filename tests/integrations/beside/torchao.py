# SPDX-License-Identifier: Apache-2.0
"""torchao: quantized weights and float8 training are rewired to the form by hand of the converted model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchao.float8.float8_linear import Float8Linear
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import farskip_compile
from farskip_compile.errors import UnsupportedPatternError
from tests.compare import assert_gradients_close, run_with_gradients
from tests.compile_each import compile_each
from tests.integrations.qwen2_moe import qwen2, qwen2_form

IDS = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
FLOAT8 = {"trampoline_autograd_apply": "dense"}


def converted(module: nn.Module, name: str) -> bool:
    """What float8 products take: sizes that 16 divides."""
    return isinstance(module, nn.Linear) and module.in_features % 16 == module.out_features % 16 == 0


@torch.no_grad()
def test_weights_in_eight_bits() -> None:
    """Quantized first, then compiled; the manifest is that of the original, and holds for both."""
    model = qwen2(torch.float32)
    manifest = farskip_compile.describe(model, IDS)
    original = model(IDS).logits
    quantize_(model, Int8WeightOnlyConfig())
    weight = model.model.layers[0].mlp.shared_expert.up_proj.weight
    assert type(weight).__module__.startswith("torchao.")
    asked: list[dict[str, Any]] = [{"inner": "eager"}, {"inner": "aot_eager", "manifest": manifest}]
    for rewired in compile_each(model, asked):
        assert torch.equal(rewired(IDS).logits, qwen2_form(model, IDS))
    assert not torch.equal(model(IDS).logits, original)
    assert farskip_compile.reports().compiles[-1].left_out["attention.1"] == ("r0",)
    assert farskip_compile.describe(model, IDS) == manifest


def test_training_in_float8() -> None:
    """With its product declared; without, the error says how. Gradients are added up in another order."""
    model = qwen2(torch.float32)
    convert_to_float8_training(model, config=Float8LinearConfig(emulate=True), module_filter_fn=converted)
    assert isinstance(model.model.layers[1].self_attn.q_proj, Float8Linear)
    undeclared = torch.compile(copy.deepcopy(model), backend="farskip", fullgraph=True, options={"inner": "eager"})
    with pytest.raises(UnsupportedPatternError, match="nothing is known of 'trampoline_autograd_apply'") as caught:
        undeclared(IDS)
    assert "kinds" in caught.value.way_out
    expected = run_with_gradients(lambda ids: qwen2_form(model, ids), model, IDS)
    options = {"inner": "aot_eager", "kinds": FLOAT8}
    rewired = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    found = run_with_gradients(lambda ids: rewired(ids).logits, model, IDS)
    assert torch.equal(found[0], expected[0])
    assert_gradients_close(found[1], expected[1], 1e-5)
    assert (found[0] - model(IDS).logits).abs().max() > 1e-3, "as written it is another function"


def test_settings_are_no_data_but_unknown_values_are_refused() -> None:
    """A named tuple made of constants goes into a function; made of a tensor, it is not understood."""
    from farskip_compile.passes.normalize import normalize

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    settings = graph.call_function(slice, (1, None))
    inner = graph.call_function(tuple, ((settings, 2),))
    y = graph.call_function(torch.mul, (x, inner))
    x.meta["example_value"] = y.meta["example_value"] = torch.zeros(2)
    graph.output((y,))
    normalize(torch.fx.GraphModule({}, graph))
    settings.args = (x, None)
    with pytest.raises(UnsupportedPatternError, match="nothing is known about the value of 'tuple_1'"):
        normalize(torch.fx.GraphModule({}, graph))
