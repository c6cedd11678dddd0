"""The row `front`: what each set of sub-blocks does to the text, what it hides, and which one the plan is.

In:    the trained teacher, the text, and the model's parallel form on ranks that send nothing.
Out:   `FrontResult`.
Never: reports damages as additive: every set of the front is also rewired as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from distill_bench.architectures import parallel_model
from distill_bench.results import FrontPoint, FrontResult, digest_of
from distill_bench.rows import FREED, MEMORY_INCREASE, PROFILE, RANKS, TOKENS, Row, Scale
from distill_bench.texts import TextData
from farskip_compile.config import FarSkipConfig
from farskip_compile.plan import Front, Point, connectivity_of, find_front, measure_damage, measure_together
from farskip_compile.testing import fake_ranks


def find_plan(row: Row, scale: Scale, teacher: Any, data: TextData) -> FrontResult:
    """Measure and estimate the front, and choose the plan."""
    started = time.perf_counter()
    damage = measure_damage(teacher, data.chosen_by)
    estimates = 0

    def told(_: tuple[str, ...]) -> None:
        nonlocal estimates
        estimates += 1

    with fake_ranks(RANKS):
        parallel = parallel_model(row.model, scale, dist.group.WORLD)
        ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
        limits = FarSkipConfig(profile=PROFILE, memory_increase=MEMORY_INCREASE)
        front = find_front(parallel, (ids,), damage, config=limits, on_estimate=told)
    chosen = front.for_share(FREED)
    sets = [*(point.rows for point in front.points), front.whole.rows]
    together = {rows: one.kl or 0.0 for rows, one in measure_together(teacher, data.chosen_by, damage, sets).items()}
    return FrontResult(
        row=row,
        digest=digest_of(row, scale),
        points=[_point(front, one, together) for one in front.points],
        chosen=front.points.index(chosen),
        whole=_point(front, front.whole, together),
        damages={one.row: one.held_out.kl or 0.0 for one in damage.rows},
        connectivity={name: list(terms) for name, terms in dict(connectivity_of(damage, chosen.rows)).items()},
        estimates=estimates,
        seconds=time.perf_counter() - started,
    )


def _point(front: Front, point: Point, together: Mapping[tuple[str, ...], float]) -> FrontPoint:
    return FrontPoint(point.rows, point.damage, together[point.rows], point.exposure.hidden, front.freed(point))
