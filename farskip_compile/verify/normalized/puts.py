# SPDX-License-Identifier: Apache-2.0
"""The put of a sum of rows that are picked at the same places, written out as the three calls of PyTorch that it means.

Contract: `written_out` is given a `put_sum`, and shares no code with what joined or will part the calls.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph.graph_snapshot import RecordedNode
from farskip_compile.passes.graph.walk import fresh_like

SUMS = {
    "picked + added": lambda picked, added: (operator.add, (picked, added)),
    "added + picked": lambda picked, added: (operator.add, (added, picked)),
    "picked - added": lambda picked, added: (operator.sub, (picked, added)),
}


def written_out(put: Any) -> Iterator[RecordedNode]:
    """Yield the pick, the sum and the put."""
    base, indices, added, form = put.args
    graph = fx.Graph()
    picked, total = graph.placeholder("picked"), graph.placeholder("total")
    target, operands = SUMS[form](picked, added)
    rows = put.meta["farskip_rows"]
    key = tuple(slice(None) if index is None else index for index in indices)
    yield RecordedNode(picked, "call_function", "picked", operator.getitem, (base, key), {}, _fresh(rows))
    yield RecordedNode(total, "call_function", "total", target, operands, {}, _fresh(rows))
    node = getattr(put, "node", put)
    yield RecordedNode(node, "call_function", put.name, torch.index_put, (base, indices, total), {}, dict(put.meta))


def _fresh(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the metadata of a new value like `rows`, in memory of its own."""
    return {"example_value": fresh_like(rows)}
