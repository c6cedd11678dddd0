# SPDX-License-Identifier: Apache-2.0
"""A post-grad graph as it was before scheduling, for `verify.schedule` to compare with afterwards.

Contract: `remember` is called before anything is moved or changed. It looks at the graph only, changes nothing, and
shares nothing with `from_graph`, which decides what may move. Nodes are known by name: pins replace nodes, and keep
names. Linear in the graph, and in what uses memory that is written.

The laws named below are those of `verify.schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.tensors import parameters
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.schedule.in_flight import arrivals

InPlace = Callable[[fx.Node], tuple[fx.Node, ...]]
"""The tensors that a later pass may let a node write to."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A node as it was."""

    node: fx.Node
    target: object
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass
class ScheduleSnapshot:
    """What scheduling must keep of a graph."""

    kept: dict[str, Kept] = field(default_factory=dict)
    first_wait: dict[str, str] = field(default_factory=dict)
    """For each wait for what is waited for already: the wait that comes first."""
    launches: dict[str, str] = field(default_factory=dict)
    """Process group of each launch, in order."""
    waits: dict[str, list[str]] = field(default_factory=dict)
    """The waits for the results of each launch."""
    arrivals: list[str] = field(default_factory=list)
    """Waits for what came in flight."""
    past_wait: list[tuple[str, str]] = field(default_factory=list)
    """A node that reads what a launch returns, not what its wait does, but after a wait; and that wait."""
    effects: list[str] = field(default_factory=list)
    """Nodes with side effects, such as random numbers, in order."""
    products: set[str] = field(default_factory=set)
    """Products of matrices and attentions: what hides collectives."""
    accesses: list[tuple[str, int, bool]] = field(default_factory=list)
    """Who uses memory that is written, which, and whether it writes; in order."""
    may_write: dict[str, frozenset[int]] = field(default_factory=dict)
    """Memory that a node writes, or that Inductor may let it write."""
    in_flight: dict[str, frozenset[int]] = field(default_factory=dict)
    """Memory that a launch reads and makes: until the last wait."""
    flights_before: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each node that may write: launches that are in flight on that memory when it runs."""

    def flights(self, order: Iterable[str]) -> dict[str, frozenset[str]]:
        """`flights_before`, if the nodes run in another order."""
        launch_of = {wait: launch for launch, waits in self.waits.items() for wait in waits}
        left = {launch: len(waits) for launch, waits in self.waits.items()}
        flying: dict[int, dict[str, None]] = {}
        found = {}
        for name in order:
            if name in self.may_write:
                found[name] = frozenset(launch for place in self.may_write[name] for launch in flying.get(place, ()))
            if name in self.in_flight:
                for place in self.in_flight[name]:
                    flying.setdefault(place, {})[name] = None
            elif (launch := launch_of.get(name)) is not None:
                left[launch] -= 1
                if not left[launch]:
                    for place in self.in_flight[launch]:
                        flying.get(place, {}).pop(launch, None)
        return found


@dataclass(slots=True)
class _Traits:
    """What an operator does, the same for all nodes that call it."""

    launch: bool
    wait: bool
    may_write: bool
    effect: bool
    product: bool


Calls = Sequence[tuple[fx.Node, _Traits]]
Memories = Callable[[Iterable[fx.Node]], set[int]]
"""The memory of some nodes."""


def remember(graph: fx.Graph, in_place: InPlace = lambda node: ()) -> ScheduleSnapshot:
    """Record what scheduling must keep of `graph`, a post-grad graph in the order in which it came."""
    before = ScheduleSnapshot()
    nodes = list(graph.nodes)
    calls = _calls(nodes)
    before.kept = {node.name: Kept(node, node.target, node.args, node.kwargs) for node in nodes}
    before.effects = [node.name for node, does in calls if does.effect]
    before.products = {one.name for node, does in calls if does.product and (one := _first_result(node)) is not None}
    made = _keep_collectives(before, calls)
    before.arrivals = [wait.name for wait in arrivals(graph)]
    writes = {node: found for node, does in calls if does.may_write and (found := effects.mutated_args(node))}
    if made:
        _keep_late_readers(before, nodes, made)
    if made or writes:
        memories = _memories(before)
        written = {node.name: memories(targets) for node, targets in writes.items()}
        _keep_flights(before, made, memories)
        _keep_writers(before, calls, in_place, memories, written)
        _keep_accesses(before, nodes, memories, written)
    return before


def _calls(nodes: Iterable[fx.Node]) -> Calls:
    traits: dict[tuple[int, int], _Traits] = {}  # by identity, since an operator hashes itself in Python
    calls = [node for node in nodes if node.op == "call_function"]
    keys = [(id(node.target), id(comms.called(node))) for node in calls]
    for node, key in zip(calls, keys, strict=True):
        if key not in traits:
            traits[key] = _traits(node)
    return [(node, traits[key]) for node, key in zip(calls, keys, strict=True)]


def _traits(node: fx.Node) -> _Traits:
    target = node.target
    launch, wait = comms.is_collective(node) or comms.is_blocking(node), comms.is_wait(node)
    written = [parameter.alias_info for parameter in parameters(target)] if isinstance(target, OpOverload) else None
    return _Traits(
        launch,
        wait,
        written is None or any(alias is not None and alias.is_write for alias in written),
        not (launch or wait) and (effects.is_random(node) or node.is_impure()),
        ops.is_matmul(node) or ops.is_attention(node),
    )


def _first_result(product: fx.Node) -> fx.Node | None:
    """Law 6: what a wait can be pinned to, a tensor; of several results the first that is read. None: none is."""
    if ops.tensor(product) is not None:
        return product
    read = {str(user.args[1]): user for user in product.users if ops.op_name(user) == "getitem"}
    return next((read[key] for key in sorted(read) if ops.tensor(read[key]) is not None), None)


def _keep_collectives(before: ScheduleSnapshot, calls: Calls) -> dict[fx.Node, str]:
    """Laws 1, 5 and 6: launches and waits; returns the results of launches, also one of many, with their launch."""
    made: dict[fx.Node, str] = {}
    first: dict[fx.Node, fx.Node] = {}
    for node, does in calls:
        if does.launch:
            before.launches[node.name] = comms.process_group(node)
            made[node] = node.name
        elif does.wait:
            result = node.all_input_nodes[0]
            known = result if comms.is_wait(result) else first.setdefault(result, node)
            if known is not node:
                before.first_wait[node.name] = before.first_wait.get(known.name, known.name)
            elif result in made:
                before.waits.setdefault(made[result], []).append(node.name)
        elif node.args and node.args[0] in made and ops.op_name(node) == "getitem":
            made[node] = made[node.args[0]]  # type: ignore[index]
    return made


def _keep_late_readers(before: ScheduleSnapshot, nodes: Sequence[fx.Node], made: Mapping[fx.Node, str]) -> None:
    """Law 2, for what reads the result of a launch."""
    place = {node.name: index for index, node in enumerate(nodes)}
    for result, launch in made.items():
        for user in result.users:
            if user not in made and not comms.is_wait(user) and ops.op_name(user) not in ops.SIZES:
                earlier = (wait for wait in before.waits.get(launch, ()) if place[wait] < place[user.name])
                before.past_wait.extend((user.name, wait) for wait in earlier)


def _memories(before: ScheduleSnapshot) -> Memories:
    # what a superfluous wait returns is what the first one returns
    same = {
        effects.storage(before.kept[name].node): effects.storage(before.kept[known].node)
        for name, known in before.first_wait.items()
    }

    def memories(nodes: Iterable[fx.Node]) -> set[int]:
        found = (effects.storage(node) for node in nodes)
        return {memory for memory in (same.get(one, one) for one in found) if memory is not None}

    return memories


def _keep_flights(before: ScheduleSnapshot, made: Mapping[fx.Node, str], memories: Memories) -> None:
    """Laws 3 and 4: what launches have in flight."""
    flying: dict[str, set[int]] = {}
    for result, launch in made.items():
        held = flying.setdefault(launch, memories(before.kept[launch].node.all_input_nodes))
        held.update(memories([result]))
    before.in_flight = {launch: frozenset(held) for launch, held in flying.items() if launch in before.waits}


def _keep_writers(
    before: ScheduleSnapshot, calls: Calls, in_place: InPlace, memories: Memories, written: Mapping[str, set[int]]
) -> None:
    """Law 4: what may write to memory, and what is in flight there."""
    could_write = {node.name: memories(found) for node, _ in calls if (found := in_place(node))}
    before.may_write = {
        name: frozenset(written.get(name, set()) | could_write.get(name, set())) for name in {**written, **could_write}
    }
    before.flights_before = before.flights(before.kept)


def _keep_accesses(
    before: ScheduleSnapshot, nodes: Sequence[fx.Node], memories: Memories, written: Mapping[str, set[int]]
) -> None:
    """Law 3: who uses memory that is written. A wait uses what its launch has in flight."""
    concerned: set[int] = set().union(*written.values())
    if not concerned:
        return
    launch_of = {wait: launch for launch, waits in before.waits.items() for wait in waits}
    memory_of = {node: memory for node in nodes if (memory := memories([node]) & concerned)}
    for node in nodes:
        if node.op != "call_function":
            continue
        touched: set[int] = set().union(*(memory_of[arg] for arg in node.all_input_nodes if arg in memory_of))
        if node.name in launch_of:
            touched |= before.in_flight[launch_of[node.name]] & concerned
        own = written.get(node.name, set())
        before.accesses.extend((node.name, memory, memory in own) for memory in sorted(touched | own))
