"""Each value of a graph as one number: graphs that compute the same have the same numbers, others differ by chance.

Contract: `read_steps` reduces the nodes of a normalised graph to steps, `evaluate` turns steps into numbers. Looks at
operators, constants, edges and fake values; computes no tensor. The same numbers in every process and on every rank.

Algorithm (linear): the graph is evaluated once, at a random point of a prime field.
1. Elementwise sums, differences, products and quotients are those of numbers, and a Python number is itself. So the
   coefficient of each term counts, its sign, and how often it is added; the order of additions does not.
2. What is linear and more than a view of memory (a cast that rounds, a collective, a transposition) multiplies by a
   random number of its own; equal operators with equal constants have equal ones. Each shape has a number, too: a
   `view` multiplies by that of the new shape and divides by that of the old one, so that there and back is nothing.
3. Everything else is a hash of its operator, its constants and the numbers that it reads. So is a write to memory: what
   reads that memory later reads the write too. A random operator reads the one before it, and whatever stands behind a
   switch, such as the beginning of autocast, reads that.
Two different polynomials agree at a random point with a probability of about their degree over 2^61.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.residual.sums import Dataflow

PRIME = (1 << 61) - 1
SAME_VALUES = frozenset(["contiguous", "clone", "alias"])
"""Operators that give back what they are given."""
KEEPS_ORDER = frozenset(["view", "reshape", "_unsafe_view"])
"""Operators that give back what they are given in the shape that they name. One behind the other, they are the one from
the first shape to the last."""
SIZES = frozenset(["size", "stride", "numel", "dim", "getattr", "sym_size", "sym_stride", "sym_numel"])
"""Operators whose result hangs on the shape of a tensor, not on its data."""
ELEMENTWISE = frozenset({"add", "sub"} | ops.PRODUCTS)
_NODE, _OPEN, _CLOSE = 1, 2, 3


class Rule(Enum):
    """How a number follows from others."""

    HASH = 0
    AFFINE = 1
    """key + sum of weight * input"""
    PRODUCT = 2
    """key * product of inputs"""
    QUOTIENT = 3
    """key * product of inputs but the last / the last"""


@dataclass(slots=True)
class Step:
    """One node of a graph. Inputs are places of other nodes."""

    name: str
    rule: Rule
    key: int
    inputs: tuple[int, ...]
    weights: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    """What it reads beside its inputs: writes to their memory, and what stands before it by order alone."""

    def number(self, of: Callable[[int], int]) -> int:
        """The number of the node, from those of others by place."""
        if self.rule is Rule.HASH:
            return hash((self.key, *map(of, self.inputs), *map(of, self.after))) % PRIME
        if self.rule is Rule.AFFINE:
            number = self.key + sum(weight * of(place) for weight, place in zip(self.weights, self.inputs, strict=True))
        else:
            *factors, last = map(of, self.inputs)
            number = self.key * (last if self.rule is Rule.PRODUCT else pow(last, PRIME - 2, PRIME))
            for factor in factors:
                number = number * factor % PRIME
        if self.after:
            number += hash((self.key, *map(of, self.after)))
        return number % PRIME


@dataclass(frozen=True)
class Steps:
    """A graph as steps, in its order."""

    steps: Sequence[Step]
    effects: Sequence[int]
    """Places of the nodes that do more than compute a value: writes, random numbers, switches, checks."""

    def effect_names(self) -> list[str]:
        """Names of these nodes, in order."""
        return [self.steps[place].name for place in self.effects]


def read_steps(flow: Dataflow) -> Steps:
    """The steps of a normalised graph."""
    steps: list[Step] = []
    acting: list[int] = []
    impure: dict[object, bool] = {}
    last_random: tuple[int, ...] = ()
    last_switch: tuple[int, ...] = ()
    place_of = flow.order
    for place, node in enumerate(flow.nodes):
        step = _read(node, place_of)
        writes = flow.after.get(node)
        if writes:
            step.after = tuple(place_of[write] for write in writes)
        if step.rule is Rule.HASH:
            step.after += last_switch
        writes_memory = bool(effects.mutated_args(node))
        if effects.is_random(node):
            step.after += last_random
            last_random = (place,)
            acting.append(place)
        elif (writes_memory or _is_impure(node, impure)) and not (ops.is_collective(node) or ops.is_wait(node)):
            last_switch = last_switch if writes_memory else (place,)
            acting.append(place)
        steps.append(step)
    return Steps(steps, acting)


def evaluate(steps: Sequence[Step]) -> list[int]:
    """The numbers of all steps."""
    numbers: list[int] = []
    for step in steps:
        numbers.append(step.number(numbers.__getitem__))
    return numbers


def _is_impure(node: fx.Node, known: dict[object, bool]) -> bool:
    """Asked once for each function: it looks at nothing else."""
    if node.op != "call_function":
        return False
    if (answer := known.get(node.target)) is None:
        answer = known[node.target] = node.is_impure()
    return answer


def _read(node: fx.Node, place_of: Mapping[fx.Node, int]) -> Step:
    if node.op in ("placeholder", "get_attr"):
        return Step(node.name, Rule.HASH, _word(f"{node.op} {node.target}"), ())
    name = ops.op_name(node) or f"{node.op} {node.target}"
    if name in ELEMENTWISE and len(node.args) == 2 and (not node.kwargs or dict(node.kwargs) == {"alpha": 1}):
        step = _elementwise(node, name, place_of)
        if step is not None:
            return step
    if name in SIZES and ops.tensor(node) is None:
        return Step(node.name, Rule.HASH, _word(f"{name} {ops.fake(node)}"), ())
    factor = _factor(node, name) if ops.may_be_linear(name) else None
    if factor is not None:
        return Step(node.name, Rule.AFFINE, 0, (place_of[node.args[0]],), (factor,))  # type: ignore[index]
    constants = [_word(name)]
    inputs: list[int] = []
    _scan(node.args, place_of, inputs, constants)
    if node.kwargs:
        _scan(node.kwargs, place_of, inputs, constants)
    return Step(node.name, Rule.HASH, hash(tuple(constants)), tuple(inputs))


def _elementwise(node: fx.Node, name: str, place_of: Mapping[fx.Node, int]) -> Step | None:
    """A sum, difference, product or quotient of nodes and numbers; None if there is something else among them."""
    places = tuple(place_of[arg] for arg in node.args if isinstance(arg, fx.Node))
    number = 0
    if len(places) == 1:
        constant = next(arg for arg in node.args if not isinstance(arg, fx.Node))
        plain = isinstance(constant, int | float) and not isinstance(constant, bool)
        found = _fraction(constant) if plain else None  # type: ignore[arg-type]
        if found is None:
            return None
        number = found
    elif not places:
        return None
    first = len(places) == 2 or isinstance(node.args[0], fx.Node)  # a - number, not number - a
    if name == "add":
        return Step(node.name, Rule.AFFINE, number, places, (1,) * len(places))
    if name == "sub":
        weights = (1, -1) if len(places) == 2 else (1 if first else -1,)
        return Step(node.name, Rule.AFFINE, -number if first else number, places, weights)
    if len(places) == 2:
        return Step(node.name, Rule.PRODUCT if name == "mul" else Rule.QUOTIENT, 1, places)
    if name == "mul":
        return Step(node.name, Rule.AFFINE, 0, places, (number,))
    if not first:
        return Step(node.name, Rule.QUOTIENT, number, places)
    return Step(node.name, Rule.AFFINE, 0, places, (pow(number, PRIME - 2, PRIME),)) if number else None


def _factor(node: fx.Node, name: str) -> int | None:
    """What a linear operator multiplies its first argument by; None if it is no such operator."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or ops.tensor(first) is None or ops.tensor(node) is None:
        return None
    if name in ops.CAST_OPS:
        return _cast_factor(ops.tensor(first), ops.tensor(node))  # type: ignore[arg-type]
    if name in SAME_VALUES or ops.is_wait(node) or (name.endswith("dropout") and ops.is_inactive_dropout(node)):
        return 1
    if name == "neg":
        return -1
    if name in KEEPS_ORDER and _names_its_shape(node):
        before, after = (str(tuple(ops.tensor(one).shape)) for one in (first, node))  # type: ignore[union-attr]
        return _word(after) * _inverse(before) % PRIME
    if name in ("view_as", "reshape_as"):
        return _word(name)
    if name in ops.SHAPE_OPS or ops.is_linear_collective(node):
        constants = [_word(name)]
        for value in (*node.args[1:], *node.kwargs.items()):
            # a size is not followed: it is the same wherever it comes from
            constants.append(_word(str(fx.map_arg(value, lambda arg: str(ops.fake(arg))))))
        return hash(tuple(constants)) % PRIME
    return None


def _names_its_shape(node: fx.Node) -> bool:
    """Whether the sizes that a change of shape asks for are those that it is known to give: only then they say all."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    value = ops.tensor(node)
    if value is None or len(sizes) != value.dim() or node.kwargs or sizes.count(-1) > 1:
        return False
    asked = (ops.fake(size) if isinstance(size, fx.Node) else size for size in sizes)
    return all(one == -1 or str(one) == str(length) for one, length in zip(asked, value.shape, strict=True))


def _cast_factor(before: torch.Tensor, after: torch.Tensor) -> int:
    """A cast that keeps every number is none."""
    keeps = torch.promote_types(before.dtype, after.dtype) == after.dtype
    return 1 if keeps else _word(f"round to {after.dtype}")


def _scan(value: object, place_of: Mapping[fx.Node, int], inputs: list[int], constants: list[int]) -> None:
    """Part arguments into nodes and what is no node, such that both together are the arguments."""
    if isinstance(value, fx.Node):
        inputs.append(place_of[value])
        constants.append(_NODE)
    elif isinstance(value, tuple | list):
        constants.append(_OPEN)
        for part in value:
            _scan(part, place_of, inputs, constants)
        constants.append(_CLOSE)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            constants.append(_word(str(key)))
            _scan(part, place_of, inputs, constants)
    elif isinstance(value, slice):
        _scan((value.start, value.stop, value.step), place_of, inputs, constants)
    else:
        group = getattr(value, "group_name", None)
        constants.append(_word(f"{type(value).__name__} {value if group is None else group}"))


@lru_cache(maxsize=4096, typed=True)
def _fraction(value: float) -> int | None:
    """A Python number in the field; None if it is infinite or none."""
    if not math.isfinite(value):
        return None
    numerator, denominator = value.as_integer_ratio()
    return numerator * pow(denominator, -1, PRIME) % PRIME


@lru_cache(maxsize=4096)
def _inverse(text: str) -> int:
    """One over the random number of a text."""
    return pow(_word(text), -1, PRIME)


@lru_cache(maxsize=1 << 16)
def _word(text: str) -> int:
    """A random number for each text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % PRIME
