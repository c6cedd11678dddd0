"""AMD's placement of launches and waits, as an order of the same program: what our scheduler begins with.

In:    the program of an ATen graph that was rewired to `full`, and its nodes.
Out:   an order of its tasks, which keeps every dependence and the order of the launches on each channel.
Never: judges it: whether it is kept, `search` decides. In a graph without terms it is the original order, but
       for launches, which are issued early, and waits.

Published are the orders of the engines' hand-written layers (arXiv 2511.11505, sections 4.1 and 4.2, appendix C, and
the code beside it). Within layer k, with the attention split at its kernel into a front (norm, projections, rotary
embedding) and a back (kernel, output projection):

    forward, all-to-all    front of a_k | x_k, norm, router, permutation -> dispatch k | back of a_k | routed experts ->
                           combine k | shared experts, n of layer k + 1
    forward, all-reduce    all of a_k | x_k, norm, shared experts -> all-reduce of a_k and s_k | routed experts ->
                           all-reduce of r_k
    forward, all-gather    all of a_k | x_k, norm -> gather k | shared experts | routed experts -> reduce-scatter of r_k
    backward, all-to-all   combine k transposed -> shared experts, back of a_k | routed experts -> dispatch k transposed
                           -> front of a_k | router, norm of x_k

A launch is issued as soon as its input is there, and a wait stands right in front of the first task that needs it.

Algorithm: each task gets the place (layer, step) of the piece that it belongs to; what terms it computes is written on
its node (`tags`). A launch has the place of the last task that it needs. A wait has that of the first task that
needs it, and so has what stands behind a combine or a reduction, and what belongs to no term. Tasks are then taken in
the order of their places, and of the program within one, each after all that it needs: linear but for a heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.tags import terms_of
from farskip_compile.passes.schedule.key_order import order_by_key
from farskip_compile.passes.schedule.program import Program, Role, needs_of

Place = tuple[int, int]
"""(layer, step); layers count down in backward."""

ALL_TO_ALL = {"front": 0, "dispatched": 1, "back": 2, "experts": 3, "rest": 4}
ALL_GATHER = {"front": 0, "back": 0, "dispatched": 1, "rest": 2, "experts": 3}
ALL_REDUCE = {"front": 0, "back": 0, "rest": 1, "dispatched": 2, "experts": 2}
BACKWARD = {"dispatched": 0, "rest": 1, "back": 1, "experts": 2, "front": 3, "combined": 4}
"""Steps of the pieces of a layer, see `_piece`."""

TURN = {Role.LAUNCH: 0, Role.COMPUTE: 1, Role.WAIT: 2}
"""Within a place."""
LAST: Place = (1 << 30, 0)


def published_order(program: Program, nodes: Sequence[fx.Node], *, backward: bool) -> tuple[int, ...]:
    """The order in which AMD's engines would run `program`.

    Args:
        program: of an ATen graph.
        nodes: the node of each task.
        backward: whether the graph is a backward one.
    """
    steps = BACKWARD if backward else _steps(nodes)
    places: list[Place | None] = [None] * len(nodes)
    pick = max if backward else min
    behind = _behind(nodes, program)
    for index, node in enumerate(nodes):
        pieces = {term: _piece(term[0], behind[index], backward=backward) for term in terms_of(node)}
        found = [
            (-int(term[1:]) if backward else int(term[1:]), steps[piece])
            for term, piece in pieces.items()
            if term[1:].isdigit() and piece in steps
        ]
        if len(found) == len(pieces) > 0 and program.tasks[index].role is Role.COMPUTE:
            places[index] = pick(found)
    keys = list(zip(_filled(program, places), _turns(program), strict=True))
    return tuple(order_by_key(keys, needs_of(program)))


def _steps(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Of a forward graph, by how its tokens get to their experts."""
    if any(map(ops.is_all_to_all, nodes)):
        return ALL_TO_ALL
    return ALL_GATHER if any(ops.is_collective(node) and _moves_rows(node) for node in nodes) else ALL_REDUCE


def _moves_rows(launch: fx.Node) -> bool:
    """Whether a launch takes tokens to experts or back: an all-to-all; of routed experts also a gather or a scatter."""
    name = ops.op_name(launch)
    if ops.is_all_to_all(launch):
        return True
    routed = any(term.startswith("r") for term in terms_of(launch))
    return routed and ("all_gather" in name or "reduce_scatter" in name)


def _piece(kind: str, behind: _Behind, *, backward: bool) -> str:
    """The piece of a layer that a task is in, by the kind of its term and what it is behind.

    Of the attention: `front` or `back`. Of the routed experts: `dispatched`, what leads to the first exchange of rows;
    `experts`, between the two; `combined`, behind both. All else: `rest`, shared experts or a dense feed-forward. What
    is behind a reduction belongs to who reads it: `reduced`.
    """
    if behind.reduced:
        return "reduced"
    if kind == "a":
        front = behind.kernel and not behind.is_kernel if backward else not behind.kernel
        return "front" if front else "back"
    if kind == "r":
        return ("dispatched", "experts", "combined")[min(behind.exchanges, 2)]
    return "rest"


@dataclass(frozen=True)
class _Behind:
    """What a task is behind, of what computes its own term."""

    kernel: bool = False
    """The attention's kernel; true of the kernel itself."""
    is_kernel: bool = False
    exchanges: int = 0
    """Exchanges of rows, in a row."""
    reduced: bool = False
    """A reduction over the ranks."""


def _behind(nodes: Sequence[fx.Node], program: Program) -> list[_Behind]:
    found: list[_Behind] = []
    for index, node in enumerate(nodes):
        terms, task = set(terms_of(node)), program.tasks[index]
        before = [found[need] for need in task.needs if not terms.isdisjoint(terms_of(nodes[need]))]
        launch = nodes[task.launch] if task.role is Role.WAIT else None
        moves = launch is not None and _moves_rows(launch)
        # an all-to-all of whole numbers tells how many rows will come, before they do
        tells = launch is not None and ops.is_all_to_all(launch) and not ops.is_floating(node)
        reduces = launch is not None and not moves and ops.is_linear_collective(launch)
        found.append(
            _Behind(
                kernel=ops.is_attention(node) or any(one.kernel for one in before),
                is_kernel=ops.is_attention(node),
                exchanges=max((one.exchanges for one in before), default=0) + (moves and not tells),
                reduced=any(one.reduced for one in before) or reduces,
            )
        )
    return found


def _turns(program: Program) -> list[int]:
    """Within a place: launches go first, with what costs nothing and leads to them, waits last."""
    turns = [TURN[task.role] for task in program.tasks]
    for index in range(len(turns) - 1, -1, -1):
        if turns[index] == TURN[Role.LAUNCH]:
            for need in program.tasks[index].needs:
                if program.tasks[need].role is Role.COMPUTE and not program.tasks[need].seconds:
                    turns[need] = turns[index]
    return turns


def _filled(program: Program, places: Sequence[Place | None]) -> list[Place]:
    """Places of all tasks: a launch has that of the last task it needs, others without one that of their first user."""
    tasks = program.tasks
    first = [LAST] * len(tasks)
    filled: list[Place] = [LAST] * len(tasks)
    for index in range(len(tasks) - 1, -1, -1):
        place = places[index]
        filled[index] = first[index] if place is None else place
        for need in tasks[index].needs:
            first[need] = min(first[need], filled[index])
    for index, task in enumerate(tasks):
        if task.role is Role.LAUNCH:
            filled[index] = max((filled[need] for need in task.needs), default=filled[index])
    return filled
