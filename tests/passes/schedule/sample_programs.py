# SPDX-License-Identifier: Apache-2.0
"""Programs that the tests of the scheduler share."""

from __future__ import annotations

from dataclasses import replace

from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole


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
        dispatch = add(f"dispatch{layer}", [router], 1.0, role=TaskRole.LAUNCH, channel="ep")
        dispatched = add(f"dispatched{layer}", [], role=TaskRole.WAIT, launch=dispatch)
        experts = add(f"experts{layer}", [dispatched], 2.0)
        combine = add(f"combine{layer}", [experts], 1.0, role=TaskRole.LAUNCH, channel="ep")
        combined = add(f"combined{layer}", [], role=TaskRole.WAIT, launch=combine)
        partial = [*full, attention]
        full = [*partial, combined]
    add("head", full, 0.5)
    return Program(tuple(tasks))


def with_memory(tasks: tuple[Task, ...], sizes: list[int]) -> Program:
    """Each task makes a buffer of its size for those that need it; a wait uses what its launch makes."""
    users: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for need in (*task.needs, *([task.launch] if task.launch >= 0 else [])):
            users[need].append(index)
    buffers = tuple(Buffer(size, maker, tuple(users[maker])) for maker, size in enumerate(sizes))
    return Program(tasks, buffers)


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


def with_views(program: Program) -> Program:
    """Each compute task after one that takes no time, which gives it what it needs."""
    tasks: list[Task] = []
    made: list[int] = []
    for task in program.tasks:
        needs, launch = tuple(made[need] for need in task.needs), -1
        if task.role is TaskRole.COMPUTE:
            tasks.append(Task(f"view for {task.name}", needs))
            needs = (len(tasks) - 1,)
        elif task.role is TaskRole.WAIT:
            launch = made[task.launch]
        tasks.append(replace(task, needs=needs, launch=launch))
        made.append(len(tasks) - 1)
    return Program(tuple(tasks))
