# SPDX-License-Identifier: Apache-2.0
"""Layers that are compiled one by one: refused with the reason, whatever their attention; under `none` they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig

import farskip_compile
from farskip_compile import FarSkipError, Outcome
from farskip_compile.errors import PartialModelError
from tests.verify.nets import Net, inputs

OPTIONS = {"inner": "eager"}


def gpt_oss() -> nn.Module:
    """Attention with sinks, written out: no fused operator."""
    config = GptOssConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=64,
        experts_implementation="batched_mm",
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def compile_layers(model: Any, **options: object) -> None:
    for layer in model.model.layers:
        layer.compile(backend="farskip", options={**OPTIONS, **options})


def test_layers_whose_attention_is_written_out_are_refused() -> None:
    torch.compiler.reset()
    model = gpt_oss()
    compile_layers(model)
    with torch.no_grad(), pytest.raises(FarSkipError) as caught:
        model(torch.arange(6).view(1, 6), use_cache=False)
    assert isinstance(caught.value, PartialModelError), caught.value
    assert "whole model" in caught.value.way_out


def test_they_run_under_none() -> None:
    torch.compiler.reset()
    model, plain = gpt_oss(), gpt_oss()
    plain.load_state_dict(model.state_dict())
    compile_layers(model, connectivity="none")
    ids = torch.arange(6).view(1, 6)
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.FRAGMENT


class Wrapped(nn.Module):
    """A block behind a wrapper, as `disable` and hooks make them."""

    def __init__(self, net: Net, number: int) -> None:
        super().__init__()
        self.net, self.number = net, number

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.net.layer(self.number, h)


@pytest.mark.parametrize("part", ["mixers", "experts", "layers"])
def test_parts_behind_wrappers_are_refused(part: str) -> None:
    torch.compiler.reset()
    net = Net()
    if part == "layers":
        wrapped = [Wrapped(net, number) for number in range(3)]
        parts: list[nn.Module] = wrapped

        def forward(ids: torch.Tensor) -> torch.Tensor:
            h = net.embed(ids)
            for one in wrapped:
                h = one(h)
            return net.head(net.norms[-1](h))

        call: Any = forward
    else:
        parts, call = list(getattr(net, part)), net
    for one in parts:
        one.compile(backend="farskip", options=OPTIONS)
    with torch.no_grad(), pytest.raises(PartialModelError):
        call(inputs())


def test_a_hook_that_dynamo_may_not_trace_cuts_the_model_aloud() -> None:
    torch.compiler.reset()
    net = Net()

    @torch.compiler.disable
    def hook(module: nn.Module, args: Any, result: Any) -> None:
        del module, args, result

    for mixer in net.mixers:
        mixer.register_forward_hook(hook)
    compiled = torch.compile(net, backend="farskip", options=OPTIONS)
    with torch.no_grad(), pytest.raises(PartialModelError):
        compiled(inputs())
