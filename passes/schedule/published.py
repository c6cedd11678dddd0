# SPDX-License-Identifier: Apache-2.0
"""AMD's placement of launches and waits, as an order of the same program: where our scheduler begins.

In:    the program of an ATen graph that was rewired to `full`, and its nodes.
Out:   an order of its tasks, which keeps every dependence and the order of the launches on each channel.
Never: judges it: `search` decides whether it is kept. In a graph without terms it is the original order, except
       for launches, which are issued early, and waits, which are taken late.

The published orders are those of the engines' hand-written layers (arXiv 2511.11505, sections 4.1 and 4.2, appendix C,
and its code). Within layer k, with the attention split at its kernel into a front (norm, projections, rotary embedding)
and a back (kernel, output projection):

    forward, all-to-all    front of a_k | x_k, norm, router, permutation -> dispatch k | back of a_k | routed experts ->
                           combine k | shared experts, n of layer k + 1
    forward, all-reduce    all of a_k | x_k, norm, shared experts -> all-reduce of a_k and s_k | routed experts ->
                           all-reduce of r_k
    forward, all-gather    all of a_k | x_k, norm -> gather k | shared experts | routed experts -> reduce-scatter of r_k
    backward, all-to-all   combine k transposed -> shared experts, back of a_k | routed experts -> dispatch k transposed
                           -> front of a_k | router, norm of x_k

A launch is issued as soon as its input is there, and a wait is taken right before the first task that needs it.

Algorithm, linear but for a heap:
1. For each task, find what it follows within its own term: the attention's kernel, exchanges of rows, a reduction. The
   terms that it computes are written on its node (`tags`).
2. Each compute task gets the place (layer, step) of the piece that it belongs to.
3. A launch gets the place of the last task that it needs. A wait gets that of the first task that needs it, as does
   what follows a combine or a reduction, and what belongs to no term.
4. Take the tasks in the order of their places, and of the program within one, each after all that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.residual.tags import terms_of
from farskip_compile.passes.schedule.program import Program, TaskRole, needs_of, order_by_key

LayerStep = tuple[int, int]
"""(layer, step); layers count down in backward."""

ALL_TO_ALL = {"front": 0, "dispatched": 1, "back": 2, "experts": 3, "rest": 4}
ALL_GATHER = {"front": 0, "back": 0, "dispatched": 1, "rest": 2, "experts": 3}
ALL_REDUCE = {"front": 0, "back": 0, "rest": 1, "dispatched": 2, "experts": 2}
BACKWARD = {"dispatched": 0, "rest": 1, "back": 1, "experts": 2, "front": 3, "combined": 4}
"""Steps of the pieces of a layer, see `_piece`."""

ISSUE_ORDER = {TaskRole.LAUNCH: 0, TaskRole.COMPUTE: 1, TaskRole.WAIT: 2}
"""Within a place."""
LAST: LayerStep = (1 << 30, 0)


def published_order(program: Program, nodes: Sequence[fx.Node], *, backward: bool) -> tuple[int, ...]:
    """The order in which AMD's engines would run `program`, whose tasks are these `nodes` of an ATen graph."""
    steps = BACKWARD if backward else _steps(nodes)
    places: list[LayerStep | None] = [None] * len(nodes)
    pick = max if backward else min
    upstream = _upstream(nodes, program)  # 1.
    for index, node in enumerate(nodes):  # 2.
        pieces = {term: _piece(term[0], upstream[index], backward=backward) for term in terms_of(node)}
        found = [
            (-int(term[1:]) if backward else int(term[1:]), steps[piece])
            for term, piece in pieces.items()
            if term[1:].isdigit() and piece in steps
        ]
        if len(found) == len(pieces) > 0 and program.tasks[index].role is TaskRole.COMPUTE:
            places[index] = pick(found)
    keys = list(zip(_filled(program, places), _issue_order(program), strict=True))  # 3.
    return tuple(order_by_key(keys, needs_of(program)))  # 4.


def _steps(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """The steps of a forward graph, by how its tokens get to their experts."""
    if any(map(comms.is_all_to_all, nodes)):
        return ALL_TO_ALL
    return ALL_GATHER if any(comms.is_collective(node) and _moves_rows(node) for node in nodes) else ALL_REDUCE


def _moves_rows(launch: fx.Node) -> bool:
    """Whether a launch takes tokens to experts or back: an all-to-all, or a gather or scatter of routed experts."""
    name, routed = ops.op_name(launch), any(term.startswith("r") for term in terms_of(launch))
    return comms.is_all_to_all(launch) or (routed and ("all_gather" in name or "reduce_scatter" in name))


def _piece(kind: str, upstream: _Upstream, *, backward: bool) -> str:
    """The piece of a layer that a task is in, by the kind of its term and what precedes it.

    Attention: `front` or `back`. Routed experts: `dispatched`, what leads to the first exchange of rows; `experts`,
    between the two; `combined`, after both. Shared experts and dense feed-forwards: `rest`. What follows a reduction
    belongs to its reader: `reduced`.
    """
    if upstream.reduced:
        return "reduced"
    if kind == "a":
        front = upstream.kernel and not upstream.is_kernel if backward else not upstream.kernel
        return "front" if front else "back"
    if kind == "r":
        return ("dispatched", "experts", "combined")[min(upstream.exchanges, 2)]
    return "rest"


@dataclass(frozen=True)
class _Upstream:
    """What precedes a task among those that compute its own term."""

    kernel: bool = False
    """The attention's kernel; true of the kernel itself."""
    is_kernel: bool = False
    exchanges: int = 0
    """Exchanges of rows, one after another."""
    reduced: bool = False
    """A reduction over the ranks."""


def _upstream(nodes: Sequence[fx.Node], program: Program) -> list[_Upstream]:
    found: list[_Upstream] = []
    terms = [set(terms_of(node)) for node in nodes]
    for index, node in enumerate(nodes):
        task = program.tasks[index]
        before = [found[need] for need in task.needs if not terms[index].isdisjoint(terms[need])]
        launch = nodes[task.launch] if task.role is TaskRole.WAIT else None
        moves = launch is not None and _moves_rows(launch)
        # an all-to-all of integers sends the number of rows, before the rows
        counts = launch is not None and comms.is_all_to_all(launch) and not ops.is_floating(node)
        reduces = launch is not None and not moves and comms.is_linear_collective(launch)
        found.append(
            _Upstream(
                kernel=ops.is_attention(node) or any(one.kernel for one in before),
                is_kernel=ops.is_attention(node),
                exchanges=max((one.exchanges for one in before), default=0) + (moves and not counts),
                reduced=any(one.reduced for one in before) or reduces,
            )
        )
    return found


def _issue_order(program: Program) -> list[int]:
    """Within a place: launches go first, with what costs nothing and leads to them, waits last."""
    issue = [ISSUE_ORDER[task.role] for task in program.tasks]
    for index in range(len(issue) - 1, -1, -1):
        if issue[index] == ISSUE_ORDER[TaskRole.LAUNCH]:
            for need in program.tasks[index].needs:
                if program.tasks[need].role is TaskRole.COMPUTE and not program.tasks[need].seconds:
                    issue[need] = issue[index]
    return issue


def _filled(program: Program, places: Sequence[LayerStep | None]) -> list[LayerStep]:
    """Places of all tasks: a launch has that of the last task it needs, others without one that of their first user."""
    tasks = program.tasks
    first = [LAST] * len(tasks)
    filled: list[LayerStep] = [LAST] * len(tasks)
    for index in range(len(tasks) - 1, -1, -1):
        place = places[index]
        filled[index] = first[index] if place is None else place
        for need in tasks[index].needs:
            first[need] = min(first[need], filled[index])
    for index, task in enumerate(tasks):
        if task.role is TaskRole.LAUNCH:
            filled[index] = max((filled[need] for need in task.needs), default=filled[index])
    return filled
