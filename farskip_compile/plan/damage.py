"""What it costs to rewire each sub-block alone: the damage.

In:    a causal model with trained weights, held-out batches, and the connectivity whose rows are candidates.
Out:   `Damage`: for each row that this connectivity changes, the held-out KL from the original, and the next-token
       loss, when nothing else is changed; and the same for all rows together.
Never: trains; changes the model. Healing repairs most of the damage, so these figures say which rows are the hard ones
       (the earliest, arXiv 2511.11505, section 5.1, figure 3), not what is left after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.config import FarSkipConfig
from farskip_compile.distill.batches import Batch, as_batch
from farskip_compile.distill.evaluate import Evaluation, HeldOut
from farskip_compile.distill.ranks import Ranks
from farskip_compile.distill.teacher import FrozenTeacher
from farskip_compile.errors import ConfigError, ConnectivityError
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.plan.variants import Variants

ALL = "all rows"


@dataclass(frozen=True)
class RowDamage:
    """One sub-block, rewired alone."""

    row: str
    layer: int
    left_out: tuple[str, ...]
    """Terms that it no longer reads."""
    held_out: HeldOut


@dataclass(frozen=True)
class Damage:
    """Of each row of a connectivity."""

    connectivity: Connectivity
    layers: LayerRange
    original: HeldOut
    """Nothing rewired: its KL is 0."""
    rows: tuple[RowDamage, ...]
    """In the order of the model."""
    together: HeldOut
    """All of them rewired."""


def measure_damage(
    model: nn.Module,
    held_out: Iterable[Any],
    *,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Damage:
    """Rewire one row of `connectivity` after another, and see what it does to held-out text.

    Args:
        model: as in `self_distill`; not compiled.
        held_out: batches, as in `self_distill`; each is run once for each row.
        connectivity: whose rows are candidates, as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        told: called with how many rows are measured, and of how many.

    Raises:
        FarSkipError: the model can't be rewired to `connectivity`.
        ConfigError: there are no held-out batches.
    """
    evaluation = _evaluation(model, held_out)
    whole = Variants(model, {ALL: FarSkipConfig(connectivity=connectivity, layers=layers)})
    together = evaluation(lambda batch: whole.logits(ALL, batch), model)
    table = whole.reports[ALL].table
    changed = {row: tuple(table.names(row.left_out)) for row in table.rows if row.left_out}
    wishes = {row.name: FarSkipConfig(connectivity={row.name: gone}) for row, gone in changed.items()}
    variants = Variants(model, {"none": FarSkipConfig(connectivity="none"), **wishes})
    found: dict[str, HeldOut] = {}
    for number, name in enumerate(variants.wishes):
        found[name] = evaluation(_under(variants, name), model)
        told(number, len(changed))
    return Damage(
        connectivity,
        layers,
        found["none"],
        tuple(RowDamage(row.name, row.layer, gone, found[row.name]) for row, gone in changed.items()),
        together,
    )


def measure_together(
    model: nn.Module, held_out: Iterable[Any], damage: Damage, sets: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], HeldOut]:
    """What sets of rows do to held-out text when each is rewired as a whole.

    Args:
        model: as in `measure_damage`.
        held_out: batches.
        damage: of the model.
        sets: of its rows, such as those of the points of a `Front`.
    """
    evaluation = _evaluation(model, held_out)
    wishes = {rows: FarSkipConfig(connectivity=connectivity_of(damage, rows) if rows else "none") for rows in sets}
    variants = Variants(model, {" ".join(rows): one for rows, one in wishes.items()})
    return {rows: evaluation(_under(variants, " ".join(rows)), model) for rows in wishes}


def connectivity_of(damage: Damage, rows: Iterable[str]) -> Connectivity:
    """The table that rewires just these rows.

    Raises:
        ConnectivityError: one of them is not a row of `damage`.
    """
    chosen, known = list(rows), {row.row: row.left_out for row in damage.rows}
    if unknown := [row for row in chosen if row not in known]:
        raise ConnectivityError(f"no damage is known of {unknown[0]}", way_out=f"one of {', '.join(known)}")
    return {row: known[row] for row in known if row in chosen}


def _evaluation(model: nn.Module, held_out: Iterable[Any]) -> Evaluation:
    ranks = Ranks(model)
    batches = [as_batch(one, ranks.device) for one in held_out]
    if not batches:
        raise ConfigError("there are no held-out batches", way_out="held_out=[...]: the damage is measured on them")
    return Evaluation(batches, FrozenTeacher(model, copied=False), ranks)


def _under(variants: Variants, name: str) -> Callable[[Batch], torch.Tensor]:
    return lambda batch: variants.logits(name, batch)
