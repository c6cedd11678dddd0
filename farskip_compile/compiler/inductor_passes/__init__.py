# SPDX-License-Identifier: Apache-2.0
"""The passes that Inductor runs for us: on the post-grad graph, and on its kernels before and after fusion.

Contract: configuration is bound at construction; equal passes make equal schedules on every rank; all are part of
the cache keys (the `uuid` of the first two, the pickled fields of the third), so that a change of configuration,
hardware profile or source of this package never gets a stale artifact. Nothing is communicated or measured.

    PostGradPass       the user's own passes, ours of this stage, the announcement; verified
    pin_before_fusion  ours of that stage
    KernelPass         ours of that stage, whose figures go into the announcement; verified
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import fx

from farskip_compile._compat import CustomGraphPass, inductor
from farskip_compile._compat.distributed import group_ranks
from farskip_compile._compat.names import DETERMINISTIC
from farskip_compile.compiler.carrier import landing  # noqa: F401 (an operator)
from farskip_compile.compiler.inductor_passes.cuda_graphs import CudaGraphCapture, keep_flights_whole
from farskip_compile.compiler.inductor_passes.in_pieces import cut_in_pieces
from farskip_compile.compiler.inductor_passes.marked import EARLIER, MARKING, communicates, mark
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.costs.estimates import Estimates
from farskip_compile.errors import ConfigError
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces import PiecesCut, cut_earlier
from farskip_compile.passes.schedule.custom_collectives import blocking
from farskip_compile.passes.schedule.from_graph import input_bytes
from farskip_compile.passes.schedule.in_flight import landed, leave_in_flight
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule
from farskip_compile.records.announcement import (
    Announcement,
    announcement,
    collective_orders,
    collective_sizes,
    insert_announcement,
)
from farskip_compile.records.schedule import ScheduleReport
from farskip_compile.verify.before import remember
from farskip_compile.verify.in_flight import returned, verify_in_flight
from farskip_compile.verify.kernels import verify_kernels
from farskip_compile.verify.schedule import verify_order

UNFUSED = 2.0
"""How much more the memory of the graph may grow than that of its kernels, which have the last word. In a graph, what
fusion will keep out of memory grows too; and kernels that were fused for one order can't take another."""


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
        if self.plan is not None and communicates(graph, self.plan):
            schedule_post_grad(graph, self.plan, self.identity)

    def uuid(self) -> Any:
        """Identity of all passes; None (no caching) if one of the user's has none."""
        identities = [one.uuid() if isinstance(one, CustomGraphPass) else None for one in self.inner]
        return None if None in identities else (self.identity, *map(str, identities))


@collector_paused()
def schedule_post_grad(graph: fx.Graph, plan: Plan, identity: str = "") -> ScheduleReport:
    """Order `graph` in place, pin its waits and announce its collectives; `identity` is that of the compile.

    Raises:
        ConfigError: Inductor would not run what is scheduled.
        VerificationError: the graph that comes out could not take the place of the one that came in.
    """
    _refuse_deterministic()
    custom_waits = mark(graph, plan)
    earlier, in_pieces = cut_earlier(graph), cut(graph, plan)
    phase = _phase(graph)
    left, still_here = _leave_in_flight(graph, phase, plan)
    regroup = _regroup(graph, plan.ep_group)
    facts = {
        "graph": graph,
        "custom_waits": custom_waits,
        "regroup": regroup,
        "limits": _of_the_graph(plan.limits),
        "in_place": inductor.may_be_written,
        "backward": phase == "backward",
    }
    driver = Driver(PASSES, Stage.POST_GRAD, facts, {*plan.skip, *EARLIER})
    before = driver.step("remember", remember, graph, inductor.may_be_written)
    driver.run(through="collectives")
    estimates = driver.facts["estimate"] = driver.step("estimate", _estimates, graph, plan)
    estimates.size.tell_inductor()
    driver.run()
    report = ScheduleReport(
        phase=phase,
        orders=collective_orders(graph),
        waits_pinned=driver.facts.get("waits_pinned", 0),
        waits_collapsed=driver.facts["collapsed"].waits,
        profile=plan.profile.name,
        pieces=max(earlier.pieces, in_pieces.pieces),
        exchanges_cut=earlier.exchanges + in_pieces.exchanges,
        exchanges_whole=tuple(map(str, in_pieces.refused)),
        pieces_same_bits=in_pieces.same_bits,
        pieces_along=tuple(dict.fromkeys([*earlier.along, *in_pieces.along])),
        left_in_flight=left,
        leaves=plan.around.leaves if left else "",
        landed=still_here,
        blocking=blocking(graph),
    )
    schedule: Schedule | None = driver.facts.get("schedule")
    if schedule is not None:
        report = report.ordered(schedule)
        report = replace(report, unscheduled=report.before)
    announced = Announcement(report, plan.check_order, collective_sizes(graph), plan.common, identity)
    driver.step("announce", insert_announcement, graph, announced)
    driver.verify(verify_order, graph, before, regroup, "pin_waits" not in plan.skip)
    driver.finish()
    graph.lint()
    return report


def _leave_in_flight(graph: fx.Graph, phase: str, plan: Plan) -> tuple[int, tuple[str, ...]]:
    """Leave the waits to the next graph that are its, and verify that. How many, and those that are still here."""
    facts = {"graph": graph, "training": phase == "forward"}
    driver = Driver(PASSES, Stage.POST_GRAD, facts, {*plan.skip, *MARKING, "pieces"})
    before = driver.step("remember", returned, graph)
    driver.run(through="in_flight")
    driver.verify(verify_in_flight, graph, before)
    driver.finish()
    still_here = tuple(node.name for node in landed(graph)) if phase != "backward" else ()
    return driver.facts.get("left_in_flight", 0), still_here


def cut(graph: fx.Graph, plan: Plan) -> PiecesCut:
    """Cut the exchanges of `graph` in place, in as many pieces as planned.

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut does not compute the same.
    """
    scheduled, limits = partial(_scheduled, plan), _of_the_graph(plan.limits)
    return cut_in_pieces(graph, plan.pieces, plan.skip, strict=plan.strict, scheduled=scheduled, limits=limits)


def _estimates(graph: fx.Graph, plan: Plan) -> Estimates:
    return Estimates(graph, plan.profile, plan.imbalance, came=plan.around.came)


def _of_the_graph(limits: MemoryLimits) -> MemoryLimits:
    """Those of the graph: `UNFUSED`."""
    return replace(limits, memory_increase=UNFUSED * limits.memory_increase)


def _scheduled(plan: Plan, graph: fx.Graph) -> Schedule:
    """The order that `graph`, a copy, would get. Also if no order is to be made of the graph: kernels will get one, and
    a number of pieces has to be chosen."""
    facts = {
        "graph": graph,
        "custom_waits": 0,  # marked already
        "regroup": {},
        "limits": _of_the_graph(plan.limits),
        "in_place": inductor.may_be_written,
        "backward": _phase(graph) == "backward",
    }
    leave_in_flight(graph, training=False)  # on a copy, from which nothing is compiled
    driver = Driver(PASSES, Stage.POST_GRAD, facts, {*plan.skip, *EARLIER} - {"schedule_graph"})
    driver.run(through="collectives")
    driver.facts["estimate"] = _estimates(graph, plan)
    driver.run(through="schedule_graph")
    schedule: Schedule = driver.facts["schedule"]
    return schedule


def _refuse_deterministic() -> None:
    """In that mode Inductor calls no pass on the order of kernels, since its own ones may measure."""
    if inductor.inductor_setting(DETERMINISTIC):
        raise ConfigError(
            "Inductor is told to be deterministic, and then leaves out the pass by which collectives are ordered and "
            "checked",
            way_out="schedule=False, which rewires all the same; or without deterministic: the order is a function of "
            "the graph and the profile, and measures nothing",
        )


def _regroup(graph: fx.Graph, target: str | None) -> dict[str, str]:
    """Process groups of all-to-alls that have the same ranks as `target`."""
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


def pin_before_fusion(plan: Plan, kernels: Sequence[inductor.Kernel]) -> None:
    """Run the passes of that stage."""
    Driver(PASSES, Stage.BEFORE_FUSION, {"kernels": kernels}, plan.skip).run()


@dataclass(frozen=True)
class KernelPass:
    """A member of Inductor's `reorder_for_compute_comm_overlap_passes`."""

    plan: Plan
    identity: str
    """Of the compile: Inductor keys its caches by the fields of this object."""

    @collector_paused()
    def __call__(self, kernels: list[inductor.Kernel]) -> list[inductor.Kernel]:
        """The kernels in the order in which they will run."""
        launches = [kernel for kernel in kernels if inductor.is_launch_kernel(kernel)]
        if not launches:
            keep_flights_whole(kernels)  # what arrives is waited for
            return kernels
        first = [kernel for kernel in kernels if inductor.calls(kernel, announcement())]
        rest = [kernel for kernel in kernels if kernel not in first]
        graph = next(node.graph for _, origins in inductor.kernel_parts(launches[0]) for node in origins)
        inductor.unpin_kernels(rest)
        estimates = _estimates(graph, self.plan)
        facts = {
            "kernels": rest,
            "estimate": estimates,
            "limits": self.plan.limits,
            "input_bytes": input_bytes(graph, estimates),
        }
        driver = Driver(PASSES, Stage.AFTER_FUSION, facts, self.plan.skip)
        driver.run()
        ordered = [*first, *driver.facts["kernels"]]
        captured = driver.step("cuda_graphs", keep_flights_whole, ordered)
        for kernel in first:
            _report_kernels(kernel, driver.facts.get("schedule"), captured)
        driver.verify(verify_kernels, kernels, ordered)
        driver.finish()
        return ordered


def _report_kernels(kernel: inductor.Kernel, schedule: Schedule | None, captured: CudaGraphCapture) -> None:
    """Put the figures of the kernels into the announcement that `kernel` makes."""
    announced = Announcement.from_text(inductor.text_argument(kernel))
    report = announced.report
    if schedule is not None:
        report = report.ordered(schedule, level="kernels")
        if report.unscheduled is not None:
            report = replace(report, unscheduled=replace(report.unscheduled, peak_bytes=schedule.baseline_peak))
    report = replace(report, cuda_graphs=captured.graphs, outside_cuda_graphs=captured.without_collectives)
    inductor.set_text_argument(kernel, replace(announced, report=report).to_text())
