# SPDX-License-Identifier: Apache-2.0
"""The scheduler's estimates next to measured times, for each compiled graph and in total.

In:    traces with the schedules of the profiled process (`record` writes them into the trace) and the runs of its
       compiled graphs.
Out:   a row for each scheduled graph that ran, and their sum; nothing if no schedule is known.
Never: guesses. A graph whose runs can't be identified stays without measurement.

1. On a CPU a graph's run is a marked stretch of one thread. Its compute is the part of the rank's compute inside the
   stretch; its communication is the union of the collectives launched inside; exposed is the part of the communication
   outside compute. Runs of one graph are averaged, and so are ranks.
2. A trace does not say which schedule belongs to a graph. Schedules and graphs are both in order, with known numbers of
   collectives; they are matched from the last to the first, since older schedules may be of models that did not run.
3. On a GPU kernels run apart from the code that launches them, so that only the sum over the whole trace is known. It
   is compared with the schedules of one step: profile one step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from farskip_compile.base.json_files import shown
from farskip_compile.measure.profiling.data import CollectiveDevice, EstimateReport, StepTimes, Trace
from farskip_compile.measure.profiling.intervals import Span, difference, intersection, total, union
from farskip_compile.text_utils import printable

SECONDS = ("compute_seconds", "communication_seconds", "exposed_seconds", "seconds")
"""Fields of a schedule, in the order of `StepTimes`."""
MOST_SECONDS = 1e9
_Runs = list[StepTimes]


def announced(entries: object) -> tuple[dict[str, Any], ...]:
    """Return the schedules that a trace holds, checked, with the fields that this module needs.

    Raises:
        ValueError: an entry is not as a report's `to_json` gave it.
    """
    found = entries if isinstance(entries, list) else []
    return tuple(_schedule(one) for one in found if isinstance(one, dict) and isinstance(one.get("orders"), dict))


def _schedule(data: dict[str, Any]) -> dict[str, Any]:
    after, orders = data.get("after"), data["orders"]
    if after is not None:
        after = {name: after[name] for name in SECONDS}
        if not all(isinstance(time, (int, float)) and 0 <= time <= MOST_SECONDS for time in after.values()):
            raise ValueError(f"a schedule of {shown(after)} seconds")
    if not all(isinstance(order, list) for order in orders.values()):
        raise ValueError("a schedule whose orders are no lists")
    names = {name: printable(str(data.get(name, default))) for name, default in (("phase", "graph"), ("profile", ""))}
    return {**names, "orders": {group: [*map(str, order)] for group, order in orders.items()}, "after": after}


def estimates(traces: Sequence[Trace]) -> tuple[EstimateReport, ...]:
    """Return rows for all scheduled graphs in `traces`, the sum last; empty if the traces hold no schedule."""
    known = next((trace.schedules for trace in traces if trace.schedules), ())
    schedules = [one for one in known if one.get("after") is not None]
    if not schedules:
        return ()
    matched: dict[int, list[StepTimes]] = {}
    for trace in traces:
        for index, graph in _match(schedules, _graphs(trace)):
            matched.setdefault(index, []).append(_mean(graph))
    chosen = sorted(matched) or range(len(schedules))
    rows = []
    for index in chosen:
        schedule = schedules[index]
        row = EstimateReport(
            name=_name(schedules, index, chosen),
            collectives=_launches(schedule),
            profile=schedule["profile"],
            estimated=StepTimes(*(round(1e9 * schedule["after"][name]) for name in SECONDS)),
            measured=_mean(matched[index]) if index in matched else None,
        )
        rows.append(row)
    found = [row.measured for row in rows if row.measured is not None]
    runs = []
    for trace in traces:
        collectives = [(one.start, one.end) for one in trace.collectives]
        runs.append(_times(trace.span or (0, 0), trace.compute(), collectives))
    whole = EstimateReport(
        name="total",
        collectives=sum(row.collectives for row in rows),
        profile=", ".join(dict.fromkeys(row.profile for row in rows)),
        estimated=_sum([row.estimated for row in rows]),
        measured=_sum(found) if len(found) == len(rows) else _mean(runs),
    )
    return (*rows, whole)


def _graphs(trace: Trace) -> list[tuple[int, _Runs]]:
    """Return (launches, runs) of each compiled graph of a rank that launches any, in the order of their first runs."""
    if trace.device is not CollectiveDevice.CPU or not trace.graphs:
        return []
    compute = trace.compute()
    launched = sorted((*one.order, one.end) for one in trace.collectives)
    moments = [moment for moment, _, _ in launched]
    graphs: dict[str, tuple[int, _Runs]] = {}
    for start, end, name in trace.graphs:
        inside = launched[bisect_right(moments, start - 1) : bisect_right(moments, end)]
        if inside:
            times = _times((start, end), compute, [(first, last) for _, first, last in inside])
            graphs.setdefault(name, (len(inside), []))[1].append(times)
    return list(graphs.values())


def _times(stretch: Span, compute: Sequence[Span], collectives: Sequence[Span]) -> StepTimes:
    flying = union(collectives)
    return StepTimes(
        compute_ns=total(intersection([stretch], compute)),
        communication_ns=total(flying),
        exposed_ns=total(difference(flying, compute)),
        step_ns=stretch[1] - stretch[0],
    )


def _match(schedules: Sequence[dict[str, Any]], graphs: Sequence[tuple[int, _Runs]]) -> Iterator[tuple[int, _Runs]]:
    """Yield (index of a schedule, runs of its graph), from the last to the first."""
    left = len(schedules)
    for launches, runs in reversed(graphs):
        index = next((i for i in reversed(range(left)) if _launches(schedules[i]) == launches), None)
        if index is not None:
            yield index, runs
            left = index


def _launches(schedule: dict[str, Any]) -> int:
    return sum(map(len, schedule["orders"].values()))


def _name(schedules: Sequence[dict[str, Any]], index: int, chosen: Sequence[int]) -> str:
    phase = schedules[index]["phase"]
    same = [i for i in chosen if schedules[i]["phase"] == phase]
    return str(phase) if len(same) == 1 else f"{phase} {same.index(index) + 1}"


def _sum(times: Sequence[StepTimes]) -> StepTimes:
    return StepTimes(*map(sum, zip(*map(astuple, times), strict=True)))


def _mean(times: Sequence[StepTimes]) -> StepTimes:
    return StepTimes(*(time // len(times) for time in astuple(_sum(times))))
