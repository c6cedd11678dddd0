# SPDX-License-Identifier: Apache-2.0
"""Calibration: measure a machine on the ranks at hand, and make a hardware profile from the measurements.

Contract: collective over the group; every rank gets the profile of rank 0. All ranks measure at the same time, so that
the figures include shared resources (memory bandwidth, a network card). Figures that are not measured, or can't be
here, are those of the base profile, and the sources tell them apart. No state of torch changes, except as running
kernels changes it.

    1. compute: launches, memory, Inductor's kernels, products by shape       (calibrate_compute)
    2. links: inside a node among its ranks, between nodes among one rank each   (calibrate_link)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

import torch
import torch.distributed as dist

from farskip_compile.costs import Curve, HardwareProfile, default_profile
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind
from farskip_compile.errors import ConfigError
from farskip_compile.measure.calibrate.collectives import Collectives
from farskip_compile.measure.calibrate.findings import Calibration, LinkFindings, MeasuredPoint, with_compute, with_link
from farskip_compile.measure.calibrate.kernels import MemoryBench, ProductBench
from farskip_compile.measure.calibrate.ranks import MeasuredGroup
from farskip_compile.measure.calibrate.stopwatch import QUICK_SECONDS, Stopwatch, grids

DeviceLike = torch.device | str | None
Clock = Callable[[], float]
DEFAULT_SECONDS = 45.0
ON_ACCELERATORS = (torch.bfloat16, torch.float32)
"""Types that are measured by default; products of the first one decide the efficiencies."""
COMPUTE_PART = 0.65
"""The fraction of the budget that goes to compute if there are links to measure, too."""


class CalibrateOptions(TypedDict, total=False):
    """The options of every way to calibrate."""

    device: DeviceLike
    """The device to measure; None: the current accelerator, else the CPU."""
    dtypes: Sequence[torch.dtype]
    """Types of the products; by default float32 on a CPU, bfloat16 and float32 on an accelerator."""
    budget_seconds: float
    """The approximate duration, without building two kernels; below 20 fewer points are measured."""
    ranks_per_node: int | None
    """Ranks of the group that share a node; None: as the launcher or the host names say."""
    base: HardwareProfile | None
    """The profile with the figures that are not measured; None: the shipped one for the device."""


def calibrate(group: dist.ProcessGroup | None = None, **options: Unpack[CalibrateOptions]) -> HardwareProfile:
    """Measure compute and links; return the same profile on every rank.

    Args:
        group: the ranks that call this; None: the default group, or without one this process alone, which then has no
            link to measure.
        **options: `device` (None: the accelerator, else the CPU), `dtypes` of the products, `budget_seconds` (45),
            `ranks_per_node` (None: as the launcher or the host names say), and `base`, the profile with the figures
            that are not measured (None: the shipped one for the device).

    Raises:
        ConfigError: an impossible budget, no types, or ranks that can't be placed on nodes this way.
    """
    return measure(group, **options).profile


def calibrate_compute(group: dist.ProcessGroup | None = None, **options: Unpack[CalibrateOptions]) -> HardwareProfile:
    """Measure compute alone, on all ranks at once; the links are those of `base`.

    Args:
        group: as for `calibrate`.
        **options: as for `calibrate`; the budget is 29 seconds by default.

    Raises:
        ConfigError: as for `calibrate`.
    """
    options.setdefault("budget_seconds", DEFAULT_SECONDS * COMPUTE_PART)
    return measure(group, links=False, **options).profile


def calibrate_link(
    profile: HardwareProfile,
    group: dist.ProcessGroup | None = None,
    *,
    largest: Mapping[CollectiveKind, int] | None = None,
    **options: Unpack[CalibrateOptions],
) -> HardwareProfile:
    """Measure the links anew, after a change of the network or for a profile from another machine.

    Args:
        profile: the other figures.
        group: at least two ranks, all of which call this.
        largest: bytes of the largest message of each kind that the model sends, such as {"all_to_all": 16_000_000};
            these kinds are measured up to there, and more often. None: all kinds alike, as far as the budget goes.
        **options: as for `calibrate`; `ranks_per_node` 1 measures the link between nodes only.

    Raises:
        ConfigError: there is only one rank, or as for `calibrate`.
    """
    options.setdefault("budget_seconds", DEFAULT_SECONDS * (1 - COMPUTE_PART))
    options["base"] = profile
    return measure(group, compute=False, largest=largest, **options).profile


def measure(
    group: dist.ProcessGroup | None = None,
    *,
    compute: bool = True,
    links: bool = True,
    largest: Mapping[CollectiveKind, int] | None = None,
    tell: Callable[[str], None] = lambda step: None,
    clock: Clock = time.perf_counter,
    **options: Unpack[CalibrateOptions],
) -> Calibration:
    """Calibrate like `calibrate`, and return every measured point, too.

    Args:
        group: as for `calibrate`.
        compute: whether to measure compute.
        links: whether to measure links, if there is more than one rank.
        largest: as for `calibrate_link`.
        tell: called on rank 0 with the name of the next measurement.
        clock: seconds since some moment, for work on a CPU.
        **options: as for `calibrate`.

    Raises:
        ConfigError: as for `calibrate`; or nothing is to be measured.
    """
    seconds = options.get("budget_seconds", DEFAULT_SECONDS)
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            f"budget_seconds={seconds!r} is not a time", way_out="give seconds above 0; 45 is the default"
        )
    current = torch.accelerator.current_accelerator(check_available=True)
    where = torch.device(options.get("device") or current or "cpu")
    dtypes = options.get("dtypes", (torch.float32,) if where.type == "cpu" else ON_ACCELERATORS)
    ranks = MeasuredGroup(group, where)
    if not dtypes and compute:
        raise ConfigError("dtypes names no type", way_out="dtypes=(torch.float32,)")
    if not compute and ranks.size == 1:
        raise ConfigError(
            "one rank has no link to measure", way_out="call this on the ranks of an initialised process group"
        )
    profile = options.get("base") or default_profile(where.type, _name(where))
    start = time.perf_counter()
    links = links and ranks.size > 1
    count = f"{ranks.size} ranks at once" if ranks.size > 1 else "one rank"
    what = f"farskip calibrate on {count}, {_name(where)}, torch {torch.__version__}"
    run = _Run(ranks, clock, seconds < QUICK_SECONDS, what, tell if ranks.rank == 0 else lambda step: None)
    if compute:
        share = seconds * (COMPUTE_PART if links else 1.0)
        profile = run.compute(profile, dtypes, share)
        seconds -= share
    if links:
        given = options.get("ranks_per_node")
        per_node = ranks.per_node() if given is None else given
        profile = run.links(profile, per_node, seconds, _known_kinds(largest))
    profile = replace(profile, name="calibrated", description=what, devices=())
    took = time.perf_counter() - start
    found = Calibration(profile, tuple(run.rows), _name(where), ranks.size, took, tuple(run.notes))
    everywhere: Calibration = ranks.agreed(found)
    return everywhere


def _known_kinds(largest: Mapping[CollectiveKind, int] | None) -> Mapping[CollectiveKind, int]:
    for kind, size in (largest or {}).items():
        if kind not in COLLECTIVE_KINDS or size < 1:
            raise ConfigError(
                f"largest={{{kind!r}: {size}}} is not a message",
                way_out=f"kinds are {', '.join(COLLECTIVE_KINDS)}; in bytes",
            )
    return largest or {}


@dataclass
class _Run:
    """One calibration: its settings, and the findings so far."""

    ranks: MeasuredGroup
    clock: Clock
    quick: bool
    what: str
    report: Callable[[str], None]
    rows: list[MeasuredPoint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compute(self, profile: HardwareProfile, dtypes: Sequence[torch.dtype], seconds: float) -> HardwareProfile:
        """Return `profile` with this machine's compute."""
        watch = Stopwatch(self.ranks.device, self.clock)
        sizes = grids(watch.device, quick=self.quick)
        memory = MemoryBench(watch, dtypes[0], sizes)
        parts: tuple[tuple[str, Callable[[float], None], float], ...] = (
            ("launches", memory.overheads, 0.02),
            ("memory", memory.streaming, 0.15),
            ("new pages", memory.fresh, 0.08),
            ("fused kernels", memory.compiled, 0.15),
        )
        for name, run, part in parts:
            self.report(name)
            self.ranks.barrier()
            run(seconds * part)
        self.rows += memory.rows
        self.notes += memory.notes
        curves: dict[str, dict[str, Curve]] = {}
        for dtype in dtypes:
            self.report(f"products of {str(dtype).removeprefix('torch.')}")
            self.ranks.barrier()
            products = ProductBench(watch, dtype, sizes, memory.found.launch_seconds)
            for kind, curve in products.measure(0.6 * seconds / len(dtypes)).items():
                curves.setdefault(kind, {})[products.name] = curve
            self.rows += products.rows
            self.notes += products.notes
        self.ranks.barrier()
        return with_compute(profile, memory.found, curves, self.what)

    def links(
        self, profile: HardwareProfile, per_node: int, seconds: float, largest: Mapping[CollectiveKind, int]
    ) -> HardwareProfile:
        """Measure links inside a node among all its ranks, between nodes among the ranks of one place in each."""
        ranks, what = self.ranks, self.what
        if per_node < 1 or (per_node < ranks.size and ranks.size % per_node):
            raise ConfigError(
                f"{ranks.size} ranks are not {per_node} on each node",
                way_out="give ranks_per_node, a divisor of the ranks",
            )
        messages = grids(ranks.device, quick=self.quick).messages
        nodes = [list(range(first, first + per_node)) for first in range(0, ranks.size, per_node)]
        across = [list(place) for place in zip(*nodes, strict=True)]
        plans = [
            (name, members) for name, members in (("intra_node", nodes), ("inter_node", across)) if len(members[0]) > 1
        ]
        for name, members in plans:
            self.report(f"collectives, {name.replace('_', ' ')}")
            alone = len(members) == 1
            own = ranks if alone else MeasuredGroup(ranks.part(members), ranks.device)
            ranks.barrier()
            found = Collectives(own, self.clock).measure(messages, seconds / len(plans), largest)
            findings: LinkFindings = ranks.agreed(found)
            profile = with_link(profile, name, findings, what)
            self.rows += findings.rows
            if not alone and own.group is not None:
                dist.destroy_process_group(own.group)
        known = replace(profile, ranks_per_node=per_node, sources={**profile.sources, "ranks_per_node": what})
        if len(plans) == 1:
            other = "inter_node" if plans[0][0] == "intra_node" else "intra_node"
            self.notes.append(f"{other} can't be measured on these ranks: its figures are those of {profile.name!r}")
            if plans[0][0] == "intra_node":  # a node may hold more ranks than run here
                return replace(known, ranks_per_node=max(per_node, profile.ranks_per_node))
        return known


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "CPU, " + f"{torch.get_num_threads()} threads" if device.type == "cpu" else device.type
