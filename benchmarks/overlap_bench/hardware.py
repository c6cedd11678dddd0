"""The hardware profile that our backend (and Inductor's own overlap scheduling) is given: this machine and this link.

Contract: figures are rank 0's on every rank, so that all schedule alike. Compute is calibrated once for each number of
hosts, the link once for each rate, both with `farskip_compile.calibrate`, as a user would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from farskip_compile.costs import HardwareProfile, default_profile
from overlap_bench.replay import Exchange

try:
    from farskip_compile.calibrate import calibrate_compute, calibrate_link
except ImportError:
    calibrate_compute = calibrate_link = None  # type: ignore[assignment]


def compute_profile(known: dict[str, Any] | None, *, calibrated: bool) -> HardwareProfile:
    """This machine's compute: what an earlier launch has measured, or measured now; or the shipped profile."""
    if known is not None:
        return HardwareProfile.from_json(known)
    if not calibrated or calibrate_compute is None:
        return default_profile("cpu")
    return calibrate_compute()


def link_profile(
    profile: HardwareProfile,
    exchanges: Sequence[Exchange],
    rate: float | None,
    seconds: float,
    network: str,
    *,
    calibrated: bool,
) -> HardwareProfile:
    """`profile` with the figures of the link.

    Args:
        profile: of the machine.
        exchanges: of one step.
        rate: of the link in bits per second; None: no limit.
        seconds: that the exchanges take one after another.
        network: in words.
        calibrated: by collectives of many sizes; otherwise from the exchanges alone.
    """
    if calibrated and calibrate_link is not None:
        return calibrate_link(profile)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    sent = sum(exchange.bytes_out(rank, ranks) for exchange in exchanges)
    link = profile.inter_node
    bandwidth = (rate or 8 * sent / seconds) / 8
    latency = len(exchanges) * (link.latency.all_to_all + (ranks - 2) * link.step_latency)
    reached = min(1.0, sent / max(seconds - latency, 1e-9) / bandwidth)
    efficiency = dataclasses.replace(link.efficiency, all_to_all=reached, all_reduce=reached)
    link = dataclasses.replace(link, bandwidth=bandwidth, efficiency=efficiency)
    sources = {**profile.sources, "inter_node": f"measured on {network}"}
    return dataclasses.replace(profile, ranks_per_node=1, inter_node=link, sources=sources)
