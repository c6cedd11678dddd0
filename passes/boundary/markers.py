# SPDX-License-Identifier: Apache-2.0
"""The two marks by which a graph says that it is a part of a stack: where the stream comes in cut, and where it leaves.

Contract: plain functions that Dynamo puts into its graphs as they are (`torch.compiler.allow_in_graph`, in `regional`).
Any other backend may run them: `arrive` makes the whole stream of the parts, `depart` gives back what it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile.passes.boundary.tail import tail_of


def arrive(key: str, *parts: Any) -> torch.Tensor:
    """The stream that comes in as the parts of the tail called `key`."""
    return tail_of(key)(*parts)


def depart(
    value: torch.Tensor, here: bool | str, later: bool | str, prepared: str = "", plan: str = ""
) -> torch.Tensor:
    """`value`, which a layer returns; whether the connectivity applies to this layer, and to the next one; of one by
    table, what it says to either (`rewire.told`).

    `prepared`: which backend a compile without options is for, as `prepared_for` reads it. `plan`: which layers of how
    many the connectivity applies to: what ranks must have in common.
    """
    return value


def is_arrival(node: fx.Node) -> bool:
    """Whether the stream comes in cut here."""
    return node.op == "call_function" and node.target is arrive


def prepared_for(module: fx.GraphModule) -> str:
    """The backend that a graph of Dynamo was prepared for, checkpoints not yet opened; empty if it was not."""
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            if is_departure(node) and len(node.args) > 3:
                return str(node.args[3])
    return ""


def is_departure(node: fx.Node) -> bool:
    """Whether a layer returns this."""
    return node.op == "call_function" and node.target is depart
