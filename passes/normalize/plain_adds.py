# SPDX-License-Identifier: Apache-2.0
"""One way to write a sum: `rsub(a, b)` is `b - a`, and operands that were given by keyword are given by position.

In:    a Dynamo graph.
Out:   the same function, bit for bit.
Never: touches a sum with a factor (`alpha`), which rounds in its own way.
"""

from __future__ import annotations

import operator

from torch import fx

from farskip_compile.passes.graph import ops

KEYWORDS = ("input", "self", "other")


def write_plain_adds(graph: fx.Graph) -> int:
    """Rewrite the sums of `graph`; returns how many."""
    changed = 0
    for node in graph.nodes:
        name = ops.op_name(node)
        if name not in ("add", "sub", "rsub", "add_", "sub_") or not ops.is_floating(node):
            continue
        if node.kwargs.get("alpha", 1) != 1 or any(key not in (*KEYWORDS, "alpha") for key in node.kwargs):
            continue
        operands = [*node.args, *(node.kwargs[key] for key in KEYWORDS if key in node.kwargs)]
        if len(operands) != 2 or (not node.kwargs and name != "rsub"):
            continue
        if name == "rsub":
            node.op, node.target = "call_function", operator.sub
            operands = operands[::-1]
        node.args, node.kwargs = tuple(operands), {}
        changed += 1
    return changed
