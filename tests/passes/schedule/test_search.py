"""The list scheduler on random programs and on small ones with a known best order."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.passes.schedule import search
from farskip_compile.passes.schedule.least_memory import least_memory
from farskip_compile.passes.schedule.memory import bytes_in_flight
from farskip_compile.passes.schedule.program import Buffer, Program, Role, Task, check_order
from farskip_compile.passes.schedule.search import Limits, list_schedule
from farskip_compile.passes.schedule.timeline import simulate
from farskip_compile.testing.strategies import consistent, programs

LIMITS = st.builds(Limits, st.sampled_from([0.0, 0.05, 0.5, 10.0]), st.sampled_from([0, 100, 1_000_000]))


@settings(max_examples=300, deadline=None)
@given(programs().map(consistent), LIMITS, st.none() | st.integers(0, 3000), st.booleans())
def test_every_promise_of_a_schedule(program: Program, limits: Limits, baseline_peak: int | None, large: bool) -> None:
    modest = least_memory(program)
    with mock.patch.object(search, "LARGE", 0 if large else search.LARGE):
        schedule = list_schedule(program, limits, baseline_peak, [modest])
    check_order(program, schedule.order)  # a permutation; every dependence; no wait before its launch
    for channel in "abc":
        launches = [i for i in schedule.order if program.tasks[i].channel == channel]
        assert launches == sorted(launches)
    assert schedule.after == simulate(program, schedule.order)
    peak = schedule.before.peak_bytes
    baseline = peak if baseline_peak is None else min(baseline_peak, peak)
    limit = baseline * (1 + limits.memory_increase)
    least = simulate(program, modest)
    flight = max(limits.in_flight_bytes, schedule.before.peak_in_flight_bytes)
    back = schedule.before
    if peak > limit and least.peak_bytes < peak and least.peak_in_flight_bytes <= flight:
        back = least  # what is fallen back on
    assert schedule.after.makespan <= back.makespan
    assert schedule.after.peak_bytes <= max(limit, back.peak_bytes)
    assert schedule.after.peak_in_flight_bytes <= flight


@settings(max_examples=200, deadline=None)
@given(programs(most=7).map(consistent))
def test_within_reach_of_the_best_order(program: Program) -> None:
    """List scheduling is within twice the best of all orders that keep the order of launches on each channel."""
    best = min(
        simulate(program, order).makespan
        for order in itertools.permutations(range(len(program.tasks)))
        if _valid(program, order)
    )
    assert list_schedule(program, Limits(memory_increase=1e9)).after.makespan <= 2 * best + 1e-9


def _valid(program: Program, order: tuple[int, ...]) -> bool:
    try:
        check_order(program, order)
    except ValueError:
        return False
    channels = {task.channel for task in program.tasks if task.role is Role.LAUNCH}
    launches = [[i for i in order if program.tasks[i].channel == channel] for channel in channels]
    return all(one == sorted(one) for one in launches)


@settings(max_examples=200, deadline=None)
@given(programs())
def test_the_machine_model_adds_up(program: Program) -> None:
    timeline = simulate(program, range(len(program.tasks)))
    assert timeline.makespan == pytest.approx(timeline.compute + timeline.exposed)
    assert timeline.exposed <= timeline.communication + 1e-9
    assert timeline.makespan >= max(timeline.compute, 0.0)


def test_gaps_are_filled_where_memory_is_scarce() -> None:
    program = with_memory(
        far_skip_layers(2, rewired=True).tasks, [30, 0, 10, 30, 30, 10, 30, 10, 1, 1, 10, 1, 0, 10, 1, 10, 0]
    )
    modest = least_memory(program)
    found = list_schedule(program, Limits(memory_increase=0.1), 1, [modest])
    with mock.patch.object(search, "fill_gaps", lambda program, order, *others: order):
        without = list_schedule(program, Limits(memory_increase=0.1), 1, [modest])
    assert found.after.makespan < without.after.makespan - 0.9
    assert found.after.peak_bytes <= without.after.peak_bytes


def test_what_is_fallen_back_on_keeps_the_limit_of_what_is_in_flight() -> None:
    """The other order would hold less, with both collectives in flight."""
    tasks = (
        Task("send", (), 1.0, Role.LAUNCH, channel="ep"),
        Task("wait", (0,), role=Role.WAIT, launch=0),
        Task("large"),
        Task("end", (2,)),
        Task("send more", (), 1.0, Role.LAUNCH, channel="ep"),
        Task("wait more", (4,), role=Role.WAIT, launch=4),
    )
    program = Program(tasks, (Buffer(10, 0, (1,)), Buffer(60, 2, (3,)), Buffer(10, 4, (5,)), Buffer(1, 1, (2, 4))))
    both = (0, 4, 1, 5, 2, 3)
    for flight, allowed in ((100, True), (10, False)):
        with mock.patch.object(search, "live_bytes", lambda program, order: [1 if order == both else 100]):
            back = search._to_fall_back_on(program, simulate(program, range(6)), Limits(0.0, flight), 1, [both])
        assert (back == both) is allowed


def far_skip_layers(layers: int, *, rewired: bool) -> Program:
    """Attention in two parts and routed experts (2 s), with dispatch and combine (1 s, as each part of attention)."""
    tasks: list[Task] = []

    def add(name: str, needs: list[int], seconds: float = 0.0, **more: object) -> int:
        tasks.append(Task(name, tuple(sorted(set(needs))), seconds, **more))  # type: ignore[arg-type]
        return len(tasks) - 1

    full: list[int] = []
    partial: list[int] = []
    for layer in range(layers):
        projections = add(f"projections{layer}", partial if rewired else full, 1.0)
        attention = add(f"attention{layer}", [projections], 1.0)
        router = add(f"router{layer}", full if rewired else [*full, attention], 0.1)
        dispatch = add(f"dispatch{layer}", [router], 1.0, role=Role.LAUNCH, channel="ep")
        dispatched = add(f"dispatched{layer}", [], role=Role.WAIT, launch=dispatch)
        experts = add(f"experts{layer}", [dispatched], 2.0)
        combine = add(f"combine{layer}", [experts], 1.0, role=Role.LAUNCH, channel="ep")
        combined = add(f"combined{layer}", [], role=Role.WAIT, launch=combine)
        partial = [*full, attention]
        full = [*partial, combined]
    add("head", full, 0.5)
    return Program(tuple(tasks))


def test_the_standard_form_can_hide_nothing_and_the_farskip_form_everything() -> None:
    standard = list_schedule(far_skip_layers(4, rewired=False))
    assert standard.after.exposed == standard.before.exposed == 8.0
    rewired = list_schedule(far_skip_layers(4, rewired=True))
    assert rewired.before.exposed == 8.0
    assert rewired.after.exposed == pytest.approx(0.0)  # eight collectives under eight halves of attention


def test_weight_gradients_fill_a_wait() -> None:
    program = Program(
        (
            Task("input gradient", (), 1.0),
            Task("launch", (0,), 2.0, Role.LAUNCH, "ep"),
            Task("wait", (), 0.0, Role.WAIT, launch=1),
            Task("next gradient", (2,), 1.0),
            Task("weight gradient", (0,), 2.0),
        )
    )
    schedule = list_schedule(program)
    assert [program.tasks[i].name for i in schedule.order] == [
        "input gradient", "launch", "weight gradient", "wait", "next gradient",
    ]  # fmt: skip
    assert schedule.after.exposed == 0.0


def test_standing_still_pays_where_a_long_task_would_delay_the_next_launch() -> None:
    """A core attention (10 s) is ready 1 s before a combine ends, for which the next dispatch (8 s) waits."""
    program = Program(
        (
            Task("combine", (), 3.0, Role.LAUNCH, "ep"),
            Task("projections", (), 1.0),
            Task("combined", (), 0.0, Role.WAIT, launch=0),
            Task("router", (2,), 0.1),
            Task("dispatch", (3,), 8.0, Role.LAUNCH, "ep"),
            Task("dispatched", (), 0.0, Role.WAIT, launch=4),
            Task("experts", (5,), 4.0),
            Task("attention", (1,), 10.0),
            Task("shared", (), 1.0),
            Task("end", (6, 7, 8), 0.0),
        )
    )
    schedule = list_schedule(program)
    assert [program.tasks[index].name for index in schedule.order] == [
        "combine", "projections", "shared", "combined", "router", "dispatch", "attention", "dispatched",
        "experts", "end",
    ]  # fmt: skip
    assert schedule.after.exposed == pytest.approx(1.0)  # without standing still 8 s of the dispatch are exposed


def test_what_leads_to_a_launch_goes_before_a_longer_path_of_compute() -> None:
    """By the critical path alone, attention (6 s) is more urgent than the router, and the last combine is exposed."""
    program = Program(
        (
            Task("attention", (), 3.0),
            Task("output", (0,), 3.0),
            Task("router", (), 0.1),
            Task("dispatch", (2,), 2.0, Role.LAUNCH, "ep"),
            Task("dispatched", (), 0.0, Role.WAIT, launch=3),
            Task("experts", (4,), 1.0),
            Task("combine", (5,), 2.0, Role.LAUNCH, "ep"),
            Task("combined", (), 0.0, Role.WAIT, launch=6),
            Task("norm", (1,), 1.0),
            Task("head", (7, 8), 0.5),
        )
    )
    schedule = list_schedule(program)
    names = [program.tasks[index].name for index in schedule.order]
    assert names[:3] == ["router", "dispatch", "attention"]
    assert schedule.after.exposed == 0.0


def test_a_wait_that_can_be_taken_later_is() -> None:
    """By the estimate either of two tasks is enough; the second one costs nothing before the wait."""
    tasks = (
        Task("launch", (), 1.0, Role.LAUNCH, "ep"),
        Task("one", (), 1.0),
        Task("wait", (), 0.0, Role.WAIT, launch=0),
        Task("reader", (2,), 1.0),
        Task("two", (), 0.5),
        Task("end", (3, 4), 0.0),
    )
    order = list_schedule(Program(tasks)).order
    assert order.index(4) < order.index(2)


def test_compute_beside_a_collective_may_take_a_quarter_less_than_estimated() -> None:
    """By the estimate, and on a network a fifth slower, one and two are enough, and three may come after the wait."""
    tasks = (
        Task("launch", (), 1.0, Role.LAUNCH, "ep"),
        Task("one", (), 1.0),
        Task("two", (), 0.25),
        Task("wait", (), 0.0, Role.WAIT, launch=0),
        Task("reader", (3,), 1.0),
        Task("three", (), 0.25),
        Task("end", (4, 5), 0.0),
    )
    schedule = list_schedule(Program(tasks))
    assert schedule.after.exposed == 0.0
    assert schedule.order.index(5) < schedule.order.index(3)


def test_compute_is_slower_while_something_is_in_flight() -> None:
    """4 s of work, of which the first 2.5 s on the clock do only 2 s of it; a second network slows it further."""
    tasks = (
        Task("launch", (), 2.5, Role.LAUNCH, "ep", interference=0.25),
        Task("work", (), 4.0),
        Task("wait", (), 0.0, Role.WAIT, launch=0),
    )
    timeline = simulate(Program(tasks), range(3))
    assert timeline.makespan == timeline.compute == 4.5
    assert timeline.exposed == 0.0
    within = Program((tasks[0], Task("work", (), 1.0)))  # done long before the collective is
    assert simulate(within, range(2)).compute == 1.25
    other = Task(
        "other", (), 1.0, Role.LAUNCH, "tp", interference=0.75
    )  # 1 s at half the speed, then 1.5 s at four fifths
    both = Program((tasks[0], other, Task("work", (), 4.0)))
    assert simulate(both, range(3)).compute == pytest.approx(1.0 + 1.5 + (4.0 - 0.5 - 1.2))


@pytest.mark.parametrize(("link", "seconds"), [("", 2.0), ("wire", 3.0)])
def test_groups_share_a_link(link: str, seconds: float) -> None:
    tasks = (
        Task("dispatch", (), 1.0, Role.LAUNCH, "ep", link=link),
        Task("all-reduce", (), 2.0, Role.LAUNCH, "tp", link=link),
    )
    assert simulate(Program(tasks), range(2)).makespan == seconds


def test_memory_forbids_what_time_would_gain() -> None:
    """Eight independent products would all fit under the collective, but each result stays alive."""
    work = [Task(f"work{i}", (), 1.0) for i in range(8)]
    use = [Task(f"use{i}", (2 + 2 * i,), 0.0) for i in range(8)]
    tasks = [Task("launch", (), 8.0, Role.LAUNCH, "ep"), Task("wait", (), 0.0, Role.WAIT, launch=0)]
    for w, u in zip(work, use, strict=True):
        tasks += [w, Task(u.name, (len(tasks), 1), 0.0)]
    buffers = tuple(Buffer(100, 2 + 2 * i, (3 + 2 * i,)) for i in range(8))
    program = Program(tuple(tasks), buffers)
    assert list_schedule(program, Limits(memory_increase=7.0)).after.exposed == 0.0
    tight = list_schedule(program, Limits(memory_increase=1.0))
    assert tight.after.exposed == pytest.approx(6.0)
    assert tight.after.peak_bytes == 200


def scarce_memory() -> Program:
    """With every task free to run early, this program breaks the limit by any heuristic: nothing is hidden."""
    tasks = far_skip_layers(4, rewired=True).tasks
    sizes = [
        0,
        0,
        0,
        1,
        0,
        1,
        1,
        30,
        0,
        30,
        0,
        30,
        0,
        10,
        10,
        30,
        1,
        30,
        10,
        30,
        1,
        0,
        0,
        1,
        10,
        1,
        10,
        10,
        30,
        0,
        30,
        0,
        0,
    ]
    return with_memory(tasks, sizes)


def with_memory(tasks: tuple[Task, ...], sizes: list[int]) -> Program:
    """Each task makes a buffer of its size for those that need it; a wait uses what its launch makes."""
    users: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for need in (*task.needs, *([task.launch] if task.launch >= 0 else [])):
            users[need].append(index)
    buffers = tuple(Buffer(size, maker, tuple(users[maker])) for maker, size in enumerate(sizes))
    return Program(tasks, buffers)


def test_windows_find_what_the_limit_on_memory_leaves() -> None:
    program = scarce_memory()
    assert list_schedule(program, Limits(0.05)).after.exposed <= 1.0  # with moves
    with mock.patch.object(search, "lower_peak", lambda program, order, limit: order):
        schedule = list_schedule(program, Limits(0.05))
    assert 0 < schedule.window < len(program.tasks)
    assert schedule.before.exposed == 8.0
    assert schedule.after.exposed == pytest.approx(1.0)


def test_a_bound_on_bytes_in_flight() -> None:
    """Two collectives fit, three do not."""
    tasks = [Task("start", (), 0.1)]
    for i in range(3):
        tasks.append(Task(f"launch{i}", (0,), 1.0, Role.LAUNCH, f"group{i}"))
        tasks.append(Task(f"wait{i}", (), 0.0, Role.WAIT, launch=1 + 2 * i))
    tasks.append(Task("work", (0,), 5.0))
    program = Program(tuple(tasks), tuple(Buffer(60, 1 + 2 * i, (2 + 2 * i,)) for i in range(3)))
    order = list_schedule(program, Limits(9.0, in_flight_bytes=120)).order
    assert max(bytes_in_flight(program, order)) == 120
    assert max(bytes_in_flight(program, list_schedule(program, Limits(9.0)).order)) == 180


def test_a_program_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="needs a task that is not before it"):
        Program((Task("a", (0,)),))
    with pytest.raises(ValueError, match="names no launch before it"):
        Program((Task("a"), Task("wait", (), 0.0, Role.WAIT, launch=0)))
    with pytest.raises(ValueError, match="comes before"):
        simulate(Program((Task("a"), Task("b", (0,)))), (1, 0))


SCRIPT = """
from tests.passes.schedule.test_search import far_skip_layers
from farskip_compile.passes.schedule.search import list_schedule
print(list_schedule(far_skip_layers(6, rewired=True)).order)
"""


@pytest.mark.parametrize(("seconds", "moves"), [(0.5, True), (0.002, False)])
def test_memory_is_not_given_for_next_to_nothing(seconds: float, moves: bool) -> None:
    """What could hide a part of the collective takes the place of what is sent, if it waits."""
    tasks = (
        Task("make"),
        Task("send", (0,), 1.0, Role.LAUNCH, channel="ep"),
        Task("wait", (1,), role=Role.WAIT, launch=1),
        Task("other", (), seconds),
        Task("last", (2, 3), 0.1),
    )
    buffers = (Buffer(1000, 0, (1, 2)), Buffer(1000, 3, (4,)))
    assert list_schedule(Program(tasks, buffers), Limits(memory_increase=10.0)).changed is moves
    assert list_schedule(Program(tasks), Limits(memory_increase=10.0)).changed


def with_views(program: Program) -> Program:
    """Each compute task after one that takes no time, which gives it what it needs."""
    tasks: list[Task] = []
    made: list[int] = []
    for task in program.tasks:
        needs, launch = tuple(made[need] for need in task.needs), -1
        if task.role is Role.COMPUTE:
            tasks.append(Task(f"view for {task.name}", needs))
            needs = (len(tasks) - 1,)
        elif task.role is Role.WAIT:
            launch = made[task.launch]
        tasks.append(replace(task, needs=needs, launch=launch))
        made.append(len(tasks) - 1)
    return Program(tuple(tasks))


def test_large_programs_need_few_orders_and_fare_no_worse() -> None:
    """A network too slow to be hidden, so that no order ends the search."""
    program = far_skip_layers(100, rewired=True)
    slow = [replace(t, seconds=3 * t.seconds) if t.role is Role.LAUNCH else t for t in program.tasks]
    program = with_views(replace(program, tasks=tuple(slow)))
    with (
        mock.patch.object(search, "LARGE", 0),
        mock.patch.object(search, "make_order", wraps=search.make_order) as make_order,
    ):
        found = list_schedule(program)
    assert make_order.call_count <= len(search.HEURISTICS)
    assert all(len(call.args[0].program.tasks) < 0.8 * len(program.tasks) for call in make_order.call_args_list)
    best = list_schedule(program)
    assert found.after.exposed > 0
    assert found.after.makespan <= 1.001 * best.after.makespan


def test_the_same_order_whatever_the_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={"PYTHONHASHSEED": "4711", "PYTHONPATH": "."},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(list_schedule(far_skip_layers(6, rewired=True)).order)
