# SPDX-License-Identifier: Apache-2.0
"""Which modules `regional` takes for the layers, in layouts that people use. A container that holds the layers' list
beside an embedding and a norm is not the list, and one list under two names is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile.tools.regional.layers import find_layers
from tests.graphs import Layer, MoE, Stack, ids


def blocks() -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)]


def nano_gpt() -> nn.Module:
    model = nn.Module()
    embeddings = {"wte": nn.Embedding(64, 4), "wpe": nn.Embedding(8, 4)}
    model.transformer = nn.ModuleDict({**embeddings, "h": nn.ModuleList(blocks()), "ln_f": nn.LayerNorm(4)})
    return model


def sequence_in_a_dictionary() -> nn.Module:
    model = nn.Module()
    model.parts = nn.ModuleDict({"wte": nn.Embedding(64, 4), "h": nn.Sequential(*blocks()), "ln_f": nn.LayerNorm(4)})
    return model


def one_list_with_two_names() -> nn.Module:
    model = nn.Module()
    model.decoder = nn.Module()
    model.decoder.layers = nn.ModuleList(blocks())
    model.layers = model.decoder.layers
    return model


def two_lists_of_the_same_layers() -> nn.Module:
    model = one_list_with_two_names()
    model.layers = nn.ModuleList(model.decoder.layers)
    return model


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (nano_gpt, ["transformer.h.0", "transformer.h.1", "transformer.h.2"]),
        (sequence_in_a_dictionary, ["parts.h.0", "parts.h.1", "parts.h.2"]),
        (one_list_with_two_names, ["decoder.layers.0", "decoder.layers.1", "decoder.layers.2"]),
        (two_lists_of_the_same_layers, ["decoder.layers.0", "decoder.layers.1", "decoder.layers.2"]),
    ],
)
def test_layouts(made: Callable[[], nn.Module], names: list[str]) -> None:
    model = made()
    assert [name for name, _ in find_layers(model, None)[1]] == names


def test_the_call_that_runs_the_layers() -> None:
    """A dictionary or a plain module that holds the list is never called: a hook on it would never run."""
    model, inner = nano_gpt(), nn.Linear(4, 4)
    outer = nn.Module()
    outer.model, inner.layers = inner, nn.ModuleList(blocks())
    assert find_layers(model, "transformer.h")[0] == [model]
    assert find_layers(outer, None)[0] == [outer, inner]


class Nano(nn.Module):
    """The layers in a dictionary, and by a second name in the model."""

    def __init__(self) -> None:
        super().__init__()
        stack = Stack(lambda: Layer(MoE()), layers=2)
        self.transformer = nn.ModuleDict({"wte": stack.embedding, "h": stack.layers, "ln_f": stack.norm})
        self.blocks, self.head = stack.layers, stack.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids)
        for layer in self.blocks:
            x = layer(x)
        return self.head(self.transformer["ln_f"](x))


def test_a_dictionary_that_holds_the_list_runs_as_the_whole_model_does() -> None:
    torch.compiler.reset()
    model = Nano()
    whole = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        expected = whole(ids())
        made = farskip_compile.regional(model, "full", inner="eager")
        assert torch.equal(model(ids()), expected)
    assert made.report.left_out
