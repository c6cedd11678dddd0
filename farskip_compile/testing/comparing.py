# SPDX-License-Identifier: Apache-2.0
"""How two results are compared: bit for bit, or relative to the largest entry.

Contract: `differences` gives one `ValueDifference` for each pair of values that do not agree, with a figure by which
the worst can be found. Integers and booleans must be equal; infinities and NaN must stand in the same places, whatever
the tolerance. Bit for bit means equal values (0.0 and -0.0 are), NaN in the same places, and equal types and shapes.
A gradient that cancels out holds rounding and nothing else, so gradients are measured by all of them together
(`scale_of_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

INFINITE = float("inf")
SMALLEST = 1e-300
VANISHING = 1e-3
"""A gradient below this part of the largest one of all is compared as if it were as large."""


@dataclass(frozen=True)
class ValueDifference:
    """Two values under one name that do not agree."""

    name: str
    by: float
    """Relative to the largest entry; infinite if they can't be close: other shapes, types, integers, NaN."""
    detail: str

    def __str__(self) -> str:
        figure = f" by {self.by:.2g} of the largest entry" if self.by < INFINITE else ""
        return f"{self.name} differs{figure}: {self.detail}"


def relative_difference(left: torch.Tensor, right: torch.Tensor, least_scale: float = 0.0) -> float:
    """Largest absolute difference over the largest absolute entry.

    Args:
        left: a tensor.
        right: another one. Infinite if it has another shape, or NaN or infinities in other places.
        least_scale: what to divide by at least, for tensors that vanish against others.
    """
    left, right = (_comparable(one if one.is_complex() else one.double()) for one in (left, right))
    if left.shape != right.shape:
        return INFINITE
    finite = left.isfinite() & right.isfinite()
    same = finite | (left == right) | (left.isnan() & right.isnan())
    if not bool(same.all()):
        return INFINITE
    left, right = left.masked_fill(~finite, 0), right.masked_fill(~finite, 0)
    if left.numel() == 0:
        return 0.0
    scale = max(left.abs().max().item(), right.abs().max().item(), least_scale, SMALLEST)
    return (left - right).abs().max().item() / scale


def scale_of_gradients(gradients: Iterable[torch.Tensor]) -> float:
    """The `least_scale` by which the gradients of one model are compared: one that vanishes against the others (keys
    and queries of equal tokens) is a sum whose terms cancel, and has their rounding."""
    finite = (one[one.isfinite()] for one in map(_comparable, gradients))
    return VANISHING * max((one.abs().max().item() for one in finite if one.numel()), default=0.0)


def differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float | None = None, least_scale: float = 0.0
) -> list[ValueDifference]:
    """What does not agree of values by name, the worst first: by more than `tolerance`; None: bit for bit."""
    result = []
    for name in {**found, **wanted}:
        if name not in wanted or name not in found:
            result.append(
                ValueDifference(name, INFINITE, f"only the {'model' if name in found else 'reference'} has it")
            )
        elif (difference := _difference(name, found[name], wanted[name], tolerance, least_scale)) is not None:
            result.append(difference)
    return sorted(result, key=lambda one: -one.by)


def _difference(
    name: str, found: Any, wanted: Any, tolerance: float | None, least_scale: float
) -> ValueDifference | None:
    if isinstance(found, float) and isinstance(wanted, float):
        found, wanted = (torch.tensor(value, dtype=torch.float64) for value in (found, wanted))
    if isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return _tensor_difference(name, found, wanted, tolerance, least_scale)
    if type(found) is not type(wanted):
        return ValueDifference(name, INFINITE, f"{type(found).__name__} against {type(wanted).__name__}")
    if hasattr(found, "__dict__") or callable(found):
        return None if found is wanted else ValueDifference(name, INFINITE, f"{type(found).__name__} can't be compared")
    return None if found == wanted else ValueDifference(name, INFINITE, f"{found!r} against {wanted!r}"[:200])


def _tensor_difference(
    name: str, found: torch.Tensor, wanted: torch.Tensor, tolerance: float | None, least_scale: float
) -> ValueDifference | None:
    found, wanted = local(found), local(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        kinds = [f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in (found, wanted)]
        return ValueDifference(name, INFINITE, " against ".join(kinds))
    inexact = found.is_floating_point() or found.is_complex()
    a, b = _comparable(found), _comparable(wanted)
    unequal = (a != b) & ~(a.isnan() & b.isnan()) if inexact else a != b
    if not bool(unequal.any()):
        return None
    by = relative_difference(found, wanted, least_scale) if inexact else INFINITE
    if inexact and tolerance is not None and by <= tolerance:
        return None
    if inexact:  # show where the difference is largest, or not a number
        distance = (a - b).abs().nan_to_num(nan=INFINITE).masked_fill(~unequal, -1.0)
        worst = distance == distance.max()
    else:
        worst = unequal
    place = tuple(int(index) for index in worst.nonzero()[0])
    count = f"{int(unequal.sum())} of {unequal.numel()} entries"
    return ValueDifference(name, by, f"{count}, at {place} {a[place].item()!r} against {b[place].item()!r}")


def local(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor, or the tensor itself."""
    value = value.detach()
    return value.to_local() if hasattr(value, "to_local") else value


def _comparable(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, in the widest type of its kind."""
    value = local(value).cpu()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64) if value.is_floating_point() else value
