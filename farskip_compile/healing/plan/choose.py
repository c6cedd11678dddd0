# SPDX-License-Identifier: Apache-2.0
"""Which rows to rewire: as much communication hidden, by estimate, for as little damage as possible.

In:    the damage of each row alone, and what a set of rows leaves exposed: a function that estimates it, or the model
       in parallel form, on ranks or `fake_ranks`, with example inputs.
Out:   `Front`: of all sets that were looked at, those that no other one beats in both respects; from none to all.
       `connectivity_of(damage, point.rows)` is what `FarSkipConfig`, `self_distill` and `describe` take. An `Exposure`
       for each: seconds of collectives, and of these the seconds in which nothing is computed, in the order that the
       scheduler would choose with the given hardware profile; forward and, if asked, backward.
Never: runs or compiles anything: one capture by Dynamo, and for each connectivity the ATen graphs of the rewired graph
       and one search for an order. Fused kernels are not known here, so compute counts as operators do: what a compile
       reports afterwards (`reports().schedules`) is closer to the truth. Assumes that the rows' gains add up. They do
       not: where the MoE reads past its own layer's attention, most of the next attention's gain has been had already,
       and more is possible where both are rewired. Damage is taken as additive, which holds while it is small. Takes
       rows of one model for those of another: the parallel model must have the same rows, by name.

Algorithm: from no row, add the one that hides most for its damage; from all rows, drop the one that hides least for its
damage. What a row adds mostly shrinks while rows are added, and grows while they are dropped, so rows are kept in a
heap by what they gained in an earlier set, and only the first one is estimated again (lazy greedy): for n rows some 2 n
estimates each way, not n^2 / 2.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from torch import nn

from farskip_compile._compat.distributed import world_group
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes.plan import Plan, make_plan
from farskip_compile.compiler.inductor_passes.post_grad import cut_as_planned
from farskip_compile.errors import ConfigError
from farskip_compile.healing.plan.damage import Damage, connectivity_of
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.graph import schedule_graph
from farskip_compile.tools.capture import Graphs, GraphsOf, with_graphs

SMALLEST = 1e-9
"""Damage, in nats, that a row without any is assumed to do, so that rows can be ordered by their gain per damage."""

RowNames = frozenset[str]
T = TypeVar("T")


@dataclass(frozen=True)
class Exposure:
    """One call, or one training step, on one rank; estimates in seconds."""

    communication: float
    """Seconds of all collectives."""
    exposed: float
    """Of these, seconds in which nothing is computed."""
    compute: float
    """Seconds of all kernels."""

    @property
    def hidden(self) -> float:
        """Fraction of the communication that overlaps compute; 0 where there is none."""
        return 1.0 - self.exposed / self.communication if self.communication else 0.0


class EstimateConnectivity(Protocol):
    """Estimates a connectivity, in a range of layers."""

    def __call__(self, connectivity: Connectivity, layers: LayerRange = None) -> Exposure:
        """See `with_estimates` for what it raises."""
        ...


@dataclass(frozen=True)
class Point:
    """One set of rows."""

    rows: tuple[str, ...]
    """In the order of the model."""
    damage: float
    """Sum of their damages, nats per token."""
    exposure: Exposure
    """With these rows rewired."""


@dataclass(frozen=True)
class Front:
    """Sets of rows by damage; each hides more than all before it."""

    points: tuple[Point, ...]
    """By damage, from no row at all on."""
    whole: Point
    """All rows. Some of them may hide as much."""

    def freed(self, point: Point) -> float:
        """Fraction of what all rows free that the set `point` frees; 1 if there is nothing to free."""
        nothing = self.points[0].exposure.exposed
        most = nothing - self.whole.exposure.exposed
        return (nothing - point.exposure.exposed) / most if most > 0 else 1.0

    def for_share(self, share: float) -> Point:
        """The set with the least damage that frees `share` of what all rows free."""
        return next((point for point in self.points if self.freed(point) >= share), self.whole)

    def for_budget(self, damage: float) -> Point:
        """The set that frees most with at most this damage."""
        return [point for point in self.points if point.damage <= damage or not point.rows][-1]


def choose(damage: Mapping[str, float], estimate: Callable[[tuple[str, ...]], Exposure]) -> Front:
    """The front for rows with these damages, each alone, nats per token, in the order of the model."""
    known: dict[RowNames, Exposure] = {}

    def exposed(rows: RowNames) -> float:
        if rows not in known:
            known[rows] = estimate(tuple(row for row in damage if row in rows))
        return known[rows].exposed

    cost = {row: max(one, SMALLEST) for row, one in damage.items()}
    _walk(frozenset(), lambda rows, row: rows | {row}, cost, exposed)
    _walk(frozenset(damage), lambda rows, row: rows - {row}, cost, exposed)
    points = [
        Point(tuple(row for row in damage if row in rows), sum(damage[row] for row in damage if row in rows), one)
        for rows, one in known.items()
    ]
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.damage, one.exposure.exposed, len(one.rows))):
        if not front or point.exposure.exposed < front[-1].exposure.exposed:
            front.append(point)
    return Front(tuple(front), next(point for point in points if len(point.rows) == len(damage)))


def _walk(
    start: RowNames,
    step: Callable[[RowNames, str], RowNames],
    cost: Mapping[str, float],
    exposed: Callable[[RowNames], float],
) -> None:
    """Take all steps from `start`, first those that reduce what is exposed most for their cost."""
    order = {row: place for place, row in enumerate(cost)}
    rows = start
    heap = [(-float("inf"), order[row], row, -1) for row in cost]  # last: after how many steps the gain was computed
    steps = 0
    while heap:
        _, _, row, seen = heapq.heappop(heap)
        if seen == steps:
            rows, steps = step(rows, row), steps + 1
            continue
        more = (exposed(step(rows, row)) - exposed(rows)) / cost[row]
        heapq.heappush(heap, (more, order[row], row, steps))


def find_front(
    model: nn.Module,
    args: tuple[Any, ...],
    damage: Damage,
    *,
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    backward: bool = False,
    on_estimate: Callable[[tuple[str, ...]], None] = lambda rows: None,
) -> Front:
    """Which of the rows to rewire, for any share of the communication or any damage.

    Args:
        model: in parallel form; captured, not run.
        args: example inputs of one rank.
        damage: that of the same model, in whatever form it was measured.
        kwargs: example inputs by name.
        config: profile and limits of the scheduler, pieces, micro-batches.
        backward: a training step instead of a call without gradients.
        on_estimate: called with each set of rows before it is estimated.

    Raises:
        ConnectivityError: the parallel model does not have these rows, or they read something else.
        ConfigError: there is no process group, or the model has no collectives.
    """

    def search(estimate: EstimateConnectivity) -> Front:
        def of(rows: tuple[str, ...]) -> Exposure:
            on_estimate(rows)
            return estimate(connectivity_of(damage, rows) if rows else "none")

        return choose({row.row: row.held_out.kl or 0.0 for row in damage.rows}, of)

    return with_estimates(model, args, search, kwargs=kwargs, config=config, backward=backward)


def with_estimates(
    model: nn.Module,
    args: tuple[Any, ...],
    search: Callable[[EstimateConnectivity], T],
    *,
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    backward: bool = False,
) -> T:
    """Call `search` with a function that estimates a connectivity, and return what it returns.

    Args:
        model: in parallel form; captured, not run.
        args: example inputs of one rank.
        search: may estimate as many connectivities as it likes, one after another.
        kwargs: example inputs by name.
        config: profile and limits of the scheduler, pieces, micro-batches; its connectivity and layers do not matter.
        backward: a training step instead of a call without gradients.

    Raises:
        ConfigError: there is no process group, or the model has no collectives.
        FarSkipError: it can't be rewired to one of the connectivities.
    """
    if world_group() is None:
        raise ConfigError(
            "torch.distributed is not initialised, so there is no communication to estimate",
            way_out="build the model within farskip_compile.testing.fake_ranks(8), or on real ranks",
        )
    base = resolve(config or FarSkipConfig())

    def use(graphs: GraphsOf) -> T:
        def estimate(connectivity: Connectivity, layers: LayerRange = None) -> Exposure:
            asked = replace(base, connectivity=connectivity, layers=layers, schedule=True)
            found = graphs(asked)
            plan = make_plan(asked, found.module)
            assert plan is not None
            exposure = _total(found, plan)
            if not exposure.communication:
                raise ConfigError(
                    "the model has no collectives, so nothing can be hidden",
                    way_out="build the model in parallel form",
                )
            return exposure

        return search(estimate)

    return with_graphs(model, args, kwargs or {}, use, backward=backward)


def _total(graphs: Graphs, plan: Plan) -> Exposure:
    communication = exposed = compute = 0.0
    for phase, graph in graphs.phases:
        passes = PassRunner(Stage.POST_GRAD, graph, plan.config.disable_passes)
        cut_as_planned(graph, plan, passes)
        estimates = plan.estimates(graph)
        after = schedule_graph(graph, estimates, plan.limits, backward=phase == "backward").after
        communication += after.communication
        exposed += after.exposed
        compute += after.compute
    return Exposure(communication, exposed, compute)
