# SPDX-License-Identifier: Apache-2.0
"""The passes on the post-grad graph: the user's own, ours of that stage, the announcement; verified."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx

from farskip_compile._compat import CustomGraphPass, inductor
from farskip_compile._compat.distributed import group_ranks
from farskip_compile._compat.names import DETERMINISTIC
from farskip_compile.compiler.carrier import landing  # noqa: F401 (an operator)
from farskip_compile.compiler.inductor_passes.in_pieces import cut_in_pieces
from farskip_compile.compiler.inductor_passes.marked import communicates, mark_launches_and_waits
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.costs.estimates import Estimates
from farskip_compile.errors import ConfigError
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces import PiecesCut, cut_earlier
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.collectives import normalize_collectives
from farskip_compile.passes.schedule.custom_collectives import blocking
from farskip_compile.passes.schedule.graph import pin_waits, schedule_graph
from farskip_compile.passes.schedule.in_flight import landed, leave_in_flight
from farskip_compile.passes.schedule.search import Schedule
from farskip_compile.records.announcement import (
    Announcement,
    collective_orders,
    collective_sizes,
    insert_announcement,
)
from farskip_compile.records.schedule import ScheduleReport
from farskip_compile.verify.before import remember
from farskip_compile.verify.in_flight import returned, verify_in_flight
from farskip_compile.verify.schedule import verify_order


class PostGradPass(CustomGraphPass):
    """Inductor's `post_grad_custom_post_pass`: schedules, or without a plan only carries the identity of a compile.

    `identity` is a hash of all that decides the result and is not visible in the graph; `inner` is the user's pass, or
    passes, in the same place.
    """

    def __init__(self, identity: str, inner: Any = None, plan: Plan | None = None) -> None:
        self.identity = identity
        self.inner = inner if isinstance(inner, list | tuple) else [inner] if inner is not None else []
        self.plan = plan

    def __call__(self, graph: fx.Graph) -> None:
        """Run the user's passes, then ours, on `graph` in place."""
        for one in self.inner:
            one(graph)
        if self.plan is not None and communicates(graph, self.plan.config.declared):
            schedule_post_grad(graph, self.plan, self.identity)

    def uuid(self) -> Any:
        """Return the identity of all passes; None (no caching) if one of the user's has none."""
        identities = [one.uuid() if isinstance(one, CustomGraphPass) else None for one in self.inner]
        return None if None in identities else (self.identity, *map(str, identities))


@collector_paused()
def schedule_post_grad(graph: fx.Graph, plan: Plan, identity: str = "") -> ScheduleReport:
    """Order `graph` in place, pin its waits and announce its collectives.

    Args:
        graph: forward or backward, with its collectives.
        plan: how to schedule it.
        identity: the identity of the compile.

    Raises:
        ConfigError: Inductor would not run what is scheduled.
        VerificationError: the graph that comes out could not take the place of the one that came in.
    """
    _refuse_deterministic()
    passes = PassRunner(Stage.POST_GRAD, graph, plan.config.disable_passes)
    phase = _phase(graph)
    mark_launches_and_waits(graph, plan.config.declared, passes)
    earlier, in_pieces = cut_earlier(graph), cut_as_planned(graph, plan, passes)
    left = _leave_in_flight(graph, phase, passes)
    report = ScheduleReport(
        phase=phase,
        profile=plan.profile.name,
        pieces=max(earlier.pieces, in_pieces.pieces),
        exchanges_cut=earlier.exchanges + in_pieces.exchanges,
        exchanges_whole=tuple(map(str, in_pieces.refused)),
        pieces_same_bits=in_pieces.same_bits,
        pieces_along=tuple(dict.fromkeys([*earlier.along, *in_pieces.along])),
        left_in_flight=left,
        leaves=plan.context.departure if left else "",
        landed=tuple(node.name for node in landed(graph)) if phase != "backward" else (),
    )
    report = _order_and_announce(graph, plan, identity, passes, report)
    passes.finish()
    graph.lint()
    return report


def cut_as_planned(graph: fx.Graph, plan: Plan, passes: PassRunner) -> PiecesCut:
    """Cut the exchanges of `graph` in place, in as many pieces as planned.

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut does not compute the same.
    """
    return cut_in_pieces(
        graph,
        plan.config.pieces,
        passes,
        strict=plan.config.strict,
        scheduled=partial(_schedule_copy, plan),
        limits=plan.graph_limits,
    )


def _leave_in_flight(graph: fx.Graph, phase: str, passes: PassRunner) -> int:
    """Leave to the next graph the waits that only it needs, and verify that. Return how many there are."""
    if not passes.is_enabled("in_flight"):
        return 0
    before = passes.step("remember", returned, graph)
    left = passes.apply("in_flight", leave_in_flight, graph, training=phase == "forward")
    passes.verify(verify_in_flight, graph, before)
    return left


def _order_and_announce(
    graph: fx.Graph, plan: Plan, identity: str, passes: PassRunner, report: ScheduleReport
) -> ScheduleReport:
    """Order `graph`, pin its waits, announce its collectives, and verify all of it. Return the completed report."""
    regroup = _regroup(graph, plan.config.ep_group)
    before = passes.step("remember", remember, graph, inductor.may_be_written)
    collapsed = passes.apply("collectives", normalize_collectives, graph, regroup)
    estimates = passes.step("estimate", plan.estimates, graph)
    estimates.size.tell_inductor()
    schedule: Schedule | None = None
    if passes.is_enabled("schedule_graph"):
        schedule = passes.apply("schedule_graph", _schedule, graph, plan, estimates)
    pins = passes.is_enabled("pin_waits")
    report = replace(
        report,
        orders=collective_orders(graph),
        waits_pinned=passes.apply("pin_waits", pin_waits, graph) if pins else 0,
        waits_collapsed=collapsed.waits,
        blocking=blocking(graph),
    )
    if schedule is not None:
        report = report.ordered(schedule)
        report = replace(report, unscheduled=report.before)
    check_order, sizes = plan.config.check_order, collective_sizes(graph)
    announced = Announcement(report, check_order, sizes, plan.common, identity)
    passes.step("announce", insert_announcement, graph, announced)
    passes.verify(verify_order, graph, before, regroup, pins)
    return report


def _schedule(graph: fx.Graph, plan: Plan, estimates: Estimates) -> Schedule:
    """Order `graph` in place within the plan's limits."""
    backward = _phase(graph) == "backward"
    return schedule_graph(graph, estimates, plan.graph_limits, inductor.may_be_written, backward)


def _schedule_copy(plan: Plan, graph: fx.Graph) -> Schedule:
    """Return the schedule that `graph`, a copy from which nothing is compiled, would get.

    A disabled pass does not matter here: the kernels will get an order, and a number of pieces has to be chosen.
    """
    leave_in_flight(graph, training=False)
    normalize_collectives(graph)
    return _schedule(graph, plan, plan.estimates(graph))


def _refuse_deterministic() -> None:
    """Refuse Inductor's deterministic mode, in which it calls no pass on the order of kernels: they might measure.

    Raises:
        ConfigError: the mode is on.
    """
    if inductor.inductor_setting(DETERMINISTIC):
        raise ConfigError(
            "Inductor is told to be deterministic, and then leaves out the pass by which collectives are ordered and "
            "checked",
            way_out="schedule=False, which rewires all the same; or without deterministic: the order is a function of "
            "the graph and the profile, and measures nothing",
        )


def _regroup(graph: fx.Graph, target: str | None) -> dict[str, str]:
    """Map each process group of all-to-alls that has the same ranks as `target` to it.

    Raises:
        ConfigError: no all-to-all is among just these ranks.
    """
    exchanges = ops.calls(graph, lambda node: comms.is_all_to_all(node) and comms.is_functional(node))
    groups = {comms.process_group(node) for node in exchanges} - {target}
    if target is None or not groups:
        return {}
    ranks = group_ranks(target)
    same = sorted(group for group in groups if group_ranks(group) == ranks)
    if not same:
        raise ConfigError(
            f"ep_group {target!r} has the ranks {ranks}, but no all-to-all of the model is among just these: "
            + ", ".join(f"{group!r} has {group_ranks(group)}" for group in sorted(groups)),
            way_out="make the group with farskip_compile.comm.expert_group(group of the all-to-alls)",
        )
    return dict.fromkeys(same, target)


def _phase(graph: fx.Graph) -> str:
    names = [node.name for node in graph.nodes if node.op == "placeholder"]
    if any(name.startswith("tangents") for name in names):
        return "backward"
    return "forward" if any(name.startswith("primals") for name in names) else "inference"
