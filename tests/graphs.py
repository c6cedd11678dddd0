# SPDX-License-Identifier: Apache-2.0
"""For tests of one behaviour each: small modules to put together, `dynamo` to capture them, `table_of`.

Whole networks whose connectivity table is known by construction are in `farskip_compile.testing.strategies`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.table import Table
from farskip_compile.testing.strategies.network import EXPERTS, TOP_K, VOCABULARY, WIDTH


def dynamo(
    function: Callable[..., Any],
    *inputs: Any,
    edit: Callable[[fx.GraphModule], Any] | None = None,
    dynamic: bool | None = None,
) -> tuple[fx.GraphModule, Any]:
    """The graph that Dynamo makes of `function`, edited, and what it returns then."""
    seen: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        if edit is not None:
            edit(module)
            module.recompile()
        seen.append(module)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    return seen[0], output


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(h)))


class Experts(nn.Module):
    """The routed experts alone; `scores` gives the router's logits."""

    def __init__(self, experts: int = EXPERTS) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.stacked = nn.Parameter(torch.randn(experts, WIDTH, WIDTH) * 0.4)

    def scores(self, h: torch.Tensor) -> torch.Tensor:
        return self.router(h)

    def forward(self, h: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        shape = h.shape
        logits = self.scores(h) if logits is None else logits
        weights, ids = logits.flatten(0, 1).softmax(-1).topk(TOP_K, dim=-1)
        picked = torch.einsum("nd,nkde->nke", h.reshape(-1, shape[-1]), self.stacked[ids])
        return (picked * weights.unsqueeze(-1)).sum(1).view(shape)


class MoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.routed, self.shared = Experts(), Dense()

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.routed(h) + self.shared(h)


class Layer(nn.Module):
    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), feed_forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Stack(nn.Module):
    """Embedding, layers, norm, head; `Stack(make)` builds two layers with `make`, in float64."""

    def __init__(self, make: Callable[[], nn.Module], layers: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.layers = nn.ModuleList(make() for _ in range(layers))
            self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.double().eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def ids(batch: int = 2, sequence: int = 5) -> torch.Tensor:
    return torch.arange(batch * sequence).mul(3).remainder(VOCABULARY).view(batch, sequence)


def table_of(function: Callable[..., Any], *inputs: Any) -> Table:
    """The table of the graph that Dynamo makes of `function`."""
    return reading_of(function, *inputs).table


def reading_of(function: Callable[..., Any], *inputs: Any) -> Reading:
    """The graph that Dynamo makes of `function`, and its table."""
    found: list[Reading | None] = []

    def edit(module: fx.GraphModule) -> None:
        normalize(module)
        found.append(read_table(module.graph))

    dynamo(function, *(inputs or (ids(),)), edit=edit)
    assert found[0] is not None
    return found[0]


def reads(table: Table) -> dict[str, str]:
    """Row name -> names of the terms that it reads, in one string."""
    return {row.name: " ".join(table.names(row.reads)) for row in table.rows}
