# SPDX-License-Identifier: Apache-2.0
"""Graph breaks with a known way out: each becomes an error that names it.

In:    the text of Dynamo's reason, which holds the line at which it gave up (not those of its callers).
Out:   an error, or None for any other reason.
Never: names the library of a model; those named here are where the break is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from farskip_compile.errors import AsyncCollectiveError, PartialModelError, Where


@dataclass(frozen=True)
class GraphBreakHint:
    """A place at which Dynamo gives up."""

    path: str
    """Part of the path of the file."""
    reason: str
    way_out: str


PLACES = (
    GraphBreakHint(
        "torch/distributed/fsdp/",
        "FSDP gathers the parameters of each sharded layer in hooks that Dynamo does not trace, so every such layer is "
        "a graph of its own",
        "shard the root module only, fully_shard(model) without a call on its layers; or shard by a parametrization "
        "that gathers DTensor parameters inside the graph (docs/parallel.md)",
    ),
    GraphBreakHint(
        "peft/utils/integrations",
        "PEFT's DoRA asks for the name of a parameter's class in each call, which Dynamo traces from torch 2.15 on",
        "train plain LoRA (use_dora=False); or model.merge_and_unload(), and compile what it returns",
    ),
    GraphBreakHint(
        "deepspeed/runtime/zero",
        "DeepSpeed's ZeRO-3 gathers the parameters of each module in hooks that Dynamo does not trace, so every such "
        "module is a graph of its own",
        "ZeRO-1 or ZeRO-2, or FSDP2 layer by layer (docs/layers.md); and torch.compiler.reset() before compiling again",
    ),
    GraphBreakHint(
        "accelerate/hooks",
        "accelerate's hooks move parameters and inputs of each layer (`device_map` over several devices, offload to "
        "cpu or disk), and Dynamo does not trace them, so every such layer is several graphs",
        'load the model onto one device, device_map={"": device}; or spread it with tensor or expert parallelism '
        "(docs/parallel.md), FSDP2 layer by layer (docs/layers.md); and torch.compiler.reset() before compiling again",
    ),
    GraphBreakHint(
        "transformers/distributed/expert_parallel",
        "the all-to-all expert parallelism of transformers branches on how many tokens a rank got, which no graph can",
        "farskip_compile.prepare(model) replaces it; or register_expert_parallel() of farskip_compile.tools.prepare "
        'and DistributedConfig(ep_implementation="farskip_all_to_all")',
    ),
)

REGIONAL = (
    "outside of the layers it may stay: farskip_compile.regional(model) compiles these one by one, and what is around "
    "them runs as it is written (docs/layers.md)"
)
DEPENDS_ON_DATA = (
    "write this step so that its shape does not depend on values; a loop over experts is replaced by "
    f"farskip_compile.prepare(model), or its notes say why not; {REGIONAL}"
)
"""The way out of a branch or a shape that depends on data."""
BRANCH = "a branch depends on data, whose values are only known when the model runs"
"""`generic_jump TensorVariable()`, in words."""
EXPLANATION = (" The branch condition involves", " Hint:", " Developer debug context:")
"""The place in Dynamo's account of a graph break at which the event ends and background begins."""

FUNCTIONAL = {
    "all_to_all_single": "all_to_all_single(input, output_splits, input_splits, group)",
    "all_reduce": 'all_reduce(tensor, "sum", group)',
    "all_gather_into_tensor": "all_gather_tensor(tensor, 0, group)",
    "reduce_scatter_tensor": 'reduce_scatter_tensor(tensor, "sum", 0, group)',
}
"""Collective of `torch.distributed` -> the call of `torch.distributed._functional_collectives` that returns its
result."""


def known_break(reason: str | None, node: str | None = None) -> PartialModelError | None:
    """The error for a known graph break, by Dynamo's text with the user's line; None for any other. `node` is where the
    residual stack is cut."""
    text = reason or ""
    if (error := _async_collective(text, node)) is not None:
        return error
    path = text.replace("\\", "/")
    known = next((one for one in PLACES if one.path in path), None)
    return PartialModelError(known.reason, way_out=known.way_out, where=Where(node=node)) if known is not None else None


def stated(reason: str) -> tuple[str, str | None]:
    """Return the event that a text of Dynamo tells of, without hints, and the `file:line` of the user's code."""
    end = min((reason.find(mark) for mark in EXPLANATION if mark in reason), default=len(reason))
    place = LINE.search(reason)
    end = min(end, place.start()) if place is not None else end
    said = BRANCH if reason.startswith("generic_jump") else reason[:end].strip()
    return said, place.group(1) if place is not None else None


def depends_on_data(text: str) -> bool:
    """Return whether a text of Dynamo is about a branch or a shape that depends on data."""
    return "data-dependent" in text.lower()


LINE = re.compile(r" \(([^()\s]+:\d+): ")


def _async_collective(reason: str, node: str | None) -> AsyncCollectiveError | None:
    """The error for a collective that is called with `async_op=True`.

    Such a call returns a handle that Dynamo can't trace, so the graph ends there and the call never reaches the
    backend. It is not needed: a functional collective is captured, launched early and awaited late.
    """
    found = re.search(r"<function (\w+)", reason.partition("async_op=True")[2])
    if found is None:
        return None
    name = found.group(1)
    call = FUNCTIONAL.get(name)
    instead = f"torch.distributed._functional_collectives.{call}" if call else "the functional collective"
    helpers = ", or farskip_compile.comm.dispatch and combine" if name == "all_to_all_single" else ""
    line = re.search(r"\(([^()\s]+:\d+): ", reason) or re.search(r'File "([^"]+)", line (\d+)', reason)
    return AsyncCollectiveError(
        f"torch.distributed.{name} is called with async_op=True, which ends the graph inside the residual stack",
        way_out=f"call {instead}{helpers}; or {name} without async_op: the backend overlaps either with compute",
        where=Where(node=node, source=":".join(line.groups()) if line else None),
    )
