# SPDX-License-Identifier: Apache-2.0
"""Proof of the scheduling: what Inductor goes on with is the graph that came in, in an order that may replace the old.

Contract: looks at graphs only (never at the program or the schedule that the order was made by), and changes nothing.
Linear.

What must hold:
1. The nodes are those from before, with their operators, constants and inputs. What this package adds is one
   announcement, and pins around waits; what it removes are waits for what another wait has waited for; and all-to-alls
   may have moved to another process group, if that was asked for.
2. Whatever a node reads comes before it; so does a wait before a reader of the launch's result that came after it.
3. Memory: each reader comes between the same writes, and writes stay in order. A wait reads what its collective reads
   and makes, since that is in flight until then.
4. Nothing that writes, or that Inductor may let write, has moved into the flight of a collective on the same memory.
5. The launches of each process group, random numbers and other side effects, and inputs are in the order they had.
6. A wait is pinned to each product between its launch and it, so that it runs after them, and to nothing else.
7. The announcement comes before all else, and says what the graph launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest

import torch
from torch import fx

from farskip_compile._compat import inductor
from farskip_compile._compat.distributed import is_group
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.records.announcement import Announcement, announcement
from farskip_compile.verify.before import Kept, ScheduleSnapshot


def verify_order(
    graph: fx.Graph, before: ScheduleSnapshot, regroup: Mapping[str, str] | None = None, pinned: bool = True
) -> None:
    """Check that `graph`, after all passes, is the one that `before` was made from, in another order, and what this
    package adds: pins if `pinned`, and all-to-alls on the group that `regroup` names for theirs.

    Raises:
        VerificationError: naming the first node that is not as it must be, and why.
    """
    check = _Check(graph, before, regroup or {})
    check.law_1_nodes()
    check.law_2_inputs_come_first()
    check.law_3_memory()
    check.law_4_flights()
    check.law_5_order()
    check.law_6_pins(wanted=pinned)
    check.law_7_announcement()


class _Check:
    def __init__(self, graph: fx.Graph, before: ScheduleSnapshot, regroup: Mapping[str, str]) -> None:
        self.before = before
        self.regroup = regroup
        self.nodes = list(graph.nodes)
        self.place = {node.name: place for place, node in enumerate(self.nodes)}
        self.pins: dict[str, list[str]] = {}
        """For each node with pins, what it is pinned to."""

    def law_1_nodes(self) -> None:
        added = []
        bodies: set[fx.Node] = set()  # what a pin calls
        for node in self.nodes:
            if (old := self.before.kept.get(node.name)) is None:
                added.append(node)
            else:
                bodies.update(self._compare_call(node, old))
        for name, old in self.before.kept.items():
            if name not in self.place and name not in self.before.first_wait:
                raise _error(old.node, "it is no longer in the graph")
        for node in added:
            if node not in bodies and node.target is not announcement():
                raise _error(node, "it was not in the graph before")

    def _compare_call(self, node: fx.Node, old: Kept) -> list[fx.Node]:
        """Compare a node, without its pins; returns the body of these."""
        target: object = node.target
        args: Sequence[object] = node.args
        kwargs: Mapping[str, object] = node.kwargs
        bodies: list[fx.Node] = []
        if target is not old.target and (pinned := inductor.pinned(node)) is not None:
            pins, body, target, args, kwargs = pinned
            self.pins[node.name] = [pin.name for pin in pins]
            bodies.append(body)
        if target is not old.target:
            raise _error(node, f"it was a call of {_name(old.target)} and is one of {_name(target)}")
        if (args is not old.args and not self._same(args, old.args)) or (
            kwargs is not old.kwargs and not self._same(kwargs, old.kwargs)
        ):
            self._refuse_inputs(node, args, kwargs, old)
        return bodies

    def _same(self, new: object, old: object) -> bool:
        """Equal arguments, by name of the nodes in them."""
        if isinstance(old, fx.Node):
            name = self.before.first_wait.get(old.name, old.name)
            return isinstance(new, fx.Node) and new.name == name
        if isinstance(old, tuple | list):
            return isinstance(new, tuple | list) and len(new) == len(old) and all(map(self._same, new, old))
        if isinstance(old, Mapping):
            if not isinstance(new, Mapping) or new.keys() != old.keys():
                return False
            return all(self._same(new[key], old[key]) for key in old)
        if new is old:
            return True
        symbolic = isinstance(old, torch.SymInt | torch.SymFloat | torch.SymBool)  # comparing would install a guard
        return type(new) is type(old) and not symbolic and bool(new == old)

    def _refuse_inputs(self, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object], old: Kept) -> None:
        """Raise, unless nothing but the process group of an all-to-all differs, as it should."""
        group = self.before.launches.get(node.name)
        if group is not None:
            wanted = self._channel(node, group)
            if comms.process_group(node) != wanted:
                raise _error(node, f"it should be on process group {wanted!r}, not {comms.process_group(node)!r}")
            rest = ([arg for arg in args if arg != wanted], [arg for arg in old.args if arg != group])
            if wanted != group and self._same(*rest):
                return
        was, now = (_flat((some, more)) for some, more in ((old.args, old.kwargs), (args, kwargs)))
        pairs = (pair for pair in zip_longest(was, now, fillvalue="nothing") if pair[0] != pair[1])
        first, second = next(pairs, ("", ""))
        raise _error(node, f"it had the argument {first}, and now it has {second}")

    def _channel(self, launch: fx.Node, group: str) -> str:
        """The process group that a launch must be on, which was on `group`."""
        moves = comms.is_all_to_all(launch) and comms.is_functional(launch)
        return self.regroup.get(group, group) if moves else group

    def law_2_inputs_come_first(self) -> None:
        for place, node in enumerate(self.nodes):
            for arg in node.all_input_nodes:
                if self.place.get(arg.name, place) >= place:
                    raise _error(node, f"it comes before {arg.name!r}, which it reads")
        for reader, wait in self.before.past_wait:
            if self.place[reader] < self.place[wait]:
                raise _error(self.nodes[self.place[reader]], f"it reads what {wait!r} waits for, and comes before it")

    def law_3_memory(self) -> None:
        last_write: dict[int, str] = {}
        readers: dict[int, list[str]] = {}
        for name, memory, writes in self.before.accesses:
            here = self.place.get(name)
            if here is None:  # a wait for what is waited for already
                continue
            earlier = [last_write[memory]] if memory in last_write else []
            for other in [*earlier, *readers.get(memory, ())] if writes else earlier:
                if self.place[other] > here:
                    reason = f"it comes before {other!r}, and one of them writes what the other uses or has in flight"
                    raise _error(self.nodes[here], reason)
            if writes:
                last_write[memory], readers[memory] = name, []
            else:
                readers.setdefault(memory, []).append(name)

    def law_4_flights(self) -> None:
        for name, flights in self.before.flights(node.name for node in self.nodes).items():
            if entered := sorted(flights - self.before.flights_before[name]):
                reason = f"it may write to memory that {entered[0]!r} has in flight there"
                raise _error(self.nodes[self.place[name]], reason)

    def law_5_order(self) -> None:
        last: dict[str, str] = {}
        for name, group in self.before.launches.items():
            node = self.nodes[self.place[name]]
            channel = self._channel(node, group)
            earlier = last.get(channel)
            if earlier is not None and self.place[earlier] > self.place[name]:
                raise _error(node, f"it is launched before {earlier!r}, on the same process group")
            last[channel] = name
        inputs = [name for name, old in self.before.kept.items() if old.node.op == "placeholder"]
        for names, what in ((self.before.effects, "have side effects"), (inputs, "are inputs")):
            for earlier, name in pairwise(names):
                if self.place[earlier] > self.place[name]:
                    raise _error(self.nodes[self.place[name]], f"it comes before {earlier!r}, and both {what}")

    def law_6_pins(self, *, wanted: bool) -> None:
        count = [0]  # products before each place
        for node in self.nodes:
            count.append(count[-1] + (wanted and node.name in self.before.products))
        flights = [*self.before.waits.items(), *(("", [wait]) for wait in self.before.arrivals if wait in self.place)]
        for launch, waits in flights:
            for wait in waits:
                first, last = self.place.get(launch, -1), self.place[wait]
                pins = self.pins.pop(wait, [])
                hiding = [pin for pin in pins if pin in self.before.products and first < self.place[pin] < last]
                if len(pins) != len(hiding) or len(set(pins)) != count[last] - count[max(first, 0)]:
                    raise _error(
                        self.nodes[last],
                        f"it should be pinned to the {count[last] - count[max(first, 0)]} products between "
                        f"{launch or 'the beginning'} and it, and is pinned to {', '.join(pins) or 'none'}",
                    )
        for name, pins in self.pins.items():
            raise _error(self.nodes[self.place[name]], f"it is not a wait for a launch, and is pinned to {pins}")

    def law_7_announcement(self) -> None:
        if not self.before.launches:
            return
        calls = [node for node in self.nodes if node.op not in ("placeholder", "get_attr", "output")]
        found = [node for node in calls if node.target is announcement()]
        if len(found) != 1 or found[0] is not calls[0]:
            raise _error(calls[0], f"the graph has {len(found)} announcements, and should begin with its only one")
        orders = Announcement.from_text(str(found[0].args[0])).report.orders
        left = {group: iter(order) for group, order in orders.items()}
        for node in calls:
            group = self.before.launches.get(node.name)
            if group and (is_group(group) or not comms.is_blocking(node)):
                group = comms.process_group(node)
                if not _announces(next(left.get(group, iter(())), ""), node):
                    raise _error(node, f"it is not announced as the next launch of {group!r}")
        for group, more in left.items():
            if (launch := next(more, None)) is not None:
                raise _error(found[0], f"it announces {launch!r} on {group!r}, which is not in the graph")


def _announces(text: str, launch: fx.Node) -> bool:
    """Whether a line of an announcement can be about a launch: its operator first, then its constants and its type."""
    known = {str(arg) for arg in launch.args} | {
        str(value.dtype).removeprefix("torch.")
        for arg in launch.all_input_nodes
        if (value := ops.tensor(arg)) is not None
    }
    name, *rest = text.split() or [""]
    return name == comms.called_name(launch).split("::")[1] and known.issuperset(rest)


def _flat(value: object) -> list[str]:
    """Arguments as text, one after another."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for one in value for text in _flat(one)] if isinstance(value, tuple | list) else [str(value)]


def _name(target: object) -> str:
    return str(getattr(target, "__name__", target))


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"scheduling has broken the graph at {node.name!r} ({ops.op_name(node) or node.op}): {reason}",
        way_out="please report this: it is a defect of farskip-compile. `schedule=False` avoids it",
        where=user_calls.where(node),
    )
