"""The operator `farskip::announce`: a compiled graph says what it launches, before the first launch.

Contract: the announcement is the text argument of an operator in the graph itself, so it is there on a warm cache too,
when no pass runs. This file defines the operator and puts it into graphs; what happens when it runs is for
`ranks.agree` to say. Nothing here communicates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops

LIBRARY = torch.library.Library("farskip", "FRAGMENT")
LIBRARY.define("announce(str text) -> ()")


def collective_orders(graph: fx.Graph) -> dict[str, list[str]]:
    """For each process group of `graph`, its launches in order: operator, reduction and type."""
    orders: dict[str, list[str]] = {}
    for node in ops.calls(graph, ops.is_collective):
        name = ops.op_name(node).split("::")[1]
        reduction = [arg for arg in node.args[1:2] if isinstance(arg, str) and "reduce" in name]
        value = next((ops.tensor(arg) for arg in node.all_input_nodes if ops.tensor(arg) is not None), None)
        kind = [str(value.dtype).removeprefix("torch.")] if value is not None else []
        orders.setdefault(ops.process_group(node), []).append(" ".join([name, *reduction, *kind]))
    return orders


def insert_announcement(graph: fx.Graph, text: str) -> None:
    """Let `graph` announce `text` before anything else it does."""
    first = next((node for node in graph.nodes if node.op not in ("placeholder", "get_attr")), None)
    assert first is not None
    with graph.inserting_before(first):
        graph.call_function(announcement(), (text,))


def announcement() -> Any:
    """The operator `farskip::announce`."""
    return torch.ops.farskip.announce.default


torch.library.register_fake("farskip::announce", lambda text: None, lib=LIBRARY)
torch.fx.node.has_side_effect(announcement())
