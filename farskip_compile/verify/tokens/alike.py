# SPDX-License-Identifier: Apache-2.0
"""What a claim says, without names: two claims that say the same need one proof. Models have many layers alike.

Contract: two keys are equal only if both pairs of graphs make the same calls, on the same constants, of values of the
same form, joined in the same way.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import ops


def key_of(graphs: Sequence[Mapping[fx.Node, str | None]]) -> Hashable | None:
    """Of what is run for a claim, in the old graph and in the new one, from values that are given by name; None if it
    depends on what was run for another claim."""
    numbers: dict[str, int] = {}
    lines: list[Hashable] = []
    for nodes in graphs:
        places: dict[fx.Node, str] = {}
        for node, name in nodes.items():
            if name == "":
                return None
            if name is not None:
                places[node] = f"given {numbers.setdefault(name, len(numbers))}"
                state = node.op == "placeholder" and is_module_state(node)
                lines.append((places[node], node.op, state, _form(node)))
                continue
            places[node] = f"%{len(places)}"
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg, places=places: places[arg])  # type: ignore[misc]
            lines.append((node.op, node.target, repr(args), repr(kwargs), _form(node)))
        lines.append("and")
    return tuple(lines)


def _form(node: fx.Node) -> Hashable:
    """Type, and sizes that are numbers."""
    value = ops.fake(node)
    parts = value if isinstance(value, tuple | list) else [value]
    return tuple(
        (part.dtype, tuple(size if isinstance(size, int) else "?" for size in part.shape))
        if isinstance(part, torch.Tensor)
        else type(part).__name__
        for part in parts
    )
