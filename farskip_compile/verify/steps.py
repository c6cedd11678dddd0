# SPDX-License-Identifier: Apache-2.0
"""A graph as steps: how the number of each node follows from those of others (`values` reads them off a graph).

Contract: data, and its evaluation at a random point of a prime field. The same numbers in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from farskip_compile.verify.field import PRIME


class Rule(Enum):
    """How a number follows from others."""

    HASH = 0
    AFFINE = 1
    """key + sum of weight * input"""
    PRODUCT = 2
    """key * product of inputs"""
    QUOTIENT = 3
    """key * product of inputs but the last / the last"""
    ADDED = 4
    """the first input + a hash of key and the other inputs"""


@dataclass(slots=True)
class NumberedStep:
    """One node of a graph. Inputs are places of other nodes."""

    name: str
    rule: Rule
    key: int
    inputs: tuple[int, ...]
    weights: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    """What it reads beside its inputs: writes to their memory, and what comes before it by order alone."""

    def number(self, of: Callable[[int], int]) -> int:
        """The number of the node, from those of others by place."""
        if self.rule is Rule.HASH:
            return hash((self.key, *map(of, self.inputs), *map(of, self.after))) % PRIME
        if self.rule is Rule.ADDED:
            base, *rest = map(of, self.inputs)
            return (base + hash((self.key, *rest, *map(of, self.after)))) % PRIME
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
class NumberedGraph:
    """A graph as steps, in its order."""

    steps: Sequence[NumberedStep]
    effects: Sequence[int]
    """Places of the nodes that do more than compute a value: writes, random numbers, switches, checks."""

    def effect_names(self) -> list[str]:
        """Names of these nodes, in order."""
        return [self.steps[place].name for place in self.effects]


def evaluate(steps: Sequence[NumberedStep]) -> list[int]:
    """The numbers of all steps."""
    numbers: list[int] = []
    for step in steps:
        numbers.append(step.number(numbers.__getitem__))
    return numbers
