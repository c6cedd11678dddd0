"""How much a collective moves, and how long that takes: the alpha-beta model.

In:    a launch of a functional collective in an ATen graph; or kind, bytes and ranks.
Out:   a `CollectiveCost`, or seconds.
Never: communicates, or looks at which ranks a group holds: groups of one size cost the same on every rank.

`bytes` n is what one rank holds of the larger side: input of all-to-all (or output, if that is larger), all-reduce,
reduce-scatter and broadcast; output of all-gather. With p ranks, r of them on a node, in the usual algorithms

    kind             bytes that each rank sends   steps
    all_to_all       n (p-1)/p                    p-1            pairwise exchange
    all_gather       n (p-1)/p                    p-1            ring
    reduce_scatter   n (p-1)/p                    p-1            ring
    all_reduce       n 2(p-1)/p                   2(p-1)         ring
    broadcast        n                            p-1            pipelined ring
    seconds = latency[kind] + (steps - 1) * step_latency + sent / (efficiency[kind] * bandwidth)

A group on one node uses the intra-node link throughout. A group that spans nodes has the latencies of the inter-node
link, and its bytes go
- all-to-all: n (p-r)/p over this rank's own inter-node link and n (r-1)/p inside the node, both at once: the slower
  one counts;
- rings: the libraries run r rings, each entering and leaving the node at another rank, so that one rank sees up to r
  times the bandwidth of its inter-node link, but never more than that of the intra-node link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile._compat import group_name_and_size
from farskip_compile.costs.memory import tensor_bytes, tensors_of
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind, HardwareProfile
from farskip_compile.errors import ConfigError, UnsupportedPatternError
from farskip_compile.passes import ops

Size = Callable[[int | torch.SymInt], int]


@dataclass(frozen=True)
class CollectiveCost:
    """What one launch moves."""

    kind: CollectiveKind
    """The algorithm whose formula applies."""
    bytes: int
    """n of the formulas above."""
    group_name: str
    """Process group; launches of one group run one after another."""
    ranks: int
    """Size of the group."""


def collective_cost(node: fx.Node, size: Size) -> CollectiveCost:
    """What the launch `node` moves.

    Args:
        node: a call of a `_c10d_functional` operator other than `wait_tensor`, with fake values in `meta["val"]`.
        size: turns a size, which may be symbolic, into a number; see `SizeHints`.

    Raises:
        UnsupportedPatternError: `node` is no launch of a collective.
    """
    kind = _kind(node)
    if kind is None:
        raise UnsupportedPatternError(
            f"{ops.op_name(node) or node.op} is no launch of a collective that the cost model knows",
            way_out="ask only for launches; is_launch() tells",
            where=ops.where(node),
        )
    name, ranks = group_name_and_size(node)
    received = sum(tensor_bytes(value, size) for value in tensors_of(ops.fake(node)))
    sent = sum(tensor_bytes(value, size) for arg in node.args for value in _values(arg))
    return CollectiveCost(kind, max(sent, received), name, ranks)


def is_launch(node: fx.Node) -> bool:
    """Whether `collective_cost` knows `node`."""
    return _kind(node) is not None


def _kind(node: fx.Node) -> CollectiveKind | None:
    """Kind of a launch by its operator's name; transfers between two ranks count as a broadcast of two."""
    namespace, _, name = ops.op_name(node).partition("::")
    if namespace not in ("_c10d_functional", "_c10d_functional_autograd", "_dtensor") or name == "wait_tensor":
        return None
    if name == "shard_dim_alltoall":
        return "all_to_all"
    return next((kind for kind in COLLECTIVE_KINDS if name.startswith(kind)), None)


def _values(arg: object) -> list[torch.Tensor]:
    nodes = arg if isinstance(arg, list | tuple) else [arg]
    return [value for node in nodes if isinstance(node, fx.Node) for value in tensors_of(ops.fake(node))]


def collective_seconds(
    kind: CollectiveKind, bytes: int, ranks: int, profile: HardwareProfile, ranks_per_node: int | None = None
) -> float:
    """Seconds from launch to completion, if nothing else is on the wire.

    Args:
        kind: as in `CollectiveCost`.
        bytes: n of the formulas above.
        ranks: size of the group.
        profile: the hardware.
        ranks_per_node: how many ranks *of the group* share a node, 1 if it takes one rank of each. None: the group
            fills nodes one after another, each with `profile.ranks_per_node` ranks.

    Raises:
        ConfigError: an unknown kind, or a number of ranks that can't be.
    """
    if kind not in COLLECTIVE_KINDS:
        raise ConfigError(f"unknown collective {kind!r}", way_out=f"one of {', '.join(COLLECTIVE_KINDS)}")
    if ranks < 1 or bytes < 0 or (ranks_per_node is not None and ranks_per_node < 1):
        raise ConfigError(f"{bytes} bytes on {ranks} ranks, {ranks_per_node} to a node: no such collective")
    local = min(ranks, ranks_per_node or profile.ranks_per_node)
    if ranks == 1:
        return profile.launch_seconds
    steps = 2 * (ranks - 1) if kind == "all_reduce" else ranks - 1
    link = profile.intra_node if local == ranks else profile.inter_node
    alpha = link.latency.of(kind) + (steps - 1) * link.step_latency
    inside = profile.intra_node.bandwidth * profile.intra_node.efficiency.of(kind)
    outside = profile.inter_node.bandwidth * profile.inter_node.efficiency.of(kind)
    if kind == "all_to_all":
        within = bytes * (local - 1) / ranks / inside
        across = bytes * (ranks - local) / ranks / outside
        return alpha + max(within, across)
    parts = 1.0 if kind == "broadcast" else steps / ranks
    return alpha + bytes * parts / (inside if local == ranks else min(inside, local * outside))
