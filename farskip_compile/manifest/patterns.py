# SPDX-License-Identifier: Apache-2.0
"""Names of parameters in a few lines: `layers.{0-60}.norm.weight` stands for 61 of them.

Contract: `grouped` takes names with shapes and gives patterns with shapes; `expanded` gives the names back, all of
them, exactly. A part of a name (what stands between dots) that is a number is an index; names of one shape that differ
in indices only share a pattern. A part in braces is a set of indices, `{0-3,5}`; braces of the names themselves are
doubled. A short pattern may stand for more names than a machine can hold: `extent` counts them before any is made.

Algorithm: names with the same text between their indices form a set of index tuples; a set is cut into boxes (products
of index sets) by joining the first indices that the same tuples follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

ParameterShape = tuple[int, ...]
Template = tuple[str | None, ...]
"""The parts of a name; None for an index."""

_INDEX = re.compile(r"0|[1-9][0-9]*")
MOST_DIGITS = 9
"""Digits of the longest index."""
_SET = re.compile(r"\{([0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*)\}")


def grouped(shapes: Mapping[str, ParameterShape]) -> dict[str, ParameterShape]:
    """Return patterns that stand for the names of `shapes`, in the order in which these come."""
    members: dict[tuple[Template, ParameterShape], list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        indices = tuple(int(part) for part in parts if _INDEX.fullmatch(part))
        template = tuple(None if _INDEX.fullmatch(part) else _escaped(part) for part in parts)
        members.setdefault((template, shape), []).append(indices)
    patterns: dict[str, ParameterShape] = {}
    for (template, shape), tuples in members.items():
        for box in _boxes(sorted(tuples)):
            patterns[_pattern(template, box)] = shape
    return patterns


def expanded(pattern: str) -> list[str]:
    """Return all names that `pattern` stands for; raise a `ValueError` if it is not a pattern."""
    return [".".join(parts) for parts in product(*(_choices(part) for part in pattern.split(".")))]


def extent(pattern: str, most: int) -> tuple[int, int]:
    """Return how many names `pattern` stands for, and an upper bound of their characters; no name is made.

    Raises:
        ValueError: it is not a pattern, or stands for more than `most` names.
    """
    names, length = 1, 0
    for part in pattern.split("."):
        ranges = _ranges(part)
        names *= sum(numbers.stop - numbers.start for numbers in ranges) if ranges else 1
        length += 1 + (max(len(str(numbers[-1])) for numbers in ranges) if ranges else len(part))
        if names > most:  # not later: a product of many sets has as many digits as there are sets
            raise ValueError(f"it stands for more than {most:,} names")
    return names, names * length


def _boxes(tuples: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Return products of index sets that hold all of `tuples`, each once."""
    if not tuples[0]:
        return [()]
    following: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in tuples:
        following.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rests in following.items():
        alike.setdefault(tuple(rests), []).append(first)
    return [(tuple(firsts), *box) for rests, firsts in alike.items() for box in _boxes(rests)]


def _pattern(template: Template, box: Sequence[tuple[int, ...]]) -> str:
    sets = iter(box)
    return ".".join(_written(next(sets)) if part is None else part for part in template)


def _written(numbers: tuple[int, ...]) -> str:
    """Return `7`, `{0-3}` or `{0-3,5}` for sorted numbers."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) + "}"


def _ranges(part: str) -> list[range]:
    """Return the indices that a part in braces stands for; empty for any other part."""
    found = _SET.fullmatch(part)
    if found is None:
        literal = part.replace("{{", "").replace("}}", "")
        if "{" in literal or "}" in literal:
            raise ValueError(f"{part} has a brace that is not doubled and no set of numbers")
        return []
    ranges = []
    for run in found[1].split(","):
        low, _, high = run.partition("-")
        if max(len(low), len(high)) > MOST_DIGITS:
            raise ValueError(f"{part[:40]} has an index of more than {MOST_DIGITS} digits")
        ranges.append(range(int(low), int(high or low) + 1))
    if any(not numbers for numbers in ranges):
        raise ValueError(f"{part} holds an empty range")
    return ranges


def _choices(part: str) -> list[str]:
    ranges = _ranges(part)
    if ranges:
        return [str(number) for numbers in ranges for number in numbers]
    return [part.replace("{{", "{").replace("}}", "}")]


def _escaped(part: str) -> str:
    return part.replace("{", "{{").replace("}", "}}")
