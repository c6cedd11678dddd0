# SPDX-License-Identifier: Apache-2.0
"""AMD's placement: what the published text says of the order, read off predictions; and any program at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from torch import fx

from farskip_compile.measure.simulate.results import PhaseResult
from farskip_compile.passes.schedule.program import Program, TaskRole, check_order
from farskip_compile.passes.schedule.published import published_order
from farskip_compile.testing.strategies.programs import programs
from tests.simulate.tiny import predicted

pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("predictions")  # one worker, so that each model is predicted once


@given(programs())
def test_any_program_is_ordered(program: Program) -> None:
    graph = fx.Graph()
    nodes = [graph.placeholder(f"n{index}") for index in range(len(program.tasks))]
    for backward in (False, True):
        order = published_order(program, nodes, backward=backward)
        check_order(program, order)
        launched = [i for i in order if program.tasks[i].role is TaskRole.LAUNCH]
        for channel in "abc":
            own = [i for i in launched if program.tasks[i].channel == channel]
            assert own == sorted(own), "a process group keeps its order"


def events(phase: PhaseResult) -> list[str]:
    """Kernels, launches and waits, in order, by what they are of: `dispatch 2`, `wait dispatch 2`, `attention 2`."""
    tasks, names, seen = phase.program.tasks, {}, dict[str, int]()
    for index, task in enumerate(tasks):
        if task.role is TaskRole.LAUNCH:
            term = "+".join(task.terms)
            seen[term] = seen.get(term, 0) + 1
            names[index] = f"{term}#{seen[term]}" if "all_to_all" in task.name else term
    found = []
    for index in phase.order:
        task = tasks[index]
        if task.role is TaskRole.LAUNCH:
            found.append(names[index])
        elif task.role is TaskRole.WAIT:
            found.append(f"wait {names[task.launch]}")
        elif "attention" in task.name:
            found.append("attention")
        elif "grouped_mm" in task.name:
            found.append("experts")
    return found


def test_inference_by_all_reduce() -> None:
    """Section 4.2: attention and shared experts are reduced under the routed experts, those under the next attention.
    The first layer is dense, and the last one keeps one reduction."""
    (phase,) = predicted().published.phases
    assert events(phase) == [
        "attention", "a0", "m0", "wait a0", "wait m0",
        "attention", "a1+s1", "experts", "experts", "r1", "wait a1+s1",
        "attention", "wait r1", "a2+s2", "experts", "experts", "r2", "wait a2+s2",
        "attention", "a3", "wait r2", "experts", "experts", "r3+s3", "wait a3", "wait r3+s3",
    ]  # fmt: skip


def test_inference_by_all_gather() -> None:
    """Data-parallel attention: tokens are gathered under the shared experts, results scattered under the next
    attention. Each time the rows go first, then the choices and their weights."""
    (phase,) = predicted(tp=1, exchange="all-gather").published.phases
    first = ["attention", "attention", "r1", "r1", "r1", "wait r1", "wait r1", "wait r1", "experts", "experts", "r1"]
    found = events(phase)
    assert sorted(found[: len(first)]) == sorted(first)
    following = found[len(first) :]
    assert following[: following.index("wait r1") + 1] == ["attention", "wait r1"]
    names = [phase.program.tasks[index].name for index in phase.order]
    launch, wait = (next(i for i, name in enumerate(names) if word in name) for word in ("all_gather", "_grouped_mm"))
    beside = [name for name in names[launch:wait] if name.split("_")[0] == "mm"]
    assert len(beside) == 4, "the router's product and three of the shared experts"
    gathers = [flight for flight in phase.flights if "all_gather" in flight.launch]
    assert len(gathers) == 9
    for flight in gathers:
        assert flight.compute > 0, flight
        assert flight.exposed == 0, flight
    *scatters, last = [flight for flight in phase.flights if "reduce_scatter" in flight.launch]
    assert len(scatters) == 2
    assert all(flight.compute > flight.seconds and flight.exposed == 0 for flight in scatters)
    assert last.exposed > 0.9 * last.seconds, "nothing is left to do under it"


def test_training_by_all_to_all() -> None:
    """Section 4.1 and appendix C: the attention's kernel runs under the dispatch, and in backward under the transposed
    combine."""
    found = predicted(tp=1, phase="train", prompt=64)
    forward, backward = found.published.phases
    order = events(forward)
    for layer in (1, 2, 3):
        counts, dispatch, combine = (order.index(f"r{layer}#{number}") for number in (1, 2, 3))
        inside = order[dispatch : order.index(f"wait r{layer}#2")]
        assert counts < dispatch < combine
        assert inside.count("attention") == 1, (layer, inside)
        told = order.index(f"wait r{layer}#1")
        assert told < order.index("attention", dispatch), "how many rows will come is known before the kernel starts"
        assert order[order.index(f"wait r{layer}#2") + 1 : combine] == ["experts", "experts"]
    order = events(backward)
    for layer in (3, 2, 1):
        combine, dispatch = (order.index(f"r{layer}#{number}") for number in (1, 2))
        assert order[combine : order.index(f"wait r{layer}#1")].count("attention") == 1, layer
        assert "experts" in order[order.index(f"wait r{layer}#1") : dispatch]


def test_every_exchange_of_rows_is_hidden() -> None:
    """As written there is nothing under one. By AMD's placement there is more than it takes, in backward too."""
    found = predicted(tp=1, phase="train", prompt=64)
    for written, published in zip(found.written.phases, found.published.phases, strict=True):
        assert {flight.compute for flight in written.flights} == {0.0}
        longest = max(flight.seconds for flight in published.flights)
        rows = [flight for flight in published.flights if flight.seconds == longest]
        assert len(rows) == 6, "dispatch and combine of three layers"
        assert min(flight.compute for flight in rows) > 2 * longest
        assert {flight.exposed for flight in rows} == {0.0}
