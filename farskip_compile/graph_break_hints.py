"""Graph breaks whose way out we know: each becomes an error that names it.

Contract: reads the text of Dynamo's reason, which holds the line at which it gave up (not those of its callers); None
for any other reason. The libraries that are named here are those of the break, never those of a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from farskip_compile.async_calls import async_collective
from farskip_compile.errors import PartialModelError, Where


@dataclass(frozen=True)
class Known:
    """A place at which Dynamo gives up."""

    path: str
    """Part of the path of the file."""
    reason: str
    way_out: str


PLACES = (
    Known(
        "torch/distributed/fsdp/",
        "FSDP gathers the parameters of each sharded layer in hooks that Dynamo does not trace, so every such layer is "
        "a graph of its own",
        "shard the root module only, fully_shard(model) without a call on its layers; or shard by a parametrization "
        "that gathers DTensor parameters inside of the graph (docs/parallel.md)",
    ),
    Known(
        "transformers/distributed/expert_parallel",
        "the all-to-all expert parallelism of transformers branches on how many tokens a rank got, which no graph can",
        "farskip_compile.prepare(model) replaces it; or register_expert_parallel() of farskip_compile.prepare and "
        'DistributedConfig(ep_implementation="farskip_all_to_all")',
    ),
)


def known_break(reason: str | None, node: str | None = None) -> PartialModelError | None:
    """The error for a graph break that we know; None for any other.

    Args:
        reason: Dynamo's text, with the user's line.
        node: where the stack is cut.
    """
    if (error := async_collective(reason, node)) is not None:
        return error
    text = (reason or "").replace("\\", "/")
    known = next((one for one in PLACES if one.path in text), None)
    if known is None:
        return None
    return PartialModelError(known.reason, way_out=known.way_out, where=Where(node=node))
