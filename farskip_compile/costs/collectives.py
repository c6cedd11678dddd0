"""What a launch of a collective moves.

In:    a node of an ATen graph that calls a functional collective, with fake values in `meta["val"]`.
Out:   a `CollectiveCost`; `alpha_beta` turns it into seconds.
Never: communicates, or looks at which ranks a group holds.

Known are all operators of `_c10d_functional`: all-to-all with equal, given or data-dependent splits, all-reduce,
all-gather, reduce-scatter and broadcast, in place, with `out=`, and coalesced (the sum of their tensors). A transfer
between two ranks counts as a broadcast of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile._compat.distributed import group_size
from farskip_compile.costs.memory import tensor_bytes, tensors_of
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]

NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor")
POINT_TO_POINT = ("isend", "irecv", "batch_p2p_ops")


@dataclass(frozen=True)
class CollectiveCost:
    """What one launch moves."""

    kind: CollectiveKind
    """The collective whose formula applies."""
    bytes: int
    """n of the formulas: the larger of what a rank gives and what it gets."""
    group_name: str
    """Process group; launches of one group run one after another."""
    ranks: int
    """Size of the group."""
    fewer: int | None = None
    """The smaller of the two, of an all-to-all in which they differ."""


def collective_cost(node: fx.Node, size: Size) -> CollectiveCost:
    """What the launch `node` moves.

    Args:
        node: a call of a `_c10d_functional` operator other than `wait_tensor`.
        size: turns a size, which may be symbolic, into a number; see `SizeHints`.

    Raises:
        UnsupportedPatternError: `node` is no launch of a collective.
    """
    kind = _kind(node)
    if kind is None:
        raise UnsupportedPatternError(
            f"{ops.op_name(node) or node.op} launches no collective that the cost model knows",
            way_out="ask is_launch(node) first",
            where=ops.where(node),
        )
    group = ops.process_group(node)
    ranks = 2 if ops.op_name(node).endswith(POINT_TO_POINT) else group_size(group)
    given = [value for arg in node.all_input_nodes for value in tensors_of(ops.fake(arg))]
    if isinstance(out := node.kwargs.get("out"), fx.Node):
        given = [value for value in given if value is not ops.fake(out)]
    got = tensors_of(ops.fake(node))
    fewer, most = sorted(sum(tensor_bytes(value, size) for value in values) for values in (given, got))
    return CollectiveCost(kind, most, group, ranks, fewer if kind == "all_to_all" and fewer < most else None)


def is_launch(node: fx.Node) -> bool:
    """Whether `node` launches a collective that `collective_cost` knows."""
    return _kind(node) is not None


def _kind(node: fx.Node) -> CollectiveKind | None:
    namespace, _, name = ops.op_name(node).partition("::")
    if namespace not in NAMESPACES:
        return None
    if name in POINT_TO_POINT:
        return "broadcast"
    if name == "shard_dim_alltoall":
        return "all_to_all"
    return next((kind for kind in COLLECTIVE_KINDS if name.startswith(kind)), None)
