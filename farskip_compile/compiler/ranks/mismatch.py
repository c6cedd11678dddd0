# SPDX-License-Identifier: Apache-2.0
"""The errors for ranks that would launch different collectives, or that have compiled with different options.

Contract: an order is JSON: the phase, the launches, the options that the ranks must have in common, and the sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from farskip_compile.compiler.ranks.common_options import differences
from farskip_compile.errors import OptionsMismatchError, OrderMismatchError
from farskip_compile.text_utils import amount


def mismatch(group: str, me: int, order: str, rank: int, their_order: str) -> OrderMismatchError:
    """Return the error of rank `me`, which would run `order` on a process group while `rank` runs `their_order`."""
    (*ours, our_common, _), (*theirs, their_common, _) = json.loads(order), json.loads(their_order)
    different = list(differences(our_common, their_common))
    orders = f"rank {me}: {numbered(order, their_order)}\nrank {rank}: {numbered(their_order, order)}"
    if different:
        lines = [
            f"  {name}: rank {me} has {our_value}, rank {rank} has {value}" for name, our_value, value in different
        ]
        return OptionsMismatchError(
            f"ranks {me} and {rank} have compiled different things for process group {group!r}\n"
            + "\n".join(lines if ours == theirs else [*lines, orders]),
            way_out="every rank must compile the same model with the same options, the same hardware profile and the "
            "same versions",
        )
    difference = "different collectives"
    hint = (
        "every rank must compile the same model with the same options, the same hardware profile and the same version "
        "of this package; control flow must not depend on the rank"
    )
    if ours == theirs:
        difference = "collectives of different sizes"
        hint = "every rank must be given inputs of the same size: pad them, or leave the last batch out"
    return OrderMismatchError(
        f"ranks {me} and {rank} would launch {difference} on process group {group!r} and hang\n{orders}", way_out=hint
    )


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return one line for each option that this rank ran with `before` and has changed `now`."""
    return "\n".join(f"  {name}: {new} now, {old} before" for name, old, new in differences(before, now))


def numbered(order: str, other: str | None = None) -> str:
    """Return one line for each launch of `order`; the first one that differs from `other` is marked."""
    phase, launches = _phase_and_launches(order)
    other_phase, other_launches = _phase_and_launches(other) if other is not None else (phase, launches)
    lines = [f"{phase}, {amount(len(launches), 'collective')}"]
    marked = phase != other_phase
    for number, launch in enumerate(launches):
        differs = number >= len(other_launches) or other_launches[number] != launch
        lines.append(f"  {'>' if differs and not marked else ' '} {number}: {launch}")
        marked = marked or differs
    if not marked and len(other_launches) > len(launches):
        lines.append(f"  > {len(launches)}: (nothing)")
    return "\n".join(lines)


def _phase_and_launches(order: str) -> tuple[str, list[str]]:
    """Return the phase, and each launch, with its sizes if they are fixed: `all_reduce sum float32 4x16`."""
    phase, launches, _, sizes = json.loads(order)
    if sizes is None:
        return phase, launches
    lines = []
    for launch, shapes in zip(launches, sizes, strict=True):
        lines.append(" ".join([launch, *("x".join(map(str, shape)) for shape in shapes)]))
    return phase, lines
