"""The hardware profile that our backend (and Inductor's own overlap scheduling) is given: this machine and this link.

Contract: equal on every rank, so that all schedule alike. Compute is calibrated once for each number of hosts, with all
ranks at work, and the link anew for each rate, both by `farskip_compile.calibrate` as a user would. Without calibration
(smoke runs) they are the shipped profile's, and the link is what communication alone has shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from farskip_compile.calibrate import calibrate_compute, calibrate_link
from farskip_compile.costs import CollectiveKind, HardwareProfile, default_profile
from overlap_bench.replay import Exchange

COMPUTE_PART = 0.75
"""Of the seconds for calibration; the rest is for each link."""


def compute_profile(known: dict[str, Any] | None, seconds: float) -> HardwareProfile:
    """This machine's compute: what an earlier launch has measured, or measured now; with no seconds, as shipped."""
    if known is not None:
        return HardwareProfile.from_json(known)
    if not seconds:
        return default_profile("cpu")
    return calibrate_compute(budget_seconds=seconds * COMPUTE_PART)


def link_profile(
    machine: HardwareProfile, seconds: float, *, exchanges: Sequence[Exchange], rate: float | None, alone: float
) -> HardwareProfile:
    """`machine` with the figures of the link; every rank is a host.

    Args:
        machine: its compute.
        seconds: for calibration; 0: use what follows.
        exchanges: of one step.
        rate: of the link in bits per second; None: no limit.
        alone: seconds that the exchanges take one after another.
    """
    if seconds:
        largest: dict[CollectiveKind, int] = {}
        for exchange in exchanges:
            size = exchange.sent * exchange.dtype.itemsize
            largest[exchange.kind] = max(largest.get(exchange.kind, 0), size)
        found: list[Any] = [largest]
        dist.broadcast_object_list(found, src=0)
        budget = seconds * (1 - COMPUTE_PART)
        return calibrate_link(machine, budget_seconds=budget, ranks_per_node=1, largest=found[0])
    sizes: list[tuple[float, int]] = [(0.0, 0)] * dist.get_world_size()
    rank = dist.get_rank()
    own = sum(exchange.bytes_out(rank, len(sizes)) for exchange in exchanges)
    dist.all_gather_object(sizes, (own, len(exchanges)))
    sent, count = max(sizes)
    link = machine.inter_node
    bandwidth = (rate or 8 * sent / alone) / 8
    latency = count * (link.latency.all_to_all + (len(sizes) - 2) * link.step_latency)
    reached = min(1.0, max(1e-3, sent / max(alone - latency, 1e-9) / bandwidth))
    efficiency = dataclasses.replace(link.efficiency, all_to_all=reached, all_reduce=reached)
    link = dataclasses.replace(link, bandwidth=bandwidth, efficiency=efficiency)
    sources = {**machine.sources, "inter_node": "communication alone in benchmarks/overlap.py"}
    return dataclasses.replace(machine, ranks_per_node=1, inter_node=link, sources=sources)
