# SPDX-License-Identifier: Apache-2.0
"""The findings of a calibration, and the profile made from them.

In:    a profile whose figures were not measured, and the measurements.
Out:   a new profile: scalars (peak, efficiencies, alpha and beta) drawn from the curves, and the curves themselves, all
       with their sources; plain data that travels from rank 0 to the others.
Never: measures; drops the source of a figure that stays.

Scalars are for sizes and types without a curve: the peak is the best rate of any shape, an efficiency the rate of the
largest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from farskip_compile.base.json_files import JsonRecord
from farskip_compile.costs import Curve, Curves, HardwareProfile, Link, PeakFlops, collective_seconds
from farskip_compile.costs.collectives import Sample, fit_link
from farskip_compile.costs.profile import MOST_RANKS
from farskip_compile.measure.calibrate.stopwatch import Times

PAGES = "new pages"
TOLERANCE = 0.1
"""The relative error that counts as an error: a formula that is off by more anywhere gets a correction.

Two times must differ by more, too, before a third one can be said to be nearer to one of them.
"""
KINDS = ("matmul", "attention", "grouped_matmul")


@dataclass(frozen=True)
class MeasuredPoint:
    """One measured point."""

    section: str
    """The measured kind: `matmul float32`, `memory`, `all_to_all, 2 ranks`, ..."""
    size: tuple[int, ...]
    """The shape, or the bytes."""
    seconds: float
    """The median of the repetitions."""
    spread: float
    """The interquartile range of the repetitions, as a fraction of the median."""
    repetitions: int
    """The number of repetitions."""
    rate: float | None = None
    """FLOP/s or bytes/s; None for a call without work to divide by the time."""
    unit: str = ""
    """`FLOP/s` or `B/s`."""

    @classmethod
    def of(
        cls, section: str, size: tuple[int, ...], times: Times, rate: float | None = None, unit: str = ""
    ) -> MeasuredPoint:
        """Return the point of repeated measurements `times`; `section`, `size`, `rate` and `unit` are its fields."""
        return cls(section, size, times.median, times.spread, len(times.seconds), rate, unit)

    @classmethod
    def moving(cls, section: str, size: tuple[int, ...], times: Times, bytes: int) -> MeasuredPoint:
        """Return the point of a call that moves `bytes`, of this `section` and `size`, measured as `times`."""
        return cls.of(section, size, times, bytes / times.median, "B/s")


@dataclass
class MemoryFigures:
    """The figures of kernels that are bound by memory; None for curves that are not measured here."""

    launch_seconds: float = 0.0
    sync_seconds: float = 0.0
    memory: Curve | None = None
    strided: Curve | None = None
    fresh: Curve | None = None
    element_rate: float | None = None


@dataclass(frozen=True)
class Uneven:
    """An all-to-all in which one rank receives more than it sends."""

    most: int
    """Bytes that the fullest rank receives."""
    fewer: int
    """Bytes that it sends, like every rank."""
    ranks: int
    seconds: float
    """Seconds on the slowest rank."""


@dataclass
class LinkFindings:
    """The measurements of one link."""

    samples: list[Sample] = field(default_factory=list)
    rows: list[MeasuredPoint] = field(default_factory=list)
    interference: float | None = None
    uneven: Uneven | None = None


@dataclass(frozen=True)
class Calibration(JsonRecord):
    """The measured points, and the profile."""

    profile: HardwareProfile
    """The profile, for the option `profile` of the backend."""
    rows: tuple[MeasuredPoint, ...]
    """Every measured point, in order."""
    device: str
    """The name of the device."""
    ranks: int
    """The number of ranks that measured at once."""
    seconds: float
    """The duration on rank 0."""
    notes: tuple[str, ...] = ()
    """The measurements that failed, and the figures that the profile has instead."""


def with_compute(
    profile: HardwareProfile, memory: MemoryFigures, products: Mapping[str, Mapping[str, Curve]], what: str
) -> HardwareProfile:
    """Return `profile` with measured compute.

    Args:
        profile: the figures that are not measured.
        memory: figures of kernels bound by memory.
        products: curves by field of `Curves` and data type.
        what: the source of the figures.
    """
    known = {entry.name for entry in fields(PeakFlops)}
    best: dict[str, float] = {}
    for of_kind in products.values():
        for dtype in of_kind.keys() & known:
            best[dtype] = max(best.get(dtype, 0.0), *of_kind[dtype].values)
    first = next((dtype for of_kind in products.values() for dtype in of_kind if dtype in known), "float32")
    reached = {
        kind: products[kind][first].values[-1] / best[first] for kind in KINDS if first in products.get(kind, {})
    }
    figures: dict[str, Any] = {"launch_seconds": memory.launch_seconds, "sync_seconds": memory.sync_seconds}
    if memory.memory is not None:
        figures["memory_bandwidth"] = max(memory.memory.values)
        reached["memory"] = memory.memory.values[-1] / figures["memory_bandwidth"]
    if memory.element_rate is not None:
        figures["element_rate"] = memory.element_rate
    of_type = {kind: dict(found) or None for kind, found in products.items()}
    curves = Curves(memory=memory.memory, strided=memory.strided, fresh=memory.fresh, **of_type)
    below = [*(f"peak_flops.{dtype}" for dtype in best), *(f"efficiency.{kind}" for kind in reached)]
    return replace(
        profile,
        **figures,
        peak_flops=replace(profile.peak_flops, **best),
        efficiency=replace(profile.efficiency, **reached),
        curves=curves,
        sources={**profile.sources, **dict.fromkeys([*figures, "curves", *below], f"measured: {what}")},
    )


def with_link(profile: HardwareProfile, name: str, found: LinkFindings, what: str) -> HardwareProfile:
    """Return `profile` with a measured link, `intra_node` or `inter_node`.

    Args:
        profile: the figures that are not measured.
        name: of the link.
        found: the measurements.
        what: the source of the figures.

    Raises:
        ConfigError: the times do not grow with the size.
    """
    shortest = min(found.samples, key=lambda sample: sample.seconds)
    step = shortest.seconds / (4 * max(shortest.ranks - 1, 1))
    link = replace(fit_link(found.samples, step_latency=step), interference=found.interference)
    link = replace(link, correction=_corrections(profile, name, link, found.samples))
    if found.uneven is not None:
        link = replace(link, duplex=_duplex(profile, name, link, found.uneven))
    above = {path: text for path, text in profile.sources.items() if not path.startswith(f"{name}.")}
    sources = {**above, name: f"measured: {what}", f"{name}.step_latency": "estimate: a quarter of the shortest step"}
    changed: dict[str, Any] = {name: link, "sources": sources}
    return replace(profile, **changed)


def _duplex(profile: HardwareProfile, name: str, link: Link, found: Uneven) -> float | None:
    """Return the place of the measured seconds between those of alternating directions (0) and of a duplex link (1)."""

    def seconds(duplex: float) -> float:
        fitted = _fitted(profile, name, replace(link, duplex=duplex))
        return collective_seconds("all_to_all", found.most, found.ranks, fitted, fewer=found.fewer)

    alternating, at_once = seconds(0.0), seconds(1.0)
    if at_once < (1 + TOLERANCE) * alternating:
        return None
    return min(max((found.seconds - alternating) / (at_once - alternating), 0.0), 1.0)


def _corrections(profile: HardwareProfile, name: str, link: Link, samples: list[Sample]) -> dict[str, Curve] | None:
    """Return measured / formula by (ranks, bytes), for the kinds for which some size is off."""
    plain = _fitted(profile, name, link)
    found: dict[str, Curve] = {}
    for kind in dict.fromkeys(sample.kind for sample in samples):
        mine = [sample for sample in samples if sample.kind == kind]
        ratios = [s.seconds / collective_seconds(s.kind, s.bytes, s.ranks, plain) for s in mine]
        if any(abs(ratio - 1) > TOLERANCE for ratio in ratios):
            found[kind] = Curve(axes=((mine[0].ranks,), tuple(s.bytes for s in mine)), values=tuple(ratios))
    return found or None


def _fitted(profile: HardwareProfile, name: str, link: Link) -> HardwareProfile:
    """Return `profile` with `link` for groups of any size."""
    per_node = MOST_RANKS if name == "intra_node" else 1
    changed: dict[str, Any] = {name: link, "ranks_per_node": per_node, "sources": {**profile.sources, name: "fitted"}}
    return replace(profile, **changed)
