# SPDX-License-Identifier: Apache-2.0
"""Numbers of a prime field for what a graph is written with: texts, Python numbers, shapes, parts of a dimension.

Contract: pure functions, the same in every process and on every rank. A number for a text is random: two texts have
equal ones by chance alone, with a probability of about 1 in 2^61.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import torch

PRIME = (1 << 61) - 1


@lru_cache(maxsize=1 << 16)
def number_of(text: str) -> int:
    """A random number for each text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % PRIME


@lru_cache(maxsize=4096)
def inverse(text: str) -> int:
    """One over the random number of a text."""
    return pow(number_of(text), -1, PRIME)


@lru_cache(maxsize=4096, typed=True)
def fraction(value: float) -> int | None:
    """A Python number in the field; None if it is infinite or NaN."""
    if not math.isfinite(value):
        return None
    numerator, denominator = value.as_integer_ratio()
    return numerator * pow(denominator, -1, PRIME) % PRIME


def taking(parts: object, place: object, dim: object) -> int | None:
    """What taking one of the parts that a tensor was split into multiplies by; None if their sizes are not known."""
    found = _intervals(parts, dim)
    if found is None or not isinstance(place, int) or not -len(found) <= place < len(found):
        return None
    return number_of(found[place])


def joining(parts: object, dim: object) -> list[int]:
    """What putting parts together multiplies each by: one over what taking it multiplies by, times weights that add up
    to 1. So all parts of a whole, in order, are the whole. Empty if their sizes are not known."""
    found = _intervals(parts, dim) or []
    weights = [number_of(f"weight of {one} among {found}") for one in found[1:]]
    weights = [(1 - sum(weights)) % PRIME, *weights]
    return [weight * inverse(one) % PRIME for weight, one in zip(weights, found, strict=False)]


def _intervals(parts: object, dim: object) -> list[str] | None:
    """Where each of `parts` lies in dimension `dim` of the whole that they make, as text."""
    if not isinstance(parts, Sequence) or not isinstance(dim, int):
        return None
    lengths = [one.shape[dim] for one in parts if isinstance(one, torch.Tensor) and -one.dim() <= dim < one.dim()]
    if not lengths or len(lengths) < len(parts) or not all(isinstance(one, int) for one in lengths):
        return None
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    dim %= parts[0].dim()
    return [f"{end - length} to {end} of {ends[-1]} in {dim}" for end, length in zip(ends, lengths, strict=True)]
