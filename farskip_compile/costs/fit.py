"""A link's alpha and beta from measured times.

In:    times of collectives of several sizes, from any tool.
Out:   a `Link` whose `collective_seconds` come as close to them as the model can.
Never: measures anything itself.

For each kind: the line `seconds = latency + bytes sent / rate` with the least relative error, because a millisecond is
a lot for a small message and nothing for a large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from farskip_compile.costs.collectives import sent_part, steps
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind, Link, PerCollective
from farskip_compile.errors import ConfigError


@dataclass(frozen=True)
class Sample:
    """One measured collective, on ranks that share one link."""

    kind: CollectiveKind
    """The collective."""
    bytes: int
    """Size as in `CollectiveCost`."""
    ranks: int
    """Size of the group."""
    seconds: float
    """From launch to completion, on the slowest rank."""


def fit_link(samples: Iterable[Sample], *, bandwidth: float | None = None, step_latency: float = 0.0) -> Link:
    """The link that explains `samples` best.

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
    """(latency, rate) of least squared relative error."""
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
