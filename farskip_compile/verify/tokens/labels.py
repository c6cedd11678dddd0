# SPDX-License-Identifier: Apache-2.0
"""What a value is, row by row, without its numbers: a label for each row.

A `TokenLabels` stands for a tensor. Two rows with the same label are the same numbers; whatever is computed of a row
has a label that is made of its label and of what was done. So two ways to compute a tensor are equal if their labels
are.

Contract: rows are the first `depth` dimensions. A value of depth 1 can be said at depth 2, each label with the places
of its parts (`finer`), and the other way round (`coarser`); equal stays equal. Labels are 64-bit hashes: that two
different things get the same one is possible, and as likely as guessing it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_FACTORS = (-7046029254386353131, -4417276706812531889, 1609587929392839161, -8796714831421723037)


@dataclass
class TokenLabels:
    """Of a tensor of the size `shape`: a label for each entry of its first `rows.dim()` dimensions."""

    rows: torch.Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if tuple(self.rows.shape) != self.shape[: self.rows.dim()]:
            raise ValueError(f"labels {tuple(self.rows.shape)} are no rows of a tensor {self.shape}")

    @property
    def depth(self) -> int:
        """Dimensions that are rows."""
        return self.rows.dim()


def mixed(one: torch.Tensor, other: torch.Tensor | int) -> torch.Tensor:
    """A label made of two, in this order."""
    other = torch.tensor(other) if isinstance(other, int) else other
    both = one * _FACTORS[0] + (other * _FACTORS[1] + _FACTORS[2])
    both = (both ^ (both >> 29)) * _FACTORS[3]
    return both ^ (both >> 32)


def label_of(*facts: object) -> int:
    """A label for constants."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def fresh(seed: int, shape: Sequence[int], depth: int) -> TokenLabels:
    """Labels of a value that nothing is known of; all different, and others for another seed."""
    rows = tuple(shape[:depth])
    numbers = torch.arange(math.prod(rows)).view(rows)
    return TokenLabels(mixed(torch.full(rows, seed), numbers), tuple(shape))


def of_numbers(value: torch.Tensor, depth: int) -> TokenLabels:
    """Labels of a tensor whose numbers are known, at this depth."""
    bits = value.double().view(torch.int64) if value.is_floating_point() else value.long()
    if value.is_complex():
        raise ValueError("complex numbers have no label")
    return coarser(TokenLabels(mixed(bits, label_of("number")), tuple(value.shape)), depth)


def finer(value: TokenLabels, depth: int) -> TokenLabels:
    """The same at a greater depth: a label and a place."""
    rows = value.rows
    for size in value.shape[value.depth : depth]:
        rows = rows.unsqueeze(-1)
        if size != 1:
            rows = mixed(rows, torch.arange(size))
    return TokenLabels(rows, value.shape)


def coarser(value: TokenLabels, depth: int) -> TokenLabels:
    """The same at a smaller depth: all labels of a row, each with its place."""
    rows = value.rows
    for size in reversed(value.shape[depth : value.depth]):
        rows = rows.squeeze(-1) if size == 1 else mixed(rows, torch.arange(size)).sum(-1) + size
    return TokenLabels(rows, value.shape)


def at_depth(value: TokenLabels, depth: int) -> TokenLabels:
    """The same at this depth, as far as it has that many dimensions."""
    depth = min(depth, len(value.shape))
    return finer(value, depth) if depth > value.depth else coarser(value, depth)


def aligned(value: TokenLabels, shape: Sequence[int], depth: int) -> torch.Tensor:
    """Labels for the first `depth` dimensions of `shape`, to which `value` is broadcast from the right."""
    new = len(shape) - len(value.shape)
    rows = at_depth(value, max(depth - new, 0)).rows
    return rows.view((1,) * (depth - rows.dim()) + tuple(rows.shape)).expand(tuple(shape[:depth]))


def made(rows: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> TokenLabels | torch.Tensor:
    """A value with these labels: numbers that they decide, where the type says so."""
    labels = TokenLabels(rows, tuple(shape))
    if dtype.is_floating_point or dtype.is_complex:
        return labels
    entries = finer(labels, len(shape)).rows
    return (entries & 1).bool() if dtype == torch.bool else (entries & 3).to(dtype)


def viewed(value: TokenLabels, shape: Sequence[int]) -> TokenLabels:
    """The same entries in another shape: at the depth at which the rows of both are the same, finer if need be."""
    for depth in range(value.depth, len(value.shape) + 1):
        count = math.prod(value.shape[:depth])
        for new in range(min(depth, 1), len(shape) + 1):  # rows stay rows, also if there is one
            if math.prod(shape[:new]) == count and _splits_there(value.shape[depth:], shape[new:]):
                return TokenLabels(finer(value, depth).rows.reshape(tuple(shape[:new])), tuple(shape))
    raise ValueError(f"{value.shape} is no {tuple(shape)}")


def _splits_there(rest: Sequence[int], new: Sequence[int]) -> bool:
    return math.prod(rest) == math.prod(new)
