# SPDX-License-Identifier: Apache-2.0
"""A residual network as a description: sub-blocks, and the sums between them.

Contract: data only. What its connectivity table must be is known by construction (`rows`, `kind_of`); `network_graph`
makes a graph of it or computes it, `network_drawing` generates it.
"""

from __future__ import annotations

import operator
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch

WIDTH, VOCABULARY, EXPERTS, TOP_K = 8, 11, 3, 2
IN_PLACE = {"iadd": operator.iadd, "add_": "add_", "imul": operator.imul}
ADDS: dict[str, Any] = {
    "+": operator.add,
    "torch.add": torch.add,
    ".add": "add",
    "aten": torch.ops.aten.add.Tensor,
    "iadd": operator.iadd,
    "add_": "add_",
    "-": operator.sub,
}


@dataclass(frozen=True)
class NetworkValue:
    """A node of the description: a term, or a linear image or sum of earlier values."""

    op: str
    """embedding, position, term, add, number, vector, round, same or view (to the other of the two shapes)"""
    args: tuple[int, ...]
    """Indices of the values that it is made of."""
    terms: frozenset[int]
    """Indices of the terms that it holds."""
    style: str = ""
    """In which form it is written."""
    flat: bool = False
    """[tokens, width] instead of [batch, sequence, width]"""


@dataclass(frozen=True)
class NetworkBlock:
    """A sub-block: what it reads, and the terms it makes (in `kinds`, routed ones first)."""

    index: int
    """Position among the blocks."""
    reads: int
    """Index of the value that it reads."""
    first_term: int
    """Index of the first term that it makes."""
    kinds: tuple[str, ...]
    """Of its terms: attention, dense or routed."""
    form: str
    """sdpa, heads or softmax; plain or gated; stacked, picked, rows or unrolled"""
    norm: str
    """open (written out), rms_norm or layer_norm"""
    share_norm: bool = False
    """With other blocks that read the same value through a norm of the same form."""
    flat: bool = False
    """Works on [tokens, width]."""
    bias: bool = False
    """Its products add one."""
    rope: bool = False
    """Its attention rotates queries and keys."""

    @property
    def kind(self) -> str:
        """Of the block: that of its first term."""
        return self.kinds[0]

    @property
    def terms(self) -> range:
        """The terms that it makes."""
        return range(self.first_term, self.first_term + len(self.kinds))


@dataclass
class GeneratedNetwork:
    """A residual network."""

    batch: int
    """Sequences."""
    sequence: int
    """Tokens of each."""
    values: list[NetworkValue] = field(default_factory=list)
    """The nodes of the description."""
    blocks: list[NetworkBlock] = field(default_factory=list)
    """The sub-blocks, in order."""
    steps: list[int | NetworkBlock] = field(default_factory=list)
    """Indices of values, and blocks, in the order of execution."""
    chain: list[int] = field(default_factory=list)
    """Indices of the values of the main chain, from the embedding to the final hidden state."""
    term_kinds: list[str] = field(default_factory=list)
    """By term: embedding, attention, dense or routed."""
    also_returned: int | None = None
    """A value of the chain that is returned beside the logits."""
    from_ids: bool = True
    """The input is token ids; False: the embedding itself."""
    attributes: bool = False
    """Parameters are attributes of the graph's module; False: inputs."""
    dead_code: bool = False
    """With nodes that nobody uses."""

    def add(self, value: NetworkValue) -> int:
        """Append a value, and return its index."""
        self.values.append(value)
        self.steps.append(len(self.values) - 1)
        return len(self.values) - 1

    def rows(self) -> list[tuple[frozenset[int], frozenset[int], str]]:
        """(terms, reads, kind) of each sub-block: consecutive blocks of one class that read the same are one."""
        rows: list[list[Any]] = []
        latest: dict[bool, list[Any]] = {}
        for block in self.blocks:
            mixes, reads = block.kind == "attention", self.values[block.reads].terms
            row = latest.get(mixes)
            if row is None or row[1] != reads:
                latest[mixes] = row = [set(), reads, block.kind]
                rows.append(row)
            row[0] |= set(block.terms)
            row[2] = "routed" if block.kind == "routed" else row[2]
        return [(frozenset(terms), reads, kind) for terms, reads, kind in rows]

    def kind_of(self, term: int) -> str:
        """What the table must call `term`: a dense one beside a routed one is shared."""
        for terms, _, kind in self.rows():
            if term in terms:
                return "shared" if kind == "routed" and self.term_kinds[term] == "dense" else self.term_kinds[term]
        return "embedding"

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What it is called with."""
        ids = torch.arange(self.batch * self.sequence).mul(7).remainder(VOCABULARY).view(self.batch, self.sequence)
        return (ids,) if self.from_ids else (state("inputs", (self.batch, self.sequence, WIDTH)),)


def state(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The parameter of that name, always the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
