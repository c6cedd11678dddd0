# SPDX-License-Identifier: Apache-2.0
"""The user's call that a node was made of: its name, its operator as it is written, and its line of source.

Contract: `note_written` notes the call on each node of Dynamo's graph, and passes copy metas with nodes; the other
functions read the note, for messages and reports.
"""

from __future__ import annotations

import re

from torch import fx

from farskip_compile.errors import Where
from farskip_compile.passes.graph import ops

WRITTEN = "farskip_written"
"""Key of a node's meta: the name and the operator of the node of Dynamo's graph that it was made of. Metas are copied
with nodes, so what a pass makes of a user's call still knows that call."""
SPELLED = {
    "setitem": "x[...] = y",
    "getitem": "x[...]",
    "truediv": "/",
    "iadd": "+=",
    "isub": "-=",
    "imul": "*=",
    "itruediv": "/=",
}
"""Python's operators that are not called by the name which they have in `operator`."""


def note_written(graph: fx.Graph) -> None:
    """Note the name and the operator of each node as the user's call, unless an earlier one is noted there."""
    for node in graph.nodes:
        if WRITTEN not in node.meta:
            node.meta[WRITTEN] = node.name, _spelled(node)


def _spelled(node: fx.Node) -> str:
    name = ops.op_name(node)
    spelled = SPELLED.get(name)
    return spelled if spelled is not None and getattr(node.target, "__module__", "") == "_operator" else name


def name_written(node: fx.Node) -> str:
    """Return the name, in Dynamo's graph, of the user's call that `node` was made of."""
    return str(node.meta[WRITTEN][0]) if WRITTEN in node.meta else node.name


def shown(node: fx.Node) -> str:
    """Return the operator of `node` for a message, as it stands in the user's code."""
    return str(node.meta[WRITTEN][1]) if WRITTEN in node.meta else _spelled(node)


def source_line(node: fx.Node) -> str | None:
    """Return `file:line` of the innermost frame outside torch that made `node`."""
    lines = source_lines(node)
    return lines[-1] if lines else None


def source_lines(node: fx.Node) -> list[str]:
    """Return `file:line` of the frames outside torch that made `node`, outermost first, or of all frames."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if "/torch/" not in frame[0].replace("\\", "/")]
    return [":".join(frame) for frame in own or frames]


def where(node: fx.Node, layer: int | None = None) -> Where:
    """Return the place of `node`, for an error: of the call in the user's code that it was made of."""
    return Where(layer=layer, node=name_written(node), source=source_line(node))
