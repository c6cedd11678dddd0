# SPDX-License-Identifier: Apache-2.0
"""The bytes and the seconds of a collective, and the fit of a link to measured times.

In:    a call of a functional collective in an ATen graph, with fake values in `meta["val"]`; a hardware profile.
       Or measured times of collectives of several sizes, from any tool.
Out:   a `CollectiveCost`, and its seconds: a fixed time (alpha) and a time for each byte (beta). Or the `Link` whose
       seconds come as close to the measured ones as this model can.
Never: communicates, measures, or looks at the ranks of a group: groups of one size cost the same on every rank.

Operators of the user's are what they were declared as: an exchange is an all-to-all, a reduction an all-reduce, among
all ranks if they block and name no process group. All operators of `_c10d_functional` are known: all-to-all with equal,
given or data-dependent splits, all-reduce, all-gather, reduce-scatter and broadcast, in place, with `out=`, and
coalesced (the sum of their tensors). A transfer between two ranks counts as a broadcast among two.

Of n bytes, each of p ranks, r of which share a node, sends a part in a number of steps, by the usual algorithms:

    kind             sent          steps
    all_to_all       n (p-1)/p     p-1        pairwise exchange
    all_gather       n (p-1)/p     p-1        ring
    reduce_scatter   n (p-1)/p     p-1        ring
    all_reduce       n 2(p-1)/p    2(p-1)     ring: a reduce-scatter, then an all-gather
    broadcast        n             p-1        ring, pipelined

    seconds = latency[kind] + (steps - 1) * step_latency + sent / (bandwidth * efficiency[kind])

- On one node all figures are those of the intra-node link. On a node wired in pairs, q ranks have only q-1 wires each:
  bandwidth = min(bandwidth, (q-1) * peer_bandwidth).
- Across nodes the latencies are those of the inter-node link.
  All-to-all: n (p-r)/p leaves through this rank's own inter-node link while n (r-1)/p moves inside the node; the
  slower of the two counts.
  Rings: libraries run r rings at once, and each leaves the node at another rank. One ring step then has up to r times
  one rank's inter-node bandwidth, but not more than the node has inside.
- An all-to-all in which a rank sends and receives unequal amounts, n and m < n: if the link is duplex, it counts as one
  of n bytes each way, and if the two directions alternate, as one of (p m + (p-2) n) / 2(p-1). (The rank that receives
  most gets n/p from every rank, itself included, and sends m - n/p.)
- If a link has a `correction` (the formula was off from measured times), the formula's seconds are multiplied by it.
  Between two sizes that were measured, seconds grow linearly.

A fit is, for each kind, the line `seconds = latency + bytes sent / rate` with the least relative error, because a
millisecond is a lot for a small message and nothing for a large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile._compat.distributed import group_size, is_group, world_size
from farskip_compile.costs.memory import SizeHint, node_bytes, operand_tensors, tensor_bytes
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind, HardwareProfile, Link, PerCollective
from farskip_compile.errors import ConfigError, UnsupportedPatternError
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.declared import declared, part_of_a_collective
from farskip_compile.passes.schedule.in_flight import arrival

NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor")
POINT_TO_POINT = ("isend", "irecv", "batch_p2p_ops")


@dataclass(frozen=True)
class CollectiveCost:
    """The kind, the bytes and the group of one launch."""

    kind: CollectiveKind
    """The collective whose formula applies."""
    bytes: int
    """n of the formulas: the larger of the bytes that a rank sends and receives."""
    group_name: str
    """The process group; launches of one group run one after another."""
    ranks: int
    """The size of the group."""
    fewer: int | None = None
    """m of an all-to-all: the smaller of the bytes sent and received, if they differ."""


def collective_cost(node: fx.Node, size: SizeHint) -> CollectiveCost:
    """Return the cost of the launch `node`, or of an earlier graph's launch that `node` waits for.

    Args:
        node: of a graph after AOTAutograd, with fake tensors in its metadata.
        size: a symbolic size to a number, such as `SizeHints`.

    Raises:
        UnsupportedPatternError: `node` does not launch a collective.
    """
    if comms.is_wait(node) and (flight := arrival(node)) is not None:
        return _arriving(node, flight, size)
    kind = _kind(node)
    if kind is None:
        raise UnsupportedPatternError(
            f"{ops.op_name(node) or node.op} launches no collective that the cost model knows",
            way_out="ask is_launch(node) first",
            where=user_calls.where(node),
        )
    group = comms.process_group(node)
    ranks = 2 if ops.op_name(node).endswith(POINT_TO_POINT) else _ranks(node, group)
    sent = operand_tensors(node)
    if isinstance(out := node.kwargs.get("out"), fx.Node):
        sent = [value for value in sent if value is not ops.fake(out)]
    bytes_sent = sum(tensor_bytes(value, size) for value in sent)
    fewer, most = sorted((bytes_sent, node_bytes(node, size)))
    return CollectiveCost(kind, most, group, ranks, fewer if kind == "all_to_all" and fewer < most else None)


def _arriving(wait: fx.Node, flight: tuple[str, str], size: SizeHint) -> CollectiveCost:
    """Return the cost of a launch of an earlier graph, by the value that arrives here."""
    operator, group = flight
    kind: CollectiveKind = next((kind for kind in COLLECTIVE_KINDS if operator.startswith(kind)), "broadcast")
    ranks = group_size(group)
    received = node_bytes(wait, size)
    return CollectiveCost(kind, received * ranks if kind == "reduce_scatter" else received, group, ranks)


def _ranks(node: fx.Node, group: str) -> int:
    return world_size() if comms.is_blocking(node) and not is_group(group) else group_size(group)


def is_launch(node: fx.Node) -> bool:
    """Return whether `node` launches a collective that `collective_cost` knows."""
    return _kind(node) is not None


def _kind(node: fx.Node) -> CollectiveKind | None:
    if part_of_a_collective(node) in ("launch", "blocking"):
        return "all_to_all" if declared(node) == "exchange" else "all_reduce"
    namespace, _, name = ops.op_name(node).partition("::")
    if namespace not in NAMESPACES:
        return None
    if name in POINT_TO_POINT:
        return "broadcast"
    if name == "shard_dim_alltoall":
        return "all_to_all"
    return next((kind for kind in COLLECTIVE_KINDS if name.startswith(kind)), None)


def steps(kind: CollectiveKind, ranks: int) -> int:
    """Return the number of steps of the algorithm, which run one after another."""
    return (2 if kind == "all_reduce" else 1) * (ranks - 1)


def sent_part(kind: CollectiveKind, ranks: int) -> float:
    """Return the bytes that one rank sends, as a part of n."""
    return 1.0 if kind == "broadcast" else steps(kind, ranks) / ranks


def collective_seconds(
    kind: CollectiveKind,
    bytes: int,
    ranks: int,
    profile: HardwareProfile,
    ranks_per_node: int | None = None,
    *,
    fewer: int | None = None,
) -> float:
    """Return the seconds from launch to completion, if nothing else is on the wire.

    Args:
        kind: one of `COLLECTIVE_KINDS`.
        bytes: n, the input of all-to-all, all-reduce, reduce-scatter and broadcast; the output of all-gather.
        ranks: size of the group; a group of one only copies, which costs one kernel.
        profile: the hardware.
        ranks_per_node: how many ranks *of the group* share a node: 1 if it takes one rank of each node. None: the group
            fills one node after another, each with `profile.ranks_per_node` ranks.
        fewer: m of an all-to-all: the bytes of a rank with n on one side on its other side; None: n.

    Raises:
        ConfigError: an unknown kind, or impossible numbers.
    """
    if kind not in COLLECTIVE_KINDS:
        raise ConfigError(f"unknown collective {kind!r}", way_out=f"one of {', '.join(COLLECTIVE_KINDS)}")
    if ranks < 1 or bytes < 0 or (ranks_per_node is not None and ranks_per_node < 1):
        raise ConfigError(f"no collective has {bytes} bytes on {ranks} ranks, {ranks_per_node} of them on a node")
    if ranks == 1:
        return profile.launch_seconds + 2 * bytes / (profile.memory_bandwidth * profile.efficiency.memory)
    local = min(ranks, ranks_per_node or profile.ranks_per_node)
    link = profile.intra_node if local == ranks else profile.inter_node
    even = bytes if fewer is None else _even(bytes, fewer, ranks, 1.0 if link.duplex is None else link.duplex)
    curve = link.correction.get(kind) if link.correction is not None else None
    if curve is None:
        return _formula(kind, even, ranks, local, profile)

    def measured(size: float) -> float:
        return _formula(kind, size, ranks, local, profile) * curve.at(ranks, max(size, 1))

    low, high = curve.around(1, even)
    if low == high:
        return measured(even)
    return measured(low) + (measured(high) - measured(low)) * (even - low) / (high - low)


def interference(ranks: int, profile: HardwareProfile, ranks_per_node: int | None = None) -> float:
    """Return the fraction by which a collective in flight slows compute down; 0 if it was not measured.

    Args:
        ranks: of the group of the collective.
        profile: the hardware.
        ranks_per_node: how many of them share a node; None: `profile.ranks_per_node`.
    """
    if ranks < 2:
        return 0.0
    within = ranks <= (ranks_per_node or profile.ranks_per_node)
    return (profile.intra_node if within else profile.inter_node).interference or 0.0


def _even(most: int, fewer: int, ranks: int, duplex: float) -> float:
    """Return n of an all-to-all with equal parts that takes as long as the uneven one."""
    in_turns = (ranks * fewer + (ranks - 2) * most) / (2 * (ranks - 1))
    return in_turns + duplex * (most - in_turns)


def _formula(kind: CollectiveKind, bytes: float, ranks: int, local: int, profile: HardwareProfile) -> float:
    """Return the seconds by alpha and beta, without corrections."""
    inside, outside = _rate(profile.intra_node, kind, local), _rate(profile.inter_node, kind, ranks)
    if local == ranks:
        return _latency(profile.intra_node, kind, ranks) + bytes * sent_part(kind, ranks) / inside
    latency = _latency(profile.inter_node, kind, ranks)
    if kind == "all_to_all":
        return latency + max(bytes * (ranks - local) / ranks / outside, bytes * (local - 1) / ranks / inside)
    rate = outside if local == 1 else min(inside, local * outside)
    return latency + bytes * sent_part(kind, ranks) / rate


def _latency(link: Link, kind: CollectiveKind, ranks: int) -> float:
    return link.latency.of(kind) + (steps(kind, ranks) - 1) * link.step_latency


def _rate(link: Link, kind: CollectiveKind, ranks: int) -> float:
    """Return the bytes/s that one of `ranks` ranks attains."""
    bandwidth = link.bandwidth
    if link.peer_bandwidth is not None:
        bandwidth = min(bandwidth, link.peer_bandwidth * max(ranks - 1, 1))
    return bandwidth * link.efficiency.of(kind)


@dataclass(frozen=True)
class Sample:
    """One measured collective, on ranks that share one link."""

    kind: CollectiveKind
    """One of `COLLECTIVE_KINDS`."""
    bytes: int
    """The bytes, as in `CollectiveCost`."""
    ranks: int
    """The size of the group."""
    seconds: float
    """The seconds from launch to completion, on the slowest rank."""


def fit_link(samples: Iterable[Sample], *, bandwidth: float | None = None, step_latency: float = 0.0) -> Link:
    """Return the link that explains `samples` best.

    Args:
        samples: at least two sizes of each kind.
        bandwidth: the link's peak in bytes/s, if known. None: the best rate that was attained.
        step_latency: seconds of each step after the first; must be known beforehand, zero puts all into `latency`.

    Raises:
        ConfigError: a kind without two sizes, or times that do not grow with the size; or a rate above `bandwidth`.
    """
    samples = list(samples)
    lines: dict[str, tuple[float, float]] = {}
    for kind in COLLECTIVE_KINDS:
        mine = [sample for sample in samples if sample.kind == kind and sample.ranks > 1]
        if len({sample.bytes for sample in mine}) < 2:
            raise ConfigError(f"{kind} was measured for less than two sizes", way_out="measure a small and a large one")
        later = [(steps(kind, sample.ranks) - 1) * step_latency for sample in mine]
        sent = [sample.bytes * sent_part(kind, sample.ranks) for sample in mine]
        lines[kind] = _line(kind, [(x, s.seconds - t) for x, s, t in zip(sent, mine, later, strict=True)])
    peak = bandwidth if bandwidth is not None else max(rate for _, rate in lines.values())
    for name, (_, rate) in lines.items():
        if rate > peak:
            raise ConfigError(
                f"{name} attained {rate:.3g} bytes/s, more than the bandwidth of {peak:.3g}",
                way_out="leave bandwidth at None, or correct it",
            )
    return Link(
        bandwidth=peak,
        efficiency=PerCollective(**{kind: rate / peak for kind, (_, rate) in lines.items()}),
        latency=PerCollective(**{kind: latency for kind, (latency, _) in lines.items()}),
        step_latency=step_latency,
    )


def _line(kind: str, points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (latency, rate) of least squared relative error."""
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    weights = 1.0 / y**2
    mean_x, mean_y = ((weights * values).sum() / weights.sum() for values in (x, y))
    slope = (weights * (x - mean_x) * (y - mean_y)).sum() / (weights * (x - mean_x) ** 2).sum()
    latency = mean_y - slope * mean_x
    if latency < 0:  # then the best line through the origin
        latency, slope = torch.zeros(()), (weights * x * y).sum() / (weights * x * x).sum()
    if slope <= 0:
        raise ConfigError(
            f"{kind} did not take longer for more bytes", way_out="measure larger sizes, or on a machine that is idle"
        )
    return latency.item(), 1.0 / slope.item()
