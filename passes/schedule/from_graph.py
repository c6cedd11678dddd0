# SPDX-License-Identifier: Apache-2.0
"""Read a `Program` off an ATen graph, for the scheduler.

In:    a post-grad graph with fake values, and an `GraphEstimate` of what its nodes cost.
Out:   the program, and the node of each task. From `remember_order`: each node's place before it is scheduled.
Never: changes the graph, except for that entry in `meta`.

Any order that keeps a task's needs gives the same values. A task needs what its node reads; besides:
1. a write waits for every earlier reader and writer of that memory, and every later one waits for it; memory that a
   collective in flight reads or writes counts as read until its wait;
2. so an operator that Inductor may turn into an in-place one on such memory comes after that wait, or stays before the
   launch;
3. random operators and other side effects keep their order among themselves.
4. what came in flight was launched before all else: its launch is a task of its own, with the input for its node. Only
   the last one on a channel takes time;
5. a collective in one operator, which blocks, stays where it is among the others of its process group.
Memory: one buffer for all nodes that are views of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx

from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.residual.tags import terms_of
from farskip_compile.passes.schedule.collectives import launches_with_waits
from farskip_compile.passes.schedule.in_flight import arrivals, departs, has_landed
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole

PLACE = "farskip_place"
"""Key of a node's `meta`: its place in the graph before anything was scheduled."""


def remember_order(graph: fx.Graph) -> None:
    """Give each node its place, unless an earlier call has."""
    for place, node in enumerate(graph.nodes):
        node.meta.setdefault(PLACE, place)


class NetworkEstimate(Protocol):
    """What the adapters ask of a cost model. Must be a function of the node alone: equal on every rank."""

    def collective(self, node: fx.Node) -> float:
        """Seconds of a launch on its channel."""

    def arrival(self, node: fx.Node) -> float:
        """Seconds on its channel that what a wait is for, which came in flight, still takes."""

    def link(self, node: fx.Node) -> str:
        """The wires that a launch uses, by a name that is the same on all ranks."""

    def interference(self, node: fx.Node) -> float:
        """Fraction by which compute takes longer while a launch is in flight."""


class GraphEstimate(NetworkEstimate, Protocol):
    """The same for a graph."""

    def compute(self, node: fx.Node) -> float:
        """Seconds of a node on the compute stream."""

    def bytes(self, node: fx.Node) -> int:
        """Bytes of the value of a node, all its tensors."""


@dataclass
class GraphProgram:
    """A program and the graph nodes that it was read from."""

    program: Program
    nodes: list[fx.Node]
    """The node of each task."""
    made: list[fx.Node]
    """The first node of each buffer."""


def read_program(
    graph: fx.Graph,
    estimate: GraphEstimate,
    in_place: Callable[[fx.Node], tuple[fx.Node, ...]] = lambda node: (),
) -> GraphProgram:
    """Read the program of `graph`; `in_place`: the tensors that a later pass may let a node write to."""
    came = arrivals(graph)
    flying = dict.fromkeys(wait.all_input_nodes[0] for wait in came)
    nodes = [*flying, *(node for node in graph.nodes if node.op not in ("placeholder", "output"))]
    index = {node: i for i, node in enumerate(nodes)}
    waits_of = launches_with_waits(graph)
    launch_of = {wait: launch for launch, waits in waits_of.items() for wait in waits}
    needs: list[set[int]] = [{index[arg] for arg in node.all_input_nodes if arg in index} for node in nodes]
    for need in needs[len(flying) :]:
        need.update(() if need else range(len(flying)))  # 4.
    in_flight = {launch: [launch, *launch.all_input_nodes] for launch, waits in waits_of.items() if waits}
    _order_memory(nodes, needs, in_flight, launch_of)  # 1.
    _order_in_place(nodes, needs, in_flight, launch_of, in_place)  # 2.
    _order_side_effects(nodes, needs)  # 3.
    order_blocking(nodes, needs)  # 5.
    tasks = []
    for i, node in enumerate(nodes):
        required = tuple(sorted(needs[i]))
        if waits_of.get(node) or departs(node):
            tasks.append(launch_task(node, node.name, required, estimate))
        elif node in flying:
            wait = next(wait for wait in came if wait.all_input_nodes[0] is node)
            tasks.append(arrival_task(wait, node.name, came[wait][1], estimate))
        elif node in came:
            tasks.append(Task(node.name, required, 0.0, TaskRole.WAIT, launch=index[node.all_input_nodes[0]]))
        elif node in launch_of:
            tasks.append(Task(node.name, required, 0.0, TaskRole.WAIT, launch=index[launch_of[node]]))
        else:
            tasks.append(Task(node.name, required, estimate.compute(node)))
    made = _buffers(graph, index, waits_of, estimate)
    return GraphProgram(Program(tuple(tasks), tuple(made.values())), nodes, list(made))


def launch_task(node: fx.Node, name: str, needs: tuple[int, ...], estimate: NetworkEstimate) -> Task:
    """The task of the launch `node`."""
    return Task(
        name,
        needs,
        estimate.collective(node),
        TaskRole.LAUNCH,
        channel=comms.process_group(node),
        link=estimate.link(node),
        interference=estimate.interference(node),
        terms=terms_of(node),
        leaves=departs(node),
    )


def arrival_task(wait: fx.Node, name: str, channel: str, estimate: NetworkEstimate) -> Task:
    """The launch, in an earlier graph, of what `wait` is for."""
    return Task(
        name,
        (),
        0.0 if has_landed(wait) else estimate.arrival(wait),
        TaskRole.LAUNCH,
        channel=channel,
        link=estimate.link(wait),
        interference=estimate.interference(wait),
        terms=terms_of(wait),
        came=True,
    )


def _order_memory(
    nodes: list[fx.Node],
    needs: list[set[int]],
    in_flight: Mapping[fx.Node, list[fx.Node]],
    launch_of: Mapping[fx.Node, fx.Node],
) -> None:
    """Keep the order of each write and the reads around it; a wait reads what its collective reads and makes."""
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        written = _places(effects.mutated_args(node))
        touched = _places([*node.all_input_nodes, *in_flight.get(launch_of.get(node, node), ())])
        for place in touched | written:
            if place in writer:
                needs[i].add(writer[place])
            if place in written:
                needs[i].update(reader for reader in readers.pop(place, ()) if reader != i)
                writer[place] = i
            else:
                readers.setdefault(place, []).append(i)


def _order_in_place(
    nodes: list[fx.Node],
    needs: list[set[int]],
    in_flight: Mapping[fx.Node, list[fx.Node]],
    launch_of: Mapping[fx.Node, fx.Node],
    in_place: Callable[[fx.Node], tuple[fx.Node, ...]],
) -> None:
    """Keep operators that may become in-place ones out of the flight of a collective on the same memory."""
    landed: dict[int, list[int]] = {}
    may_write: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        for place in _places(in_place(node)):
            needs[i].update(landed.get(place, ()))
            may_write.setdefault(place, []).append(i)
        if node in in_flight:
            for place in _places(in_flight[node]):
                needs[i].update(writer for writer in may_write.get(place, ()) if writer != i)
        elif node in launch_of:
            for place in _places(in_flight[launch_of[node]]):
                landed.setdefault(place, []).append(i)


def _places(nodes: Iterable[fx.Node]) -> set[int]:
    """The pieces of memory that `nodes` are in."""
    return {place for place in map(effects.storage, nodes) if place is not None}


def _order_side_effects(nodes: list[fx.Node], needs: list[set[int]]) -> None:
    last: int | None = None
    for i, node in enumerate(nodes):
        if node.op == "get_attr" or comms.is_collective(node) or comms.is_wait(node):
            continue
        if effects.is_random(node) or node.is_impure():
            if last is not None:
                needs[i].add(last)
            last = i


def order_blocking(calls: Sequence[fx.Node | None], needs: Sequence[set[int]]) -> None:
    """Keep what blocks in its place among the collectives of its group; None: no collective."""
    last: dict[str, int] = {}
    last_blocking: dict[str, int] = {}
    for i, node in enumerate(calls):
        if node is None or not ((blocks := comms.is_blocking(node)) or comms.is_collective(node)):
            continue
        group = comms.process_group(node)
        earlier = (last if blocks else last_blocking).get(group)
        needs[i].update([] if earlier is None else [earlier])
        last[group] = i
        if blocks:
            last_blocking[group] = i


def _buffers(
    graph: fx.Graph, index: Mapping[fx.Node, int], waits_of: Mapping[fx.Node, list[fx.Node]], estimate: GraphEstimate
) -> dict[fx.Node, Buffer]:
    """One buffer for each piece of memory, by its first node."""
    families: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        value = ops.fake(node)
        parts = value if isinstance(value, list | tuple) else [value]
        if node.op == "output" or not any(isinstance(part, torch.Tensor) for part in parts):
            continue
        place = effects.storage(node)
        families.setdefault(place if place is not None else -1 - len(families), []).append(node)
    outputs = set(next(iter(reversed(graph.nodes))).all_input_nodes)
    found = {}
    for members in families.values():
        users = dict.fromkeys(user for member in members for user in member.users if user in index)
        for user in [*users, members[0]]:  # a collective in flight holds what it reads and makes
            users.update(dict.fromkeys(waits_of.get(user, ())))
        first = members[0]
        kept = any(member in outputs for member in members) or (first.op == "placeholder" and not _freeable(first))
        size = max(estimate.bytes(member) for member in members)
        found[first] = Buffer(size, index.get(first, -1), tuple(index[user] for user in users), kept)
    return found


def input_bytes(graph: fx.Graph, estimate: GraphEstimate) -> int:
    """Bytes of the inputs that a compiled graph may not free: parameters, caches, what the caller holds."""
    return sum(estimate.bytes(node) for node in graph.find_nodes(op="placeholder") if not _freeable(node))


def _freeable(placeholder: fx.Node) -> bool:
    """Whether the compiled graph may free an input: what the forward graph saved for the backward graph."""
    return not placeholder.name.startswith(("primals", "arg", "fwd_rng_state", "bwd_rng_state", "tangents"))
