"""A post-grad graph as it was before scheduling: what `verify.schedule` holds against it afterwards.

Contract: `remember` is called before anything is moved or changed. It looks at the graph only, changes nothing, and
shares nothing with `from_graph`, which decides what may move. Nodes go by name: pins replace them, and keep names.
Linear in the graph, and in what uses memory that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.operators import parameters
from farskip_compile.passes.graph import effects, ops
from farskip_compile.verify.values import SIZES

InPlace = Callable[[fx.Node], tuple[int, ...]]
"""Positions of the arguments that a later pass may let a node write to."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A node as it was."""

    node: fx.Node
    target: object
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass
class Before:
    """What scheduling must keep of a graph."""

    kept: dict[str, Kept] = field(default_factory=dict)
    first_wait: dict[str, str] = field(default_factory=dict)
    """Of a wait for what is waited for already: the wait that comes first."""
    launches: dict[str, str] = field(default_factory=dict)
    """Process group of each launch, in order."""
    waits: dict[str, list[str]] = field(default_factory=dict)
    """The waits for the results of each launch."""
    past_wait: list[tuple[str, str]] = field(default_factory=list)
    """A node that reads what a launch returns, not what its wait does, but behind a wait; and that wait."""
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
    over: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each node that may write: launches that are in flight on that memory where it stands."""

    def flights(self, order: Iterable[str]) -> dict[str, frozenset[str]]:
        """The same, if the nodes run in another order."""
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
    in_place: bool
    effect: bool
    product: bool


def remember(graph: fx.Graph, in_place: InPlace = lambda node: ()) -> Before:
    """Take down what scheduling must keep of `graph`, a post-grad graph in the order in which it came."""
    before = Before()
    traits: dict[int, _Traits] = {}  # by identity, since an operator hashes itself in Python
    nodes = list(graph.nodes)
    made: dict[fx.Node, str] = {}  # results of launches, also one of many
    first: dict[fx.Node, fx.Node] = {}
    writes: dict[fx.Node, list[fx.Node]] = {}
    could_write: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        before.kept[node.name] = Kept(node, node.target, node.args, node.kwargs)
        if node.op != "call_function":
            continue
        kind = traits.get(id(node.target))
        if kind is None:
            kind = traits[id(node.target)] = _traits(node, in_place)
        if kind.may_write and (targets := effects.mutated_args(node)):
            writes[node] = targets
        if kind.in_place:
            could_write[node] = _nodes_among(node.args[position] for position in in_place(node))
        if kind.effect:
            before.effects.append(node.name)
        if kind.product and ops.tensor(node) is not None:
            before.products.add(node.name)
        if kind.launch:
            before.launches[node.name] = ops.process_group(node)
            made[node] = node.name
        elif kind.wait:
            result = node.all_input_nodes[0]
            known = result if ops.is_wait(result) else first.setdefault(result, node)
            if known is not node:
                before.first_wait[node.name] = before.first_wait.get(known.name, known.name)
            elif result in made:
                before.waits.setdefault(made[result], []).append(node.name)
        elif node.args and node.args[0] in made and ops.op_name(node) == "getitem":
            made[node] = made[node.args[0]]
    if made:
        _remember_readers(before, nodes, made)
    if made or writes:
        _remember_memory(before, nodes, made, writes, could_write)
    return before


def _traits(node: fx.Node, in_place: InPlace) -> _Traits:
    target = node.target
    launch, wait = ops.is_collective(node), ops.is_wait(node)
    return _Traits(
        launch,
        wait,
        not isinstance(target, OpOverload) or any(_is_written(one) for one in parameters(target)),
        bool(in_place(node)),
        not (launch or wait) and (effects.is_random(node) or node.is_impure()),
        ops.is_matmul(node) or ops.is_attention(node),
    )


def _is_written(parameter: Any) -> bool:
    return parameter.alias_info is not None and bool(parameter.alias_info.is_write)


def _nodes_among(values: Iterable[object]) -> list[fx.Node]:
    """The nodes among arguments, in lists too."""
    found: list[fx.Node] = []
    for value in values:
        if isinstance(value, fx.Node):
            found.append(value)
        elif isinstance(value, tuple | list):
            found.extend(_nodes_among(value))
    return found


def _remember_readers(before: Before, nodes: Sequence[fx.Node], made: Mapping[fx.Node, str]) -> None:
    place = {node.name: index for index, node in enumerate(nodes)}
    for result, launch in made.items():
        for user in result.users:
            if user not in made and not ops.is_wait(user) and ops.op_name(user) not in SIZES:
                behind = (wait for wait in before.waits.get(launch, ()) if place[wait] < place[user.name])
                before.past_wait.extend((user.name, wait) for wait in behind)


def _remember_memory(
    before: Before,
    nodes: Sequence[fx.Node],
    made: Mapping[fx.Node, str],
    writes: Mapping[fx.Node, list[fx.Node]],
    could_write: Mapping[fx.Node, list[fx.Node]],
) -> None:
    # what a superfluous wait returns is what the first one returns
    same = {
        effects.storage(before.kept[name].node): effects.storage(before.kept[known].node)
        for name, known in before.first_wait.items()
    }

    def places(some: Iterable[fx.Node]) -> set[int]:
        found = (effects.storage(node) for node in some)
        return {place for place in (same.get(one, one) for one in found) if place is not None}

    flying: dict[str, set[int]] = {}
    for result, launch in made.items():
        flying.setdefault(launch, places(before.kept[launch].node.all_input_nodes)).update(places([result]))
    before.in_flight = {launch: frozenset(held) for launch, held in flying.items() if launch in before.waits}
    written = {node.name: places(targets) for node, targets in writes.items()}
    could = {node.name: places(targets) for node, targets in could_write.items()}
    before.may_write = {
        name: frozenset(written.get(name, set()) | could.get(name, set())) for name in {**written, **could}
    }
    before.over = before.flights(node.name for node in nodes)
    concerned = set().union(*written.values())
    if not concerned:
        return
    launch_of = {wait: launch for launch, waits in before.waits.items() for wait in waits}
    place_of: dict[fx.Node, int] = {}
    for node in nodes:
        storage = effects.storage(node)
        place = same.get(storage, storage)
        if place in concerned:
            place_of[node] = place
    for node in nodes:
        if node.op != "call_function":
            continue
        touched = {place_of[arg] for arg in node.all_input_nodes if arg in place_of}
        if node.name in launch_of:
            touched |= before.in_flight[launch_of[node.name]] & concerned
        own = written.get(node.name, set())
        before.accesses.extend((node.name, place, place in own) for place in sorted(touched | own))
