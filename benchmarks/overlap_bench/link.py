"""The link: communication of a step alone, the rate at which it takes the wanted time, and the hardware profile.

Contract: every rank makes the same calls with the exchanges of its own step (`replay.py`), so that sizes match. The
profile, which our backend and Inductor's own overlap scheduling are given, is equal on every rank, so that all schedule
alike. Compute is calibrated once per number of hosts, with all ranks at work, and the link anew for each rate, both by
`farskip_compile.calibrate` as a user would. Without calibration (smoke runs) the compute figures are the shipped ones,
and the link is what communication alone showed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from harness.commands import FASTEST, SLOWEST

from farskip_compile.calibrate import calibrate_compute, calibrate_link
from farskip_compile.costs import CollectiveKind, HardwareProfile, default_profile
from overlap_bench.replay import ALL_REDUCE, Exchange

LATE = 0.5e-3
"""Seconds by which every other rank starts a collective late, as ranks of a real step do; longer than a message is on
its way. gloo's all-to-all takes half as long if all start together, which is chance."""
TRIES = 3
CLOSE = 0.05
"""Relative error of the time that is accepted."""
COMPUTE_PART = 0.75
"""Fraction of the calibration time spent on compute; the rest is for each link."""


def communication(exchanges: Sequence[Exchange]) -> Callable[[], None]:
    """All exchanges one after another over the group of all ranks, and nothing else."""
    runs = [_run(exchange) for exchange in exchanges]
    late = LATE * (dist.get_rank() % 2)

    def run() -> None:
        for one in runs:
            time.sleep(late)
            one()

    return run


def _run(exchange: Exchange) -> Callable[[], object]:
    sent = torch.zeros(exchange.sent // exchange.row, exchange.row, dtype=exchange.dtype)
    if exchange.kind == ALL_REDUCE:
        return lambda: dist.all_reduce(sent)
    received = torch.empty(exchange.received // exchange.row, exchange.row, dtype=exchange.dtype)
    rows = list(exchange.received_rows) or None, list(exchange.sent_rows) or None
    return lambda: dist.all_to_all_single(received, sent, *rows)


@dataclass(frozen=True)
class Probe:
    """Communication alone at one rate."""

    rate: float
    """Bits per second."""
    seconds: float
    network: dict[str, Any]
    """What the network is now: `rate` (None: no limit could be set), `text`."""


def find_rate(wanted: float, sent: float, measured: Callable[[float], Probe]) -> Probe:
    """A rate at which communication takes `wanted` seconds.

    At most three rates are measured by `measured`, each within the range of a link; the last one is returned. gloo does
    not saturate the link, so the first guess, from the bytes that the busiest rank `sent`, is corrected by what it
    reached.
    """
    rate = 8 * sent / wanted
    for _ in range(TRIES):
        rate = round(min(max(rate, SLOWEST), FASTEST) / 1e6) * 10**6  # whole Mbit/s
        probe = measured(rate)
        if abs(probe.seconds / wanted - 1) < CLOSE or probe.network["rate"] is None:
            break
        rate *= probe.seconds / wanted
    return probe


def compute_profile(known: dict[str, Any] | None, seconds: float) -> HardwareProfile:
    """This machine's compute: as an earlier launch measured it, or measured now; with no seconds, as shipped."""
    if known is not None:
        return HardwareProfile.from_json(known)
    return calibrate_compute(budget_seconds=seconds * COMPUTE_PART) if seconds else default_profile("cpu")


def link_profile(
    machine: HardwareProfile, seconds: float, *, exchanges: Sequence[Exchange], rate: float | None, alone: float
) -> HardwareProfile:
    """`machine`, known by its compute, with the figures of the link; every rank is a host.

    Calibrated for `seconds`; if 0, from the `rate` in bits per second (None: no limit) and the seconds `alone` that the
    exchanges of a step take one after another.
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
    own = sum(exchange.bytes_out(dist.get_rank(), len(sizes)) for exchange in exchanges)
    dist.all_gather_object(sizes, (own, len(exchanges)))
    sent, count = max(sizes)
    link = machine.inter_node
    bandwidth = (rate or 8 * sent / alone) / 8
    latency = count * (link.latency.all_to_all + (len(sizes) - 2) * link.step_latency)
    reached = min(1.0, max(1e-3, sent / max(alone - latency, 1e-9) / bandwidth))
    link = replace(
        link, bandwidth=bandwidth, efficiency=replace(link.efficiency, all_to_all=reached, all_reduce=reached)
    )
    sources = {**machine.sources, "inter_node": "communication alone in benchmarks/overlap.py"}
    return replace(machine, ranks_per_node=1, inter_node=link, sources=sources)
