# SPDX-License-Identifier: Apache-2.0
"""Compute alone and communication alone; the rate at which the latter takes the wanted time, and the hardware profile.

Compute: a process group that sends nothing and replays recorded results. While it records, a collective runs on all
ranks of the job as usual and its result is kept; afterwards the collectives of a step return these results in the same
order and wait for nobody. So a model compiled on this group runs the same kernels on the same numbers and sizes.
Copying a result stays in the measured time, as a rank would copy its own share.

Communication: the exchanges that were recorded, over a real group. The profile, which our backend and Inductor's own
overlap scheduling are given, is equal on every rank, so that all schedule alike. Compute is calibrated once per number
of hosts, with all ranks at work, and the link anew for each rate, both by `farskip_compile.measure.calibrate` as a user
would. Without calibration (smoke runs) the compute figures are the shipped ones, and the link is what communication
alone showed.

Contract: every rank makes the same calls with the exchanges of its own step, so that sizes match.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from harness.commands import FASTEST, SLOWEST

from farskip_compile.costs import HardwareProfile, default_profile
from farskip_compile.costs.profile import CollectiveKind
from farskip_compile.measure.calibrate import calibrate_compute, calibrate_link

BACKEND = "farskip_replay"
ALL_TO_ALL: Final = "all_to_all"
ALL_REDUCE: Final = "all_reduce"
LATE = 0.5e-3
"""Seconds by which every other rank starts a collective late, as ranks of a real step do; longer than a message is on
its way. gloo's all-to-all takes half as long if all start together, which is chance."""
TRIES = 3
CLOSE = 0.05
"""Relative error of the time that is accepted."""
COMPUTE_PART = 0.75
"""Fraction of the calibration time spent on compute; the rest is for each link."""


@dataclass(frozen=True)
class Exchange:
    """One collective, as one rank sees it."""

    kind: CollectiveKind
    sent: int
    """Elements that this rank sends."""
    received: int
    """Elements that it receives."""
    dtype: torch.dtype
    sent_rows: tuple[int, ...] = ()
    """Rows for each rank; empty: equal shares."""
    received_rows: tuple[int, ...] = ()
    row: int = 1
    """Elements in a row."""

    def bytes_out(self, rank: int, ranks: int) -> float:
        """Bytes that leave this rank, by the usual algorithms."""
        if self.kind == ALL_REDUCE:
            return 2 * self.sent * self.dtype.itemsize * (ranks - 1) / ranks
        kept = self.sent_rows[rank] * self.row if self.sent_rows else self.sent / ranks
        return (self.sent - kept) * self.dtype.itemsize


def imbalance(ranks: Sequence[Sequence[Exchange]]) -> float:
    """Rows that the fullest rank receives in a dispatch, or sends in a combine, over the mean; the maximum over the
    exchanges of all `ranks`. 1 if all are equal, or if there are none.
    """
    most = 1.0
    for exchange in zip(*ranks, strict=True):
        rows = [max(sum(one.sent_rows), sum(one.received_rows)) for one in exchange]
        mean = sum(sum(one.sent_rows) for one in exchange) / len(exchange)
        most = max(most, max(rows) / mean if mean else 1.0)
    return most


class Done(dist.Work):
    """A finished collective."""

    def wait(self, timeout: timedelta = timedelta()) -> bool:
        """Return at once."""
        return True

    def is_completed(self) -> bool:
        """Always."""
        return True


class Replay(dist.ProcessGroup):
    """The group; make it with `replay_group`."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.exchanges: list[Exchange] = []
        """Of one step."""
        self._results: list[torch.Tensor] = []
        self._recording = True
        self._next = 0
        self._name = ""

    def record(self) -> None:
        """From now on send, and keep the results."""
        self.exchanges.clear()
        self._results.clear()
        self._recording = True

    def rewind(self) -> None:
        """From now on replay the recorded results from the start."""
        self._recording = False
        self._next = 0

    def alltoall_base(
        self, output: torch.Tensor, sent: torch.Tensor, output_splits: list[int], splits: list[int], options: Any = None
    ) -> Done:
        """Called by the all-to-alls of a model."""
        if self._recording:
            dist.all_to_all_single(output, sent, list(output_splits) or None, list(splits) or None)
            row = sent[0].numel() if sent.dim() > 1 and len(sent) else 1
            rows = tuple(splits), tuple(output_splits)
            self._remember(Exchange(ALL_TO_ALL, sent.numel(), output.numel(), sent.dtype, *rows, row), output)
        else:
            self._give(output)
        return Done()

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> Done:
        """Called by the all-reduces of a model."""
        for tensor in tensors:
            if self._recording:
                dist.all_reduce(tensor)
                self._remember(Exchange(ALL_REDUCE, tensor.numel(), tensor.numel(), tensor.dtype), tensor)
            else:
                self._give(tensor)
        return Done()

    def _remember(self, exchange: Exchange, result: torch.Tensor) -> None:
        self.exchanges.append(exchange)
        self._results.append(result.clone())

    def _give(self, output: torch.Tensor) -> None:
        output.copy_(self._results[self._next].view_as(output))
        self._next += 1

    def setGroupName(self, name: str) -> None:
        """Called by `dist.new_group`."""
        self._name = name

    def getGroupName(self) -> str:
        """The name by which compiled code finds the group."""
        return self._name

    def getBackendName(self) -> str:
        """What `dist.get_backend` says."""
        return BACKEND


def replay_group() -> Replay:
    """A new group over all ranks of the job; all of them call this."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, lambda store, rank, size, timeout: Replay(rank, size), devices="cpu")
    group = dist.new_group(backend=BACKEND)
    assert isinstance(group, Replay)
    return group


# Communication


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
