# SPDX-License-Identifier: Apache-2.0
"""Cut the stream at the end of a part of a model: what the next part leaves out leaves this one apart.

In:    a Dynamo graph that is wired as asked, its stream and the names of its terms, its table, its `Boundary`.
Out:   the graph, which returns the parts of the stream: in place of the stream what is settled, and the rest as further
       outputs; and a `Departure`, which names the tail that makes the stream of them.
Never: changes a value; leaves a wait to the next graph that something here reads.

Algorithm:
1. The terms to leave apart are those that the connectivity may take from a sub-block that is still to come. If there
   are none, the stream is returned as it is.
2. The tail is what is late (`late`): the sums that hold these terms, and what follows the last waits for them. Its
   other inputs become parts; a parameter, such as that of a norm, is copied. What will be cut in pieces after
   differentiation leaves as these pieces (`in_pieces`).
3. Return the parts; erase what only the stream needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile._compat.collectives import WAIT
from farskip_compile._compat.fake import open_sizes
from farskip_compile.errors import PartialModelError
from farskip_compile.passes.boundary.arrive import Boundary
from farskip_compile.passes.boundary.in_pieces import LaterCount, in_pieces, whole
from farskip_compile.passes.boundary.late import Late, find_late
from farskip_compile.passes.boundary.tail import CrossingFlight, Departure, StreamTail, TailAutocast, intern
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.dead import erase_dead, used_nodes
from farskip_compile.passes.graph.hidden_collectives import collectives_of, group_of, hidden_launch
from farskip_compile.passes.graph.walk import bodies, fresh_like
from farskip_compile.passes.normalize.accumulations import added_alone
from farskip_compile.passes.residual.carried import KEY, CarriedValue
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.sums import images_of
from farskip_compile.passes.residual.table import Table, TermKind
from farskip_compile.passes.residual.tags import CUSTOM, DEPARTS, FLIGHT, LANDED
from farskip_compile.passes.rewire.request import Leaving, may_leave_out_later


def cut(
    graph: fx.Graph,
    stream: Stream,
    names: Sequence[str],
    table: Table,
    boundary: Boundary,
    leaving: Leaving,
    autocast: TailAutocast,
    pieces: LaterCount = whole,
) -> Departure:
    """Cut `graph` in place at the end of `stream`, whose terms have these names.

    `leaving`: what is asked of later parts. `pieces`: in how many an exchange with equal shares will be after
    differentiation, by its launch.

    Raises:
        PartialModelError: what the layer returns is not its residual stream.
    """
    (output,) = graph.find_nodes(op="output")
    returned = list(output.args[0])
    images = {place: images_of(returned[place], stream.below) for place in boundary.outputs}
    positions = tuple(place for place, path in images.items() if stream.root in path)
    if not positions:
        if not boundary.outputs:
            return Departure()  # the stack ends here
        raise PartialModelError(
            "a layer that is compiled by itself does not return its residual stream",
            way_out="leave it out of farskip_compile.regional(..., stack=...), or compile the whole model",
            where=user_calls.where(stream.root),
        )
    wanted = may_leave_out_later(table, leaving)  # 1
    apart = tuple(table.terms[index].name for index in wanted)
    if not apart:
        return Departure(positions)
    index_of = {name: index for index, name in enumerate(names)}
    late = find_late(stream, map(index_of.__getitem__, apart))
    facts = _facts(table, late, {index_of[name]: number for number, name in enumerate(apart)}, names)
    end, *scaled = images[positions[0]]  # such as the stream times a number, after the last sum
    late.nodes.update(node for node in (end, *scaled) if stream.root in images_of(node, stream.below))
    tail, parts = _Cut(graph, stream, late, facts, end, pieces).make(autocast)  # 2
    used = used_nodes(graph)
    base, *rest = (_own(graph, output, part) for part in parts)  # 3
    returned = [base if place in positions else value for place, value in enumerate(returned)]
    output.args = ((*returned, *rest), *output.args[1:])
    erase_dead(graph, used)
    stays = {names[index]: reason for index, reason in late.stays.items()}
    sizes = {place: found for place, part in enumerate(rest) if (found := open_sizes(ops.fake(part)))}
    return Departure(positions, tail.key, len(rest), tuple(wanted), stays, sizes)


def _facts(table: Table, late: Late, number: Mapping[int, int], names: Sequence[str]) -> dict[fx.Node, CarriedValue]:
    """What the tail says of the nodes where terms enter; `number`: place among those that leave, by index."""
    last = table.num_layers - 1
    found = {}
    for entry, held in late.entries.items():
        terms = [term for index in held if (term := table.term(names[index])) is not None]
        main = next((term for term in terms if term.kind is TermKind.ROUTED), terms[0])
        places = tuple(number[index] for index in held)
        found[entry] = CarriedValue(main.kind, places, last - main.layer, main.evidence)
    return found


@dataclass
class _Cut:
    """Step 2."""

    graph: fx.Graph
    stream: Stream
    late: Late
    facts: Mapping[fx.Node, CarriedValue]
    end: fx.Node
    """What is returned: the root, or a linear image of it."""
    how_many: LaterCount
    """Pieces, after differentiation."""
    tail: fx.Graph = field(default_factory=fx.Graph)
    twins: dict[fx.Node, Any] = field(default_factory=dict)
    parts: list[fx.Node] = field(default_factory=list)

    def make(self, autocast: TailAutocast) -> tuple[StreamTail, list[fx.Node]]:
        """The tail, and the nodes of this graph that are its parts, the base first."""
        late = [node for node in self.stream.flow.nodes if node in self.late.nodes and node.target is not added_alone]
        needed = dict.fromkeys(arg for node in late for arg in node.all_input_nodes if arg not in self.late.nodes)
        base = next(node for node in needed if 0 in self.stream.terms_of(node))
        (output,) = self.graph.find_nodes(op="output")
        pieces = {node: found for node in self.late.waits if (found := in_pieces(node, self.how_many))}
        cut = {node: found.cut(output) for node, found in pieces.items()}
        for node in dict.fromkeys([base, *needed]):
            for one in cut.get(node, [node]):
                self.parts.append(one)
                self._part(one, is_base=node is base)
        waits_of: dict[fx.Node, list[fx.Node]] = {}
        for node in needed:
            if node in self.late.waits:
                waits = waits_of[node] = [self._wait(node, one) for one in cut.get(node, [node])]
                self.twins[node] = pieces[node].join(self.tail, waits) if node in pieces else waits[0]
                self._say(node)
        self._say_what_has_landed(waits_of)
        for node in late:
            self._copy(node)
        self.tail.output(self.twins[self.end])
        value = ops.tensor(self.end)
        assert value is not None
        return intern(self.tail, autocast, value.dtype), self.parts

    def _part(self, node: fx.Node, *, is_base: bool) -> None:
        twin = self.twins[node] = self.tail.placeholder(f"part_{len(self.twins)}")
        if is_base:
            twin.meta[KEY] = CarriedValue(TermKind.EMBEDDING)
        elif node not in self.late.waits:
            self._say(node, part=True)

    def _wait(self, node: fx.Node, part: fx.Node) -> fx.Node:
        """`part`, which is what `node` waits for or a piece of it, comes in flight."""
        twin, (flight, launch) = self.twins[part], _flight(node)
        wait = self.tail.call_function(WAIT, (twin,))
        wait.meta[CUSTOM] = {FLIGHT: flight.to_text()}
        twin.meta[FLIGHT] = flight
        inside = (one for body in bodies(launch)[:1] for one in body.graph.nodes)
        for one in (
            (node,) if comms.is_wait(node) else (node, launch, *inside)
        ):  # of which differentiation makes the wait
            one.meta[CUSTOM] = {**one.meta.get(CUSTOM, {}), DEPARTS: flight.to_text()}
        return wait

    def _say_what_has_landed(self, waits_of: Mapping[fx.Node, Sequence[fx.Node]]) -> None:
        """Of the waits in the tail: something was computed since all but the last launch on a channel, such as the
        experts of the next piece."""
        place = {node: number for number, node in enumerate(self.graph.nodes)}
        launched = sorted(waits_of, key=lambda node: place[_flight(node)[1]])
        last = {_flight(node)[0].group: wait for node in launched for wait in waits_of[node]}
        for wait in (one for waits in waits_of.values() for one in waits):
            if wait not in last.values():
                wait.meta[CUSTOM] = {**wait.meta[CUSTOM], LANDED: "yes"}

    def _copy(self, node: fx.Node) -> None:
        twin = self.twins[node] = self.tail.node_copy(node, self.twins.__getitem__)
        twin.meta = {}
        self._say(node)

    def _say(self, node: fx.Node, *, part: bool = False) -> None:
        """That `node` is a term that leaves apart; what an accumulation adds is known of the accumulation. Other terms
        of the stream are said of a part alone, all of which they are."""
        mark = self.stream.flow.addends.get(node)
        known = self.facts.get(node) or (self.facts.get(mark) if mark is not None else None)
        if known is None and part and self.stream.terms_of(node):
            known = CarriedValue(TermKind.EMBEDDING, is_base=False)
        if known is not None:
            self.twins[node].meta[KEY] = known


def _flight(wait: fx.Node) -> tuple[CrossingFlight, fx.Node]:
    """What `wait` is for, and what launches it."""
    if (launch := hidden_launch(wait)) is not None:
        return CrossingFlight([*collectives_of(launch)][-1], group_of(launch)), launch
    (launch,) = wait.all_input_nodes
    if comms.is_collective(launch):
        return CrossingFlight(ops.op_name(launch).partition("::")[2], comms.process_group(launch)), launch
    text = launch.meta.get(CUSTOM, {}).get(FLIGHT) or launch.meta.get(FLIGHT, "")
    operator, _, group = str(text).partition(" ")
    return CrossingFlight(operator, group), launch


def _own(graph: fx.Graph, output: fx.Node, part: fx.Node) -> fx.Node:
    """`part`, or a copy of it if it belongs to the module."""
    if part.op != "get_attr" and not (part.op == "placeholder" and is_module_state(part)):
        return part
    with graph.inserting_before(output):
        copy = graph.call_method("clone", (part,))
    value = ops.tensor(part)
    assert value is not None
    copy.meta = {"example_value": fresh_like(value)}
    return copy


def crosses(node: fx.Node) -> str | None:
    """What is in flight between two graphs, if `node` is the wait for it, in either of them."""
    notes = node.meta.get(CUSTOM, {})
    return notes.get(DEPARTS) or notes.get(FLIGHT)
