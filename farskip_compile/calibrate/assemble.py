"""Puts measured figures into a profile, each with its source.

In:    a profile, and what was measured.
Out:   a new profile: scalars (peak, efficiencies, alpha and beta) drawn from the curves, and the curves themselves.
Never: measures; drops the source of a figure that stays.

Scalars are for sizes and types that no curve covers: the peak is the best rate of any shape, an efficiency the rate of
the largest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from farskip_compile.calibrate.collectives import LinkFindings, Uneven
from farskip_compile.calibrate.memory import MemoryFigures
from farskip_compile.costs import Curve, Curves, HardwareProfile, Link, PeakFlops, Sample, collective_seconds, fit_link

TOLERANCE = 0.1
"""A formula that is off by more than this part anywhere gets a correction. And two times must differ by so much that a
third one can be said to be nearer to one of them."""
KINDS = ("matmul", "attention", "grouped_matmul")


def with_compute(
    profile: HardwareProfile, memory: MemoryFigures, products: Mapping[str, Mapping[str, Curve]], what: str
) -> HardwareProfile:
    """`profile` with measured compute.

    Args:
        profile: figures that were not measured.
        memory: from `Memory`.
        products: field of `Curves` -> type -> curve.
        what: the source.
    """
    source = f"measured: {what}"
    known = {entry.name for entry in fields(PeakFlops)}
    best: dict[str, float] = {}
    for of_kind in products.values():
        for dtype, curve in of_kind.items():
            if dtype in known:
                best[dtype] = max(best.get(dtype, 0.0), *curve.values)
    peaks = replace(profile.peak_flops, **best)
    first = next(iter(best), "float32")
    efficiency = profile.efficiency
    for kind in KINDS:
        curve_of = products.get(kind, {}).get(first)
        if curve_of is not None:
            efficiency = replace(efficiency, **{kind: curve_of.values[-1] / getattr(peaks, first)})
    changed: dict[str, Any] = {"peak_flops": peaks, "launch_seconds": memory.launch_seconds}
    sources = {**profile.sources, "launch_seconds": source, "sync_seconds": source}
    sources.update({f"peak_flops.{dtype}": source for dtype in best})
    sources.update({f"efficiency.{kind}": source for kind in KINDS if first in products.get(kind, {})})
    if memory.memory is not None:
        bandwidth = max(memory.memory.values)
        efficiency = replace(efficiency, memory=memory.memory.values[-1] / bandwidth)
        changed["memory_bandwidth"] = bandwidth
        sources.update({"memory_bandwidth": source, "efficiency.memory": source})
    if memory.element_rate is not None:
        changed["element_rate"] = memory.element_rate
        sources["element_rate"] = source
    of_type = {kind: dict(found) or None for kind, found in products.items()}
    curves = Curves(memory=memory.memory, strided=memory.strided, fresh=memory.fresh, **of_type)
    sources["curves"] = source
    return replace(
        profile,
        **changed,
        efficiency=efficiency,
        curves=curves,
        sync_seconds=memory.sync_seconds,
        sources=sources,
    )


def with_link(profile: HardwareProfile, name: str, found: LinkFindings, what: str) -> HardwareProfile:
    """`profile` with a measured link, `intra_node` or `inter_node`.

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
    return _with(profile, name, link, sources=sources)


def _duplex(profile: HardwareProfile, name: str, link: Link, found: Uneven) -> float | None:
    """Where between the seconds of a link whose ways take turns and those of a duplex one the measured ones lie."""

    def seconds(duplex: float) -> float:
        fitted = _fitted(profile, name, replace(link, duplex=duplex))
        return collective_seconds("all_to_all", found.most, found.ranks, fitted, fewer=found.fewer)

    in_turns, at_once = seconds(0.0), seconds(1.0)
    if at_once < (1 + TOLERANCE) * in_turns:
        return None
    return min(max((found.seconds - in_turns) / (at_once - in_turns), 0.0), 1.0)


def _corrections(profile: HardwareProfile, name: str, link: Link, samples: list[Sample]) -> dict[str, Curve] | None:
    """Measured / formula by (ranks, bytes), for the kinds of which some size is off."""
    plain = _fitted(profile, name, link)
    found: dict[str, Curve] = {}
    for kind in dict.fromkeys(sample.kind for sample in samples):
        mine = [sample for sample in samples if sample.kind == kind]
        ratios = [s.seconds / collective_seconds(s.kind, s.bytes, s.ranks, plain) for s in mine]
        if any(abs(ratio - 1) > TOLERANCE for ratio in ratios):
            found[kind] = Curve(axes=((mine[0].ranks,), tuple(s.bytes for s in mine)), values=tuple(ratios))
    return found or None


def _fitted(profile: HardwareProfile, name: str, link: Link) -> HardwareProfile:
    """`profile` with `link`, over which all groups go."""
    per_node = 10**9 if name == "intra_node" else 1
    return _with(profile, name, link, ranks_per_node=per_node, sources={**profile.sources, name: "fitted"})


def _with(profile: HardwareProfile, name: str, link: Link, **more: Any) -> HardwareProfile:
    if name == "intra_node":
        return replace(profile, intra_node=link, **more)
    return replace(profile, inter_node=link, **more)
