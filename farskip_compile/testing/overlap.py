# SPDX-License-Identifier: Apache-2.0
"""Is there enough to compute while the collectives of the routed experts are on their way?

Contract: the model is captured and compiled by Inductor, forward and backward, down to the order of its kernels;
nothing is built and nothing runs. What is asserted is read off that order by estimate, with the hardware profile of the
configuration: no clock is involved, so the result is the same on every machine.

Which collectives are those of the routed experts is decided by dataflow: the compiler notes on every node of the graph
which terms of the residual stream it computes (`residual.tags`), and AOTAutograd carries that to the collectives,
also to those of the backward graph.

Two collectives have the least to hide behind (arXiv 2511.11505, section 4.1), and in some models nothing: the last one
of the last MoE in the forward graph, before the final norm, and its counterpart, the first one of the backward
graph. They count, too, unless the user says that they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from farskip_compile._compat import inductor
from farskip_compile._compat.distributed import world_group
from farskip_compile._compat.generated import generating_only
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import ConfigError
from farskip_compile.passes.residual.table import Table, TermKind
from farskip_compile.passes.schedule.timeline import ScheduledFlight
from farskip_compile.records.announcement import Announcement, announcement
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.schedule import ScheduleReport
from farskip_compile.testing.failure import captured, failure, in_words, some
from farskip_compile.tools.capture import Capture
from farskip_compile.tools.explain.overlappable import independent

MOST_SHOWN = 12


def assert_overlappable(
    model: Callable[..., Any],
    *args: Any,
    at_least: float,
    backward: bool | None = None,
    ends: bool = True,
    config: FarSkipConfig | None = None,
    **kwargs: Any,
) -> tuple[ScheduleReport, ...]:
    """Assert that each collective of routed experts has compute between its launch and its wait.

    Args:
        model: a module, or a function that calls one. Compiled with farskip, what it was compiled with counts.
        *args: example inputs.
        at_least: estimated seconds of compute that each of these collectives must have.
        backward: whether the backward graph is asserted too; None: if the model is in training mode and has a
            parameter that requires a gradient.
        ends: whether the last collective of the forward graph and the first one of the backward graph count, too.
        config: of the backend, for a model that is not compiled: profile, connectivity and limits. None: the default.
        **kwargs: example inputs by name.

    Returns:
        What scheduling did: one report for each graph with collectives, forward first.

    Raises:
        AssertionError: a collective has less; or there is nothing to assert: no collectives of routed experts, no
            schedule, no process group, or no backward graph where one is asserted.
        ConfigError: `at_least` is not a positive number.
    """
    if not at_least > 0.0:
        raise ConfigError(f"at_least={at_least!r} asserts nothing", way_out="a positive number of seconds")
    if world_group() is None:
        raise failure(
            "torch.distributed is not initialised, so that nothing is scheduled",
            way_out="build and assert within farskip_compile.testing.fake_ranks(8), or on real ranks",
        )
    train = _trains(model) if backward is None else backward
    found, schedules = _compile(model, args, kwargs, config or FarSkipConfig(), train)
    routed = {term.name for term in found.report.table.terms if term.kind is TermKind.ROUTED}
    for phase in ("forward", "backward") if train else ("inference",):
        schedule = next((one for one in schedules if one.phase == phase), None)
        _assert_phase(found.report, routed, phase, schedule, at_least, ends)
    return schedules


def _trains(model: Callable[..., Any]) -> bool:
    return isinstance(model, nn.Module) and model.training and any(p.requires_grad for p in model.parameters())


def _compile(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], config: FarSkipConfig, train: bool
) -> tuple[Capture, tuple[ScheduleReport, ...]]:
    """Capture and compile, and read what the compiled graphs would announce when they run."""
    texts: list[str] = []

    def take(kernels: list[inductor.Kernel]) -> None:
        texts.extend(inductor.text_argument(one) for one in kernels if inductor.calls(one, announcement()))

    def then(found: Capture, inputs: Sequence[Any]) -> None:
        texts.clear()  # Dynamo may analyse a frame twice
        if _schedules(found.backend.config):
            with generating_only(take):
                found.backend.compile(found.module, inputs, found.report)

    with torch.set_grad_enabled(train):
        found = captured(model, args, kwargs, config, then)
    used = found.backend.config
    if not _schedules(used):
        raise failure(
            f"the model is compiled with inner={used.inner!r}, schedule={used.schedule}, so that nothing is scheduled",
            way_out='inner="inductor", schedule=True',
        )
    return found, tuple(Announcement.from_text(text).report for text in texts)


def _schedules(config: FarSkipConfig) -> bool:
    return config.inner == "inductor" and config.schedule


def _assert_phase(
    report: CompileReport,
    routed: set[str],
    phase: str,
    schedule: ScheduleReport | None,
    at_least: float,
    ends: bool,
) -> None:
    if schedule is None or schedule.after is None:
        raise failure(
            f"the {phase} graph has no collectives, so that there is nothing to overlap",
            way_out="build the model in parallel; for a backward graph its parameters must require gradients",
        )
    of_experts = [flight for flight in schedule.flights if routed.intersection(flight.terms)]
    if not of_experts:
        others = sorted({" and ".join(flight.terms) or "no term" for flight in schedule.flights})
        raise failure(
            f"the routed experts have none of the {phase} graph's collectives ({len(schedule.flights)}), which "
            f"belong to {some(others)}"
        )
    end = _end(report, of_experts, phase)
    asserted = of_experts if ends else [flight for flight in of_experts if flight is not end]
    if not asserted:
        raise failure(
            f"the {phase} graph has one collective of routed experts, and with ends=False that one does not count",
            way_out="a model with more than one MoE layer, or ends=True",
        )
    short = [flight for flight in asserted if not flight.compute >= at_least]
    if not short:
        return
    raise failure(
        f"{len(short)} of {len(asserted)} collectives of routed experts in the {phase} graph have less than "
        f"{at_least:.3g} s of compute between their launch and their wait",
        f"{in_words(report.config)}; estimates for {schedule.level}, profile {schedule.profile}",
        _table(schedule.flights, short, of_experts),
        *_beside(report.table, short),
        way_out="connectivity 'full', a larger batch, a profile that fits the hardware"
        + (", or ends=False" if short == [end] else ""),
    )


def _end(report: CompileReport, flights: Sequence[ScheduledFlight], phase: str) -> ScheduledFlight | None:
    """Of the collectives of the last MoE the last one, in the backward graph the first one."""
    last = [term.name for term in report.table.terms if term.kind is TermKind.ROUTED][-1]
    of_last = [flight for flight in flights if last in flight.terms]
    return of_last[0 if phase == "backward" else -1] if of_last else None


def _table(
    flights: Sequence[ScheduledFlight], short: Sequence[ScheduledFlight], of_experts: Sequence[ScheduledFlight]
) -> str:
    lines = [f"  {'launch':<16}{'of':<14}{'on the wire':>13}{'compute':>13}{'exposed':>13}"]
    first = max(0, min(flights.index(short[0]) - 2, len(flights) - MOST_SHOWN))
    for flight in flights[first : first + MOST_SHOWN]:
        figures = (f"{value:>11.3g} s" for value in (flight.seconds, flight.compute, flight.exposed))
        terms = " ".join(flight.terms) if flight in of_experts else f"({' '.join(flight.terms)})"
        mark = "!" if flight in short else " "
        lines.append(f"{mark} {flight.launch[:15]:<16}{terms[:13]:<14}" + "".join(figures))
    if len(flights) > MOST_SHOWN:
        lines.append(f"{MOST_SHOWN} of {len(flights)} collectives are shown")
    return "\n".join(lines)


def _beside(table: Table, short: Sequence[ScheduledFlight]) -> list[str]:
    """What connectivity alone would let run beside the rows in question."""
    names = {name for flight in short for name in flight.terms}
    rows = [row for row in table.rows if row.kind is TermKind.ROUTED and names.intersection(table.names(row.terms))]
    return [f"{row.name} can run beside {', '.join(independent(table, row)) or 'nothing'}" for row in rows[:4]]
