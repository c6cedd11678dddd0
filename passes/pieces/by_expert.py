# SPDX-License-Identifier: Apache-2.0
"""Before differentiation, on request: exchanges without drops in pieces, each of them the rows of some local experts.

In:    a Dynamo graph; for each group of exchanges with the same sizes, in how many pieces.
Out:   the same graph, in which each piece is an exchange of its own: what it brings is there while the next piece is on
       its way. All pieces of a dispatch are launched where it was, and all of a combine where that was.
Never: touches what experts compute. Each has its rows in one piece, so products, their gradients and what is summed
       stay the same, bit for bit. Adds no exchange of sizes: both ends of a block know it (`blocks`).

Algorithm, for each exchange:
1. The rows for each rank are split between experts, and those of one piece put together.
2. Each piece is launched with sums of the blocks' sizes, and waited for where the whole was.
3. What arrives at the experts is split into the blocks that they read. What arrives from them is put where its rows
   belong: at once where the model itself puts each row in its place (`index_copy`), else in the order of the whole.
   Not by `cat`, whose gradient takes slices from where data decides: Inductor can't lower those of a gradient whose
   length it knows otherwise (torch 2.13).

A launch that is a piece says so (`notes`); so does one that stays whole, and why.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.pieces.axis import intervals
from farskip_compile.passes.pieces.blocks import AllToAllBlocks, Blocks, Exchanges, exchanges_of
from farskip_compile.passes.pieces.notes import note
from farskip_compile.passes.pieces.rules import NotSeparableError

ExchangeCount = Callable[[Exchanges], int]


def cut_by_expert(graph: fx.Graph, how_many: ExchangeCount) -> tuple[NotSeparableError, ...]:
    """Cut the exchanges of `graph` whose sizes data decides, in place; returns why some stay whole."""
    found, refused = exchanges_of(graph)
    for exchanges in found:
        pieces = how_many(exchanges)
        if pieces > exchanges.experts:
            first = exchanges.members[0].launch
            few = f"there are fewer experts on each rank than pieces: {exchanges.experts}"
            refused.append(NotSeparableError(first, few))
        elif pieces > 1:
            _Cut(graph, exchanges, intervals(exchanges.experts, pieces)).run()
    for reason in refused:
        note(reason.node, reason.reason)
    return tuple(refused)


class _Cut:
    def __init__(self, graph: fx.Graph, exchanges: Exchanges, groups: Sequence[tuple[int, int]]) -> None:
        self.graph = graph
        self.exchanges = exchanges
        self.groups = groups
        """Experts of each piece: from, to."""
        self.sums: dict[tuple[fx.Node, ...], fx.Node] = {}
        self.before: fx.Node | None = None
        """Where new nodes are put."""
        self.like: fx.Node | None = None
        """What they take the place of."""

    def run(self) -> None:
        for one in self.exchanges.members:
            if one.to_experts:
                self._dispatch(one)
            else:
                self._combine(one)

    def _dispatch(self, exchange: AllToAllBlocks) -> None:
        sent, received = self.exchanges.sent, self.exchanges.received
        launch, split = exchange.launch, next(iter(exchange.wait.users))
        self._at(launch)
        sizes = [self._sum(blocks[low:high]) for blocks in sent for low, high in self.groups]
        parts = self._split(launch.args[0], sizes)  # type: ignore[arg-type]
        count = len(self.groups)
        launched = self._launch(launch, [self._cat(parts[number::count]) for number in range(count)], received, sent)
        self._at(exchange.wait)
        arrived = [self._wait(exchange.wait, one) for one in launched]
        self._at(split)
        for (low, high), one in zip(self.groups, arrived, strict=True):
            blocks = [number for per_rank in received for number in per_rank[low:high]]
            read = iter(self._split(one, blocks))
            for rank in range(len(received)):
                for expert in range(low, high):
                    exchange.blocks[rank * self.exchanges.experts + expert].replace_all_uses_with(next(read))
        self._erase(*exchange.blocks, split, exchange.wait, launch)

    def _combine(self, exchange: AllToAllBlocks) -> None:
        sent, received = self.exchanges.sent, self.exchanges.received
        launch, whole = exchange.launch, exchange.launch.args[0]
        experts = self.exchanges.experts
        self._at(launch)
        given = [
            self._cat(
                [exchange.blocks[rank * experts + expert] for rank in range(len(received)) for expert in range(*g)]
            )
            for g in self.groups
        ]
        launched = self._launch(launch, given, sent, received)
        self._at(exchange.wait)
        arrived = [self._wait(exchange.wait, one) for one in launched]
        copied, rows, order = self._placed(exchange.wait, arrived[0])
        target = exchange.wait if copied is None else copied
        if copied is not None:
            self._at(copied)
        sizes = [self._sum(blocks[low:high]) for blocks in sent for low, high in self.groups]
        places = self._split(order, sizes)
        for number, one in enumerate(arrived):
            place = self._cat(places[number :: len(arrived)])
            rows = self._put(torch.index_copy, (rows, 0, place, one), fresh_like(ops.tensor(rows)))  # type: ignore[arg-type]
        target.replace_all_uses_with(rows)
        readers = list(exchange.wait.users) if copied is not None else []  # this one, and zeros like what comes back
        self._erase(*reversed(readers), exchange.wait, launch, whole)  # type: ignore[arg-type]

    def _placed(self, wait: fx.Node, like: fx.Node) -> tuple[fx.Node | None, fx.Node, fx.Node]:
        """Return the call that puts each row that comes back in its place, the tensor it writes to, and the places.

        Without such a call, or if something else reads the rows: None, zeros, and the rows' own numbers.
        """
        copied = next((user for user in wait.users if ops.op_name(user) == "index_copy"), None)
        if copied is not None and len(copied.args) == 4 and copied.args[1] == 0 and copied.args[3] is wait:
            zeros: Any = copied.args[0]
            if ops.is_zeros(zeros) and set(wait.users) <= {copied, zeros} and set(zeros.users) == {copied}:
                order: fx.Node = copied.args[2]  # type: ignore[assignment]
                return copied, self._zeros(wait, order, like) if zeros in wait.users else zeros, order
        value: Any = ops.tensor(wait)
        count = self._sum([number for blocks in self.exchanges.sent for number in blocks])
        numbers = value.new_empty(value.shape[:1], dtype=torch.int64)
        order = self._put(torch.arange, (count,), numbers, {"device": value.device})
        return None, self._zeros(wait, order, like), order

    def _zeros(self, wait: fx.Node, order: fx.Node, like: fx.Node) -> fx.Node:
        """Make zeros: as many rows as `order` has numbers, as wide as those of `like`, a piece of what `wait` is for.

        They are not made from a size: if data decides it, Inductor would ask whether it is 0.
        """
        value, numbers = ops.tensor(wait), ops.tensor(order)
        assert value is not None
        assert numbers is not None
        ones = [1] * (value.dim() - 1)
        column = numbers.view(-1, *ones)
        shape = column.expand(-1, *value.shape[1:])
        rows = self._put("view", (order, -1, *ones), column)
        rows = self._put("expand", (rows, -1, *self._widths(like)), shape)
        options = {"dtype": value.dtype, "memory_format": torch.contiguous_format}
        return self._put(torch.zeros_like, (rows,), value.new_empty(shape.shape), options)

    # New nodes

    def _at(self, node: fx.Node) -> None:
        self.before = self.like = node

    def _launch(self, launch: fx.Node, given: Sequence[fx.Node], arriving: Blocks, leaving: Blocks) -> list[fx.Node]:
        launched = []
        for (low, high), one in zip(self.groups, given, strict=True):
            splits = [[self._sum(blocks[low:high]) for blocks in sizes] for sizes in (arriving, leaving)]
            value = self._empty(one, [number for blocks in arriving for number in blocks[low:high]])
            launched.append(self._put(launch.target, (one, *splits, *launch.args[3:]), value, launch.kwargs))
            note(launched[-1], str(len(self.groups)), "experts")
        return launched

    def _wait(self, wait: fx.Node, launched: fx.Node) -> fx.Node:
        return self._put(wait.target, (launched, *wait.args[1:]), ops.fake(launched), wait.kwargs)

    def _sum(self, numbers: Sequence[fx.Node]) -> fx.Node:
        """Return the size of some blocks together; each sum is made once, where it is first needed."""
        key = tuple(numbers)
        if len(key) > 1 and key not in self.sums:
            self.sums[key] = self._put(torch.sym_sum, (list(key),), _total(key))
        return self.sums[key] if len(key) > 1 else key[0]

    def _split(self, whole: fx.Node, sizes: Sequence[fx.Node]) -> list[fx.Node]:
        values = [self._empty(whole, [size]) for size in sizes]
        parts = self._put(torch.functional.split, (whole, list(sizes), 0), tuple(values))
        return [self._put(operator.getitem, (parts, place), value) for place, value in enumerate(values)]

    def _cat(self, parts: Sequence[fx.Node]) -> fx.Node:
        values: Any = [ops.tensor(part) for part in parts]
        rows = torch.sym_sum([value.shape[0] for value in values])
        return self._put(torch.cat, (list(parts),), values[0].new_empty((rows, *values[0].shape[1:])))

    @staticmethod
    def _empty(like: fx.Node, sizes: Sequence[fx.Node]) -> torch.Tensor:
        """Return a fake tensor like `like` with the rows of blocks of these sizes."""
        value = ops.tensor(like)
        assert value is not None
        return value.new_empty((_total(sizes), *value.shape[1:]))

    def _put(self, target: Any, args: tuple[Any, ...], value: object, kwargs: Any = None) -> fx.Node:
        assert self.before is not None
        assert self.like is not None
        op = "call_method" if isinstance(target, str) else "call_function"
        with self.graph.inserting_before(self.before):
            new = self.graph.create_node(op, target, args, dict(kwargs or {}))
        new.meta = {**self.like.meta, "example_value": value}
        return new

    def _widths(self, rows: fx.Node) -> list[int | fx.Node]:
        """Return the sizes of rows but for their number."""
        value = ops.tensor(rows)
        assert value is not None
        sizes = enumerate(value.shape)
        return [one if isinstance(one, int) else self._put("size", (rows, at), one) for at, one in sizes if at]

    def _erase(self, *nodes: fx.Node) -> None:
        for node in nodes:
            self.graph.erase_node(node)


def _total(sizes: Sequence[fx.Node]) -> Any:
    numbers: Any = [ops.fake(size) for size in sizes]
    return torch.sym_sum(numbers) if len(numbers) > 1 else numbers[0]
