"""The way out for collectives that are called with `async_op=True`.

Contract: such a call returns a handle that Dynamo can't trace, so the graph ends there and the call never reaches us.
It is not needed either: a functional collective is captured, and the backend starts it early and waits for it late.
"""

from __future__ import annotations

import re

from farskip_compile.errors import AsyncCollectiveError, Where

FUNCTIONAL = {
    "all_to_all_single": "all_to_all_single(input, output_splits, input_splits, group)",
    "all_reduce": 'all_reduce(tensor, "sum", group)',
    "all_gather_into_tensor": "all_gather_tensor(tensor, 0, group)",
    "reduce_scatter_tensor": 'reduce_scatter_tensor(tensor, "sum", 0, group)',
}
"""Collective of `torch.distributed` -> the call of `torch.distributed._functional_collectives` that returns its
result."""


def async_collective(reason: str | None, node: str | None = None) -> AsyncCollectiveError | None:
    """The error for a graph break whose reason is an `async_op=True`; None for any other reason.

    Args:
        reason: Dynamo's text, with the user's line.
        node: where the stack is cut.
    """
    found = re.search(r"async_op=True.*?<function (\w+)", reason or "", re.DOTALL)
    if found is None:
        return None
    name = found.group(1)
    call = FUNCTIONAL.get(name)
    instead = f"torch.distributed._functional_collectives.{call}" if call else "the functional collective"
    helpers = ", or farskip_compile.comm.dispatch and combine" if name == "all_to_all_single" else ""
    line = re.search(r"\(([^()\s]+:\d+): ", reason or "") or re.search(r'File "([^"]+)", line (\d+)', reason or "")
    return AsyncCollectiveError(
        f"torch.distributed.{name} is called with async_op=True, which ends the graph inside of the residual stack",
        way_out=f"call {instead}{helpers}; or {name} without async_op: the backend overlaps either with compute",
        where=Where(node=node, source=":".join(line.groups()) if line else None),
    )
