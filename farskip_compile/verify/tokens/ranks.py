# SPDX-License-Identifier: Apache-2.0
"""A graph run on all ranks at once, in memory: rows as labels, counts and places as numbers.

Contract: runs what it is asked for and what that needs, in the order of the graph, once. Values that are given are not
run: on each rank they get labels of their own, as many as they have rows. Writes are done to new tensors that nobody
has read before; anything else that has an effect is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile._compat.fake import size_with
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.verify.tokens import exchanges
from farskip_compile.verify.tokens.arguments import Form, UnknownError, flat
from farskip_compile.verify.tokens.exchanges import exchanged
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, fresh, label_of
from farskip_compile.verify.tokens.picks import write
from farskip_compile.verify.tokens.rules import apply

Error = Callable[[fx.Node, str], VerificationError]
FRESH = frozenset(
    ["zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty", "zeros_like", "ones_like", "empty_like"]
)
PLACED = frozenset(["from_local", "redistribute", "to_local", "full_tensor"])
"""They say on which ranks parts of a tensor are; done in earnest, they would communicate."""
CHOICES = frozenset(["topk", "argmax"])
SMALL = 4
"""Integers that are given are less."""


@dataclass(frozen=True)
class Skew:
    """Rows choose the same ones, so that less room than for all of them is too little."""

    first: int
    """The first of those."""
    others: int
    """One row in so many keeps its own choice, so that what is dropped is neither a whole piece nor all of a rank's
    rows. 0: none does."""


class Nodes:
    """The nodes of a graph: their places, and what is written to them."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        listed = list(nodes)
        self.place = {node: number for number, node in enumerate(listed)}
        self.writers: dict[fx.Node, list[fx.Node]] = {}
        for writer, bases in effects.writers(listed).items():
            for base in bases:
                self.writers.setdefault(base, []).append(writer)


class SimulatedRanks:
    """One graph on `count` ranks.

    Args:
        graph: in the order in which it runs.
        given: names of values that both graphs have.
        count: of ranks.
        seed: another one draws other choices.
        error: what is raised of a node, with the reason.
        shared: the other graph, whose given values are taken.
        skew: if not None, nearly all rows choose the same ones.
    """

    def __init__(
        self,
        graph: Nodes,
        given: Collection[str],
        count: int,
        seed: int,
        error: Error,
        shared: SimulatedRanks | None = None,
        skew: Skew | None = None,
    ) -> None:
        self.graph = graph
        self.given = given
        self.count = count
        self.error = error
        self.seed = seed
        self.first = shared
        self.leaves: dict[str, list[Any]] = shared.leaves if shared is not None else {}
        self.values: dict[fx.Node, list[Any]] = {}
        self.sizes: list[dict[str, int]] = [{} for _ in range(count)]
        """What symbols are, by rank."""
        self.group = ""
        """Of the exchanges that were run."""
        self.skew = skew

    def value_of(self, wanted: fx.Node) -> list[Any]:
        """On each rank."""
        for node, known in self.needed(wanted).items():
            if known is None:
                self.values[node] = self._run(node)
            elif node not in self.values:
                self.values[node] = self._leaf(node)
        return self.values[wanted]

    def needed(self, wanted: fx.Node) -> dict[fx.Node, str | None]:
        """It, what it depends on, and what is written to that, in the order of the graph: what is given, with its name;
        what was run for another value, with an empty one; and what is to be run, with None."""
        found: dict[fx.Node, str | None] = {}
        queue = [wanted]
        while queue:
            node = queue.pop()
            if node not in found:
                found[node] = node.name if self.is_given(node) else "" if node in self.values else None
                if found[node] is None:
                    queue += [*node.all_input_nodes, *self.graph.writers.get(node, ())]
        return {node: found[node] for node in sorted(found, key=self.graph.place.__getitem__)}

    # What is given

    def is_given(self, node: fx.Node) -> bool:
        """Whether it is not run."""
        return node.op in ("placeholder", "get_attr") or (node.name in self.given and is_given(node))

    def _leaf(self, node: fx.Node) -> list[Any]:
        if node.name not in self.leaves:
            self.leaves[node.name] = [self._fresh(node, rank) for rank in range(self.count)]
        return self.leaves[node.name]

    def _fresh(self, node: fx.Node, rank: int) -> Any:
        value = ops.tensor(node)
        if value is None:
            return ops.fake(node)  # a mesh, a group, a number
        shape = self._shape(value, rank, node)
        seed = label_of(node.name, rank, self.seed)
        if not value.is_floating_point() and not value.is_complex():
            draw = torch.Generator().manual_seed(seed & 0x7FFFFFFF)
            return torch.randint(0, SMALL, shape, generator=draw).to(value.dtype)
        state = node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))
        return fresh(seed, shape, 0 if state else max(len(shape) - 1, min(len(shape), 1)))

    # What is run

    def _run(self, node: fx.Node) -> list[Any]:
        if effects.is_random(node):
            raise self.error(node, "it draws random numbers")
        try:
            if is_exchange(node):
                return self._exchanged(node)
            found = [self._on_rank(node, rank) for rank in range(self.count)]
        except (UnknownError, ValueError, RuntimeError, IndexError, TypeError, KeyError, AttributeError) as error:
            reason = f"what becomes of rows in {ops.op_name(node) or node.op} is not known: {error}"
            raise self.error(node, reason) from error
        value = ops.fake(node)
        if isinstance(value, torch.SymInt):
            for rank, number in enumerate(found):
                self.sizes[rank][str(value)] = int(number)
        return found

    def _on_rank(self, node: fx.Node, rank: int) -> Any:
        args, kwargs = self.arguments_on_rank(node, rank)
        name = ops.op_name(node)
        if effects.mutated_args(node):
            return self._write(node, args)
        if comms.is_wait(node):
            return args[0]
        if name in PLACED:
            return self._placed(node, args[0], rank)
        if node.op == "call_function" and not _is_torchs(node.target):
            raise UnknownError("it is not a function of PyTorch")
        if any(isinstance(one, TokenLabels) for one in flat((args, kwargs))):
            found = apply(name, args, kwargs, self._form(ops.fake(node), rank, node))
            return found if self.skew is None or name not in CHOICES else _alike(found, args[0].shape, self.skew)
        if name.startswith("higher_order::") or comms.is_collective(node):
            raise UnknownError("it holds a graph or is a collective")
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _placed(self, node: fx.Node, value: Any, rank: int) -> Any:
        """What says where a tensor is: nothing is sent here. A share is the first one, on each rank; this decides what
        both graphs are given, and nothing else."""
        fake = ops.tensor(node)
        if node.name not in self.given or not isinstance(value, torch.Tensor) or fake is None:
            raise UnknownError("it places a tensor")
        if ops.op_name(node) != "to_local":
            return value
        shape = self._shape(fake, rank, node)
        if len(shape) != value.dim() or any(most > has for most, has in zip(shape, value.shape, strict=True)):
            raise UnknownError("it gathers a tensor")
        return value[tuple(slice(size) for size in shape)]

    def _write(self, node: fx.Node, args: Any) -> None:
        base: Any = node.args[0]
        earlier = [user for user in base.users if user is not node and self.graph.place[user] < self.graph.place[node]]
        if ops.op_name(node) != "setitem" or ops.op_name(base) not in FRESH or earlier:
            raise UnknownError("it writes to what may have been read")
        if isinstance(args[0], TokenLabels):
            write(args)
        else:
            args[0][args[1]] = args[2]

    def _exchanged(self, node: fx.Node) -> list[Any]:
        """Rows of one rank become rows of another; all among the same ranks, since one number stands for each."""
        if node.kwargs:
            raise UnknownError("an exchange with keywords")
        group = "" if comms.is_all_reduce(node) else comms.process_group(node)
        self.group = self.group or group
        if group not in ("", self.group):
            raise UnknownError(f"it is among other ranks, {group!r}, than {self.group!r}")
        rule = exchanged if comms.is_all_to_all(node) else exchanges.RULES[ops.op_name(node)]
        return rule([self.arguments_on_rank(node, rank)[0] for rank in range(self.count)])

    def arguments_on_rank(self, node: fx.Node, rank: int) -> Any:
        """Return the positional and keyword arguments of `node` as values of one rank."""
        return fx.map_arg((node.args, node.kwargs), lambda arg: self.values[arg][rank])

    # Shapes

    def _form(self, value: object, rank: int, node: fx.Node) -> Form:
        if isinstance(value, torch.Tensor):
            return self._shape(value, rank, node), value.dtype
        if isinstance(value, tuple | list) and all(isinstance(one, torch.Tensor) for one in value):
            return [(self._shape(one, rank, node), one.dtype) for one in value]
        return None

    def _shape(self, value: torch.Tensor, rank: int, node: fx.Node) -> tuple[int, ...]:
        sizes = self.sizes[rank]
        found = tuple(size if isinstance(size, int) else size_with(size, sizes) for size in value.shape)
        if None in found:
            raise self.error(node, f"it is not known how many rows it has: {tuple(value.shape)}")
        return found


def is_given(node: fx.Node) -> bool:
    """Whether what both graphs have of it is taken for given: labels, if it is read, and no write."""
    return ops.is_floating(node) and not effects.mutated_args(node)


def is_exchange(node: fx.Node) -> bool:
    """Whether rows of other ranks come with it."""
    return comms.is_all_to_all(node) or ops.op_name(node) in exchanges.RULES


def _is_torchs(target: Any) -> bool:
    """Whether a function is known by its name."""
    module = getattr(target, "__module__", None)
    return module is None or str(module).partition(".")[0] in ("torch", "_operator", "builtins", "math")


def _alike(found: Any, shape: tuple[int, ...], skew: Skew) -> Any:
    """What was chosen, if rows choose the same ones."""
    best, numbers = found if isinstance(found, tuple) else (None, found)
    drawn = found[1] if best is not None else found
    kept = numbers.dim() == len(shape)
    same = (skew.first + (torch.arange(numbers.shape[-1]) if kept else 0)) % torch.tensor(shape[-1])
    numbers = same.to(drawn).expand(drawn.shape).contiguous()
    if best is not None and skew.others:
        numbers = torch.where((best.rows % skew.others == 0).unsqueeze(-1), drawn, numbers)
    return numbers if best is None else (best, numbers)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, row by row."""
    if isinstance(one, TokenLabels) and isinstance(other, TokenLabels):
        depth = max(one.depth, other.depth)
        return one.shape == other.shape and torch.equal(at_depth(one, depth).rows, at_depth(other, depth).rows)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
