# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows of an exchange without drops: one between each two ranks for each expert of the receiver.

In:    a Dynamo graph.
Out:   `Exchanges` that bring rows to experts and back, with the node that holds the size of each block.
Never: takes the name of a value, or what experts compute, for a fact. What can't be traced is refused.

Algorithm, for all-to-alls whose split sizes data decides, those with the same sizes together, in both directions:
1. A split size is a sum of integers that were read from tensors of counts, each traced to one entry: through views,
   casts, stacks, and waits.
2. Rank r is sent the sum of the entries [r, j] of a tensor, j = 0 to m - 1; from rank s comes the sum of the entries
   [s, j] of that tensor after an all-to-all. So both ends of a block have the same number for its size.
3. What comes to the experts is split into just these blocks, and what goes back is put together from them, in order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.facts import ExchangeMembers, exchanges_by_sizes

SUMS = frozenset(["add", "sym_sum"])
SAME_ENTRIES = ops.VIEWS | ops.COPIES | ops.CAST_OPS | {"cpu", "long", "int", "detach"}
MemoryEntry = tuple[fx.Node, int]
"""A tensor, and the place of one of its entries in the order of memory."""
Blocks = Sequence[Sequence[fx.Node]]
"""Sizes, by the other rank and the expert of the receiver."""


@dataclass(frozen=True)
class AllToAllBlocks:
    """One all-to-all."""

    launch: fx.Node
    wait: fx.Node
    to_experts: bool
    """True if it brings rows to the experts, False if back from them."""
    blocks: Sequence[fx.Node]
    """Rows that the experts get, or give, by rank and expert."""


@dataclass(frozen=True)
class Exchanges:
    """All-to-alls with the same sizes."""

    sent: Blocks
    """Sizes on the way to the experts."""
    received: Blocks
    members: Sequence[AllToAllBlocks]
    """In the order of the graph."""

    @property
    def experts(self) -> int:
        """Experts of each rank."""
        return len(self.sent[0])


def exchanges_of(graph: fx.Graph) -> tuple[list[Exchanges], list[NotSeparableError]]:
    """Return the exchanges that can be cut, and why others can't."""
    together = exchanges_by_sizes(graph)
    found, refused = [], []
    writers = effects.writers(list(graph.nodes)) if together else {}
    written = {effects.storage(base) for bases in writers.values() for base in bases}
    for members in together:
        try:
            found.append(_read(members, written))
        except NotSeparableError as reason:
            refused.append(reason)
    return found, refused


def _read(members: ExchangeMembers, written: Collection[int | None]) -> Exchanges:
    """`written`: memory that the graph writes to."""
    first = members[0][0]
    terms = [[_terms(size) for size in split] for split in first.args[1:3]]  # type: ignore[union-attr]
    received, sent = _matching(first, terms[0], terms[1], written)
    exchanges = []
    for launch, waits in members:
        to_experts = launch.args[1:3] == first.args[1:3]
        if len(waits) != 1 or (not to_experts and launch.args[1:3] != first.args[2:0:-1]):
            raise NotSeparableError(launch, "it is waited for in several places, or has other sizes on its way back")
        if comms.process_group(launch) != comms.process_group(first):
            raise NotSeparableError(launch, "it goes to other ranks than the dispatch")
        blocks = _split_into(waits[0], received) if to_experts else _made_of(launch, received)
        exchanges.append(AllToAllBlocks(launch, waits[0], to_experts, blocks))
    if all(one.to_experts for one in exchanges):
        raise NotSeparableError(first, "nothing comes back with the same sizes")
    return Exchanges(sent, received, exchanges)


# 1


def _terms(size: object) -> list[fx.Node]:
    """Return the integers that `size` is the sum of; none if it is a constant."""
    if not isinstance(size, fx.Node):
        return []
    if ops.op_name(size) not in SUMS:
        return [size]
    parts = size.args[0] if ops.op_name(size) == "sym_sum" else size.args
    return [term for part in parts for term in _terms(part)]  # type: ignore[union-attr]


def _entry(number: fx.Node) -> MemoryEntry | None:
    """Return where an integer was read."""
    node: Any = number.args[0] if number.args else None
    name, place = ops.op_name(number), 0
    if name not in ("item", "_local_scalar_dense"):
        return None
    picks: list[int] = []  # of what Dynamo gives no shape
    while isinstance(node, fx.Node):
        name, source = ops.op_name(node), node.args[0] if node.args else None
        if name in ("getitem", "select") and isinstance(source, fx.Node) and (pick := _picked(node)) is not None:
            picks.insert(0, pick)
            node = source
            continue
        shape = _shape(node)
        if shape is None or len(picks) > len(shape):
            return None
        place += sum(pick % shape[dim] * math.prod(shape[dim + 1 :]) for dim, pick in enumerate(picks))
        picks = []
        if name in SAME_ENTRIES or comms.is_wait(node):
            node = source
        elif name == "stack" and _dim(node) == 0 and isinstance(source, list | tuple):
            count = math.prod(shape[1:])
            node, place = source[place // count], place % count
        else:
            return node, place
    return None


def _dim(node: fx.Node) -> object:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _picked(node: fx.Node) -> int | None:
    """Return the index of a part along dimension 0; None if it is another part."""
    index = node.args[1] if ops.op_name(node) == "getitem" else node.args[2] if node.args[1] == 0 else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _shape(node: fx.Node) -> list[int] | None:
    value = ops.tensor(node)
    shape = list(value.shape) if value is not None else [None]
    return shape if all(isinstance(size, int) for size in shape) else None  # type: ignore[return-value]


# 2


def _matching(first: fx.Node, received: Blocks, sent: Blocks, written: Collection[int | None]) -> tuple[Blocks, Blocks]:
    """Return both in the order of the experts.

    Raises:
        NotSeparableError: the two ends of a block are not known to have the same number.
    """
    unknown = NotSeparableError(first, "its sizes are no sums of counts that both ends have: expert by expert")
    experts = len(sent[0])
    entries = {number: _entry(number) for sizes in (*sent, *received) for number in sizes}
    if experts < 1 or any(len(sizes) != experts for sizes in (*sent, *received)) or None in entries.values():
        raise unknown
    ordered = []
    bases = []
    for blocks in (sent, received):
        in_order = [sorted(sizes, key=lambda number: entries[number][1]) for sizes in blocks]  # type: ignore[index]
        found = [entries[number] for sizes in in_order for number in sizes]
        base = found[0][0]  # type: ignore[index]
        if found != [(base, place) for place in range(len(found))]:
            raise unknown
        ordered.append(in_order)
        bases.append(base)
    counts, arrived = bases
    if any(effects.storage(base) in written for base in bases):
        raise unknown
    if not _is_exchange_of(arrived, counts, len(sent), experts) or comms.process_group(arrived) != comms.process_group(
        first
    ):
        raise unknown
    return ordered[1], ordered[0]


def _is_exchange_of(arrived: fx.Node, counts: fx.Node, ranks: int, experts: int) -> bool:
    """Whether `arrived` is an all-to-all of `counts` in which each rank gets `experts` entries."""
    if not comms.is_all_to_all(arrived):
        return False
    given = arrived.args[0]
    while isinstance(given, fx.Node) and given is not counts and ops.op_name(given) in SAME_ENTRIES:
        given = given.args[0]
    shape = _shape(arrived)
    if given is not counts or shape is None or math.prod(shape) != ranks * experts:
        return False
    rows = [shape[0] // ranks] * ranks
    return all(list(split) == rows for split in arrived.args[1:3])  # type: ignore[arg-type]


# 3


def _split_into(wait: fx.Node, received: Blocks) -> list[fx.Node]:
    """Return the blocks that are read of what arrives, in order."""
    sizes = [number for block in received for number in block]
    readers = list(wait.users)
    names = ("split", "split_with_sizes")
    if len(readers) != 1 or ops.op_name(readers[0]) not in names or _dim_of_split(readers[0]) != 0:
        raise NotSeparableError(readers[0] if readers else wait, "it reads what arrives otherwise than in blocks")
    split = readers[0]
    given = split.args[1] if len(split.args) > 1 else None
    if not isinstance(given, list | tuple) or not _are(given, sizes):
        raise NotSeparableError(split, "it splits what arrives otherwise than by expert")
    parts = {part.args[1]: part for part in split.users if ops.op_name(part) == "getitem"}
    if len(parts) != len(split.users) or set(parts) != set(range(len(sizes))):
        raise NotSeparableError(split, "not each block of it is read once")
    return [parts[place] for place in range(len(sizes))]


def _dim_of_split(split: fx.Node) -> object:
    return split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)


def _are(given: Sequence[object], sizes: Sequence[fx.Node]) -> bool:
    return len(given) == len(sizes) and all(one is size for one, size in zip(given, sizes, strict=True))


def _made_of(launch: fx.Node, received: Blocks) -> list[fx.Node]:
    """Return the blocks that are sent back, in order."""
    whole: Any = launch.args[0]
    sizes = [number for block in received for number in block]
    if ops.op_name(whole) not in ("cat", "concat", "concatenate") or _dim(whole) != 0 or len(whole.users) != 1:
        raise NotSeparableError(whole, "it sends back what is not put together from blocks")
    blocks = list(whole.args[0])
    lengths = [ops.tensor(block).shape[0] for block in blocks]  # type: ignore[union-attr]
    wanted: list[Any] = [ops.fake(size) for size in sizes]
    if len(lengths) != len(wanted) or not all(map(same_dim, lengths, wanted)):
        raise NotSeparableError(whole, "it puts together what goes back otherwise than by rank and expert")
    return blocks
