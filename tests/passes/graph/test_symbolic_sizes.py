# SPDX-License-Identifier: Apache-2.0
"""Symbolic sizes are equal if the graph's guards say so, whatever their expressions look like; asking adds no guard."""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.passes.graph import ops

CHUNK = 8


def add_of_chunks(x: torch.Tensor) -> torch.Tensor:
    """What a mixer does that works on chunks of tokens: pad, part, join, and cut off the padding, if there is any."""
    batch, length, width = x.shape
    padding = (CHUNK - length % CHUNK) % CHUNK
    chunks = torch.nn.functional.pad(x, (0, 0, 0, padding)).reshape(batch, -1, CHUNK, width)  # [B, C, 8, D]
    mixed = chunks.cumsum(dim=2).reshape(batch, -1, width)
    return x + (mixed[:, :length] if padding > 0 else mixed)


def test_a_sum_with_the_chunks_is_a_sum() -> None:
    sums = []

    def look(module: fx.GraphModule, example_inputs: list[object]) -> fx.GraphModule:
        (add,) = (n for n in module.graph.nodes if ops.op_name(n) == "add" and ops.tensor(n) is not None)
        x, mixed = (ops.tensor(arg) for arg in add.args)
        assert x is not None
        assert mixed is not None
        environment = x.fake_mode.shape_env  # type: ignore[attr-defined]
        guards = len(environment.guards)
        longer = x.new_empty(x.shape[0], x.shape[1] + CHUNK, x.shape[2])
        other = x.new_empty(x.shape[0], 2 * CHUNK, x.shape[2])  # of this size by accident
        sums.append(
            (ops.is_sum(add), x.shape[1].node.expr == mixed.shape[1].node.expr)  # type: ignore[attr-defined]
        )
        assert not ops.same_shape(x, longer)
        assert not ops.same_shape(x, other)
        assert len(environment.guards) == guards
        return module

    compiled = torch.compile(add_of_chunks, backend=look, fullgraph=True, dynamic=True)
    for length in (2 * CHUNK, 2 * CHUNK + 3):
        x = torch.randn(2, length, 4)
        assert torch.equal(compiled(x), add_of_chunks(x))
    assert sums == [(True, False), (True, True)]  # the first one holds by guards alone
