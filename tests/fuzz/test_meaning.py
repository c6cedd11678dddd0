# SPDX-License-Identifier: Apache-2.0
"""The criterion of the fuzzing: it agrees with right tables and with right graphs, and with no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import ask
from tests.fuzz.machine import duplicate, run_nodes, same
from tests.fuzz.meaning import Meaning
from tests.graphs import Layer, MoE, Stack, ids


class Positions(Stack):
    """A second embedding is a term of its own, which the first attention may leave out."""

    def __init__(self) -> None:
        super().__init__(lambda: Layer(MoE()))
        self.positions = torch.nn.Embedding.from_pretrained(self.embedding.weight.detach().flip(0) * 0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, gate = self.embedding(ids) + self.positions(ids), None
        for layer in self.layers:
            h = layer.norm1(x)
            gate = layer.attention.q(h) if gate is None else gate
            x = x + layer.attention(h)
            x = x + layer.feed_forward(self.normed(layer.norm2(x), gate))
        return self.head(self.norm(x))

    def normed(self, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return h


class Gated(Positions):
    """The norm that routed and shared experts read hangs on the first attention, beside the stream."""

    def normed(self, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return h * gate.sigmoid().mean(-1, keepdim=True)


def read(model: torch.nn.Module, change: Callable[[Reading], Reading] | None = None) -> Meaning:
    """The criterion for the graph of `model` and the table that is read off it, or another one."""
    made: list[tuple[fx.GraphModule, list[Any]]] = []

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        def forward(*arguments: Any) -> Any:
            made.append((module, list(arguments)))
            return module(*arguments)

        return forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(ids())
        ((module, arguments),) = made
        normalize(module)
        reading = read_table(module.graph)
        assert reading is not None
        return Meaning(module, reading if change is None else change(reading), arguments)


def computed(meaning: Meaning, wish: dict[str, list[str]]) -> tuple[Any, ...]:
    """What the rewired graph gives."""
    module = duplicate(meaning.module)
    reading = read_table(module.graph)
    assert reading is not None
    rewire(module, reading, ask(reading.table, wish))
    return run_nodes(module, meaning.arguments).function()


WISHES = [{"attention.0": ["e.1"]}, {"attention.1": ["r0"], "moe.1": ["a1", "e.1"]}, {"moe.0": ["a0"], "moe.1": ["r0"]}]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("model", [Positions, Gated])
@torch.no_grad()
def test_it_predicts_what_the_rewired_graph_computes(model: type[Positions], wish: dict[str, list[str]]) -> None:
    meaning = read(model())
    assert meaning.unjudged() is None
    assert meaning.misread() == []
    result = computed(meaning, wish)
    assert same(result, meaning.predicted(ask(meaning.table, wish).left_out))
    for other in ({}, *(one for one in WISHES if one is not wish)):
        assert not same(result, meaning.predicted(ask(meaning.table, other).left_out if other else {}))


@pytest.mark.parametrize(
    ("row", "reads", "complaint"),
    [
        ("moe.0", (0, 1), "depends on a0, but moe.0 does not read it"),
        ("moe.0", (0, 1, 2, 5), "moe.0 reads a1, but"),
    ],
)
@torch.no_grad()
def test_a_wrong_row_is_a_complaint(row: str, reads: tuple[int, ...], complaint: str) -> None:
    def change(found: Reading) -> Reading:
        rows = (dataclasses.replace(r, reads=TermSet.of(reads)) if r.name == row else r for r in found.table.rows)
        return dataclasses.replace(found, table=dataclasses.replace(found.table, rows=tuple(rows)))

    complaints = read(Positions(), change).misread()
    assert complaints
    assert all(complaint in one for one in complaints)


@torch.no_grad()
def test_a_wrong_residual_value_is_a_complaint() -> None:
    def change(found: Reading) -> Reading:
        newest = max(found.stream.values.values(), key=len)
        for node, terms in found.stream.values.items():
            if len(terms) == 3:
                found.stream.values[node] = newest
        return found

    assert any("residual value" in complaint for complaint in read(Positions(), change).misread())
