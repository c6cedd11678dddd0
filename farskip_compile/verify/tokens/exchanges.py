# SPDX-License-Identifier: Apache-2.0
"""What collectives do to the rows of all ranks at once.

Contract: from the arguments on each rank, in order, to the result on each rank. A sum over ranks has a label made of
those of its terms, in the order of the ranks. What is not known of a collective is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from farskip_compile.verify.tokens.arguments import UnknownError
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, label_of, mixed

GATHER = "_c10d_functional::all_gather_into_tensor"
SCATTER = "_c10d_functional::reduce_scatter_tensor"
REDUCE = "_c10d_functional::all_reduce"
ArgumentsByRank = Sequence[Sequence[Any]]
"""By rank the arguments."""


def exchanged(given: ArgumentsByRank) -> list[Any]:
    """All-to-all: rows of one rank become rows of another."""
    count = len(given)
    if any(len(one[1]) != count or len(one[2]) != count for one in given):
        raise UnknownError(f"it is not an exchange between {count} ranks")
    sent = [_rows(tensor).split(list(leaving)) for tensor, _, leaving, *_ in given]
    found: list[Any] = []
    for rank, (tensor, arriving, *_) in enumerate(given):
        parts = [sent[source][rank] for source in range(count)]
        if [len(part) for part in parts] != list(arriving):
            raise ValueError(f"rank {rank} is sent {[len(part) for part in parts]} rows, expects {list(arriving)}")
        found.append(_like(tensor, torch.cat(parts)))
    return found


def gathered(given: ArgumentsByRank) -> list[Any]:
    """All-gather: on each rank the rows of the first one, then those of the second, and so on."""
    _check_size(given, 1)
    whole = torch.cat([_rows(one[0]) for one in given])
    return [_like(one[0], whole) for one in given]


def scattered(given: ArgumentsByRank) -> list[Any]:
    """Reduce-scatter: of the sums of the same rows of all ranks each rank gets its share, in order."""
    _check_size(given, 2)
    total = _total(given)
    if len(total) % len(given):
        raise ValueError(f"{len(total)} rows have no equal share for each of {len(given)} ranks")
    return [_like(one[0], share) for one, share in zip(given, total.chunk(len(given)), strict=True)]


def reduced(given: ArgumentsByRank) -> list[Any]:
    """All-reduce: the sums of the same rows of all ranks, on each. It does not say how many ranks there are, nor need
    they be those of other collectives: rows that stand in their places on any two ranks do so on all."""
    total = _total(given)
    return [_like(one[0], total) for one in given]


def _total(given: ArgumentsByRank) -> torch.Tensor:
    """Labels of what is added up, row by row, and how."""
    terms = [one[0] for one in given]
    if any(isinstance(term, torch.Tensor) for term in terms):
        raise UnknownError("numbers are added up over ranks")
    depth = max(1, *(term.depth for term in terms))
    total = torch.tensor(label_of("over ranks", *map(str, given[0][1:])))
    for term in terms:
        total = mixed(total, at_depth(term, depth).rows)
    return total


def _check_size(given: ArgumentsByRank, place: int) -> None:
    if any(one[place] != len(given) for one in given):
        raise UnknownError(f"it is not among {len(given)} ranks")


RULES: dict[str, Callable[[ArgumentsByRank], list[Any]]] = {GATHER: gathered, SCATTER: scattered, REDUCE: reduced}


def _rows(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else at_depth(value, max(value.depth, 1)).rows


def _like(tensor: Any, rows: torch.Tensor) -> Any:
    return TokenLabels(rows, (len(rows), *tensor.shape[1:])) if isinstance(tensor, TokenLabels) else rows
