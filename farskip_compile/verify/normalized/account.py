# SPDX-License-Identifier: Apache-2.0
"""The account of one Dynamo graph: what it returns, what it leaves in memory, and what it does besides, as numbers.

Contract: `Account.run` goes through the nodes once, in their order, and changes nothing. Two graphs whose accounts were
made with the same `Numbers` compute the same, to the bit and in their gradients, if their ledgers are equal. Linear.

Each value has a number: of its operator and of the numbers that it reads, at the time at which it reads them. These are
taken for equal, and nothing else:
1. An operator that writes in place, and its twin whose result is written, cast to the type of the memory. Not where
   gradients differ (a write without gradients keeps those of the old value), or autocast casts what the twin is given.
2. A tensor in another shape, in the order that it had; a copy; a cast to the type that it has; one out of a list.
3. `copy_` of a tensor of the same shape, and a cast; `x[indices] = y`, and `index_put`; a `put_sum`, and the calls that
   it means.
4. `rsub(a, b)` and `b - a`; operands of a sum by keyword and by position.
5. All chunks of a tensor concatenated along another dimension, and unflatten, movedim, flatten.
6. A checkpoint and its body; a stream that comes in as parts, and the sum that its tail makes of them.

Memory is shared where Dynamo's fake tensors share it. In a second graph, of which the fake tensors of new nodes are
claims, a node that was in the first one gives a view of the operand that it gave a view of there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import split_checkpoint_kwargs
from farskip_compile.passes.boundary.markers import is_arrival, is_departure
from farskip_compile.passes.boundary.tail import tail_of
from farskip_compile.passes.graph import ops
from farskip_compile.verify.normalized.forms import in_plain_words, noted
from farskip_compile.verify.normalized.memory import Numbers, TensorMemory, View, allocate, narrow, write
from farskip_compile.verify.normalized.numbering import Numbering
from farskip_compile.verify.normalized.puts import written_out
from farskip_compile.verify.normalized.sharing import Shares, Sharing
from farskip_compile.verify.normalized.twins import CheckedAutocast
from farskip_compile.verify.normalized.values import OpaqueValue, leaves, mapped, with_fake_values

CHECKS = ("_check", "_assert", "assert", "sym_constrain")
"""The beginnings of names of operators that raise or do nothing: later calls compute what they did before."""


@dataclass
class Ledger:
    """The effects and results of a graph, as numbers."""

    returned: list[Hashable] = field(default_factory=list)
    """Each output: its number, and whose memory it is in."""
    left: dict[Hashable, int] = field(default_factory=dict)
    """The final content of the memory of each graph input and attribute."""
    acts: list[tuple[int, str]] = field(default_factory=list)
    """Acts besides computing and writing, in order: a number, and the name of the node."""
    values: dict[str, Hashable] = field(default_factory=dict)
    """The number of each node."""
    unordered: tuple[str, str] | None = None
    """The first node that reads memory after a write although no edge says so, and that write."""


class Account:
    """Goes through one graph.

    Args:
        numbers: shared by the accounts that are compared.
        sharing: which results are views; filled by the account of the first graph, read by that of the second.
        autocast: what the graph will run under.
        after: of the second graph, for each node the writes that it is known to come after although no edge says so.
        keep: keep the number of each node.
    """

    def __init__(
        self,
        numbers: Numbers,
        sharing: Sharing,
        autocast: CheckedAutocast,
        after: Mapping[fx.Node, Sequence[fx.Node]] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.numbers, self.sharing, self.keep = numbers, sharing, keep
        self.after = dict(after) if after is not None else None
        self.ledger = Ledger()
        self.numbering = Numbering(numbers, autocast)
        self.draws = 0
        self.outside: dict[object, TensorMemory] = {}

    def run(self, nodes: Iterable[Any], module: Any) -> Ledger:
        """Account for a whole graph: its nodes, or what was recorded of them."""
        mine: dict[int, Hashable] = {}
        for one in leaves(self._walk(nodes, module, {})):
            whose: Hashable = None
            if isinstance(one, View):
                whose = one.memory.outside or mine.setdefault(id(one.memory), len(mine))
            self.ledger.returned.append((self.numbering.key(one), whose))
        for memory in self.outside.values():
            self.ledger.left[memory.outside] = memory.holds.number
        return self.ledger

    def _walk(self, nodes: Iterable[Any], module: Any, values: dict[Any, Any], *, own: bool = True) -> Any:
        """Account for the nodes of a graph, or of a body; return the values that it returns.

        Args:
            nodes: the nodes, in order.
            module: where attributes are.
            values: the value of each node; those of the placeholders of a body are there.
            own: whether the fake values are Dynamo's.
        """
        for record in nodes:
            node = getattr(record, "node", record)
            if record.op == "output":
                returned = mapped(record.args[0], values)
                self._check_order([one for one in leaves(returned) if isinstance(one, View)], node)
                return returned
            if node in values:
                continue
            if record.op == "placeholder":
                value: Any = self._from_outside(("input", str(record.target)), ops.fake(record))
            elif record.op == "get_attr":
                value = self._attribute(record, module)
            else:
                value = self._call(node, record, values, module, own)
            values[node] = value
            if self.keep:
                self.ledger.values.setdefault(record.name, self.numbering.key(value))
        return None

    # what comes from outside

    def _from_outside(self, name: tuple[str, Hashable], fake: Any) -> Any:
        number = self.numbers.of(*name)
        if not isinstance(fake, torch.Tensor):
            return OpaqueValue(number, fake)
        identity = self.sharing.memory_of(fake)
        memory = self.outside.get(identity)
        if memory is None:
            memory = self.outside[identity] = allocate(number, outside=name)
            lens = memory.root
        else:
            lens = narrow(memory.root, number, self.numbers, fake)
        return View(memory, lens, self.numbering.shape(fake), fake, fake.requires_grad)

    def _attribute(self, record: Any, module: Any) -> Any:
        found, fake = attrgetter(str(record.target))(module), ops.fake(record)
        if not isinstance(found, torch.Tensor):
            return OpaqueValue(self.numbers.of("object", id(found)), found)
        return self._from_outside(("attribute", id(found)), fake if isinstance(fake, torch.Tensor) else found)

    # calls

    def _call(self, node: Any, record: Any, values: dict[Any, Any], module: Any, own: bool) -> Any:
        name = ops.op_name(record)
        if is_arrival(record):
            return self._arrive(record, values)
        if name == "higher_order::tag_activation_checkpoint":
            return self._checkpoint(record, values, module)
        if name == "added_alone" and not node.users:
            return OpaqueValue(self.numbers.of("mark"))  # it never runs: a claim about what an accumulation adds
        if name == "after_write" or is_departure(record):
            given = mapped(record.args[0], values)
            return replace(given, seen=record.args[1]) if name == "after_write" else given
        if name == "put_sum":
            for step in written_out(record):
                if self.after is not None:
                    self.after.setdefault(step.node, self.after.get(node, ()))
                values[step.node] = self._compute(step.node, step, values, own)
            return values[node]
        taken = _taken(record, values) if name == "getitem" else None
        return taken if taken is not None else self._compute(node, record, values, own)

    def _checkpoint(self, record: Any, values: dict[Any, Any], module: Any) -> Any:
        body = getattr(module, str(record.args[0].target))
        _, named = split_checkpoint_kwargs(record.kwargs)
        given = [*record.args[1:], *named.values()]
        inner: dict[Any, Any] = {}
        for place, one in zip(body.graph.find_nodes(op="placeholder"), given, strict=True):
            value, fake = mapped(one, values), ops.fake(place)
            inner[place] = (
                replace(value, fake=fake) if isinstance(value, View) and isinstance(fake, torch.Tensor) else value
            )
        return self._walk(body.graph.nodes, body, inner)

    def _arrive(self, record: Any, values: dict[Any, Any]) -> Any:
        tail = tail_of(str(record.args[0])).module
        parts = dict(zip(tail.graph.find_nodes(op="placeholder"), mapped(tuple(record.args[1:]), values), strict=True))
        return self._walk(with_fake_values(tail.graph, parts), tail, parts, own=False)

    def _compute(self, node: Any, record: Any, values: dict[Any, Any], own: bool) -> Any:
        callee, fake = self.numbering.callee(record), ops.fake(record)
        args, kwargs = mapped(tuple(record.args), values), mapped(dict(record.kwargs), values)
        written = [one for one in leaves(callee.writes_to(args, kwargs)) if isinstance(one, View)]
        name, args, kwargs = in_plain_words(callee.name, args, kwargs, callee.flag)
        views = [one for one in leaves((args, kwargs)) if isinstance(one, View)]
        self._check_order(views if name not in ("view_as", "reshape_as") else views[:1], node)
        known, shares = self.sharing.of(node, name, fake, views, self.numbering.gradients or bool(written), own)
        number, step = self.numbering.of_call(name, args, kwargs, views, shares, fake)
        if name.startswith("as_strided") and views and views[0].memory.is_new:
            # it goes by the layout of memory that nothing is known of
            number = step = self.numbers.of("unknown layout")
            shares = replace(shares, is_all=False) if isinstance(shares, Shares) else shares
        is_switch = fake is None and not written
        if callee.is_random:
            number, self.draws = self.numbers.of("draw", self.draws, number), self.draws + 1
        if callee.is_random or callee.is_ordered or is_switch:
            self.ledger.acts.append((number, record.name))
        if is_switch and not name.startswith(CHECKS):
            self.numbering.switch(name, args, number)
        stored = (
            self.numbering.stored(callee, name, args, kwargs, number) if callee.replaces_first or callee.flag else None
        )
        for place, view in enumerate(written):
            write(view, stored if stored is not None else self.numbers.of("writes", place, number), self.numbers)
            view.memory.last_write = node
        if callee.may_write_all:
            for place, view in enumerate(views):
                write(view, self.numbers.of("touched", place, number), self.numbers)
        result = self._result(fake, shares, number, step, views, known)
        if isinstance(result, View):
            if written:
                result.seen = node
            if name in ("view_as", "reshape_as"):
                result.shape = views[1].shape
        return noted(name, args, kwargs, result, node)

    def _result(self, fake: Any, shares: Any, number: int, step: int, views: list[View], known: bool) -> Any:
        if isinstance(fake, tuple | list) and any(isinstance(one, torch.Tensor) for one in fake):
            each = shares if isinstance(shares, tuple) else (None,) * len(fake)
            return tuple(
                self._result(
                    one,
                    share,
                    self.numbers.of("one of", place, number),
                    self.numbers.of("one of", place, step),
                    views,
                    known,
                )
                for place, (one, share) in enumerate(zip(fake, each, strict=True))
            )
        if not isinstance(fake, torch.Tensor):
            return OpaqueValue(number, fake)
        through = fake.requires_grad if known else self.numbering.gradients and any(one.differentiable for one in views)
        if shares is None:
            memory = allocate(number, is_new=not known)
            return View(memory, memory.root, self.numbering.shape(fake), fake, through)
        source = views[shares.operand]
        lens = source.lens if shares.is_all else narrow(source.lens, step, self.numbers, fake if known else None)
        # the step that made it comes after the last write, by an edge or as was checked: so does what reads the view
        return View(source.memory, lens, self.numbering.shape(fake), fake, through, source.memory.last_write)

    def _check_order(self, views: Sequence[View], node: Any) -> None:
        """Note the first node that reads what was written, and does not depend on the write for anybody to see."""
        if self.after is None or self.ledger.unordered is not None:
            return
        for view in views:
            last: Any = view.memory.last_write
            if last is not None and last is not view.seen and last not in self.after.get(node, ()):
                self.ledger.unordered = (node.name, last.name)


def _taken(record: Any, values: Mapping[Any, Any]) -> Any:
    """Return the value that is taken out of a list; None if it is no list, or not one value."""
    found, place, fake = mapped(record.args[0], values), record.args[1], ops.fake(record)
    if not isinstance(found, tuple) or not isinstance(place, int):
        return None
    one = found[place]
    return replace(one, fake=fake) if isinstance(one, View) and isinstance(fake, torch.Tensor) else one
