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
from farskip_compile.errors import ConfigError
from farskip_compile.passes.connectivity import Connectivity, LayerRange
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
    ranks = Ranks(model)
    batches = [as_batch(one, ranks.device) for one in held_out]
    if not batches:
        raise ConfigError("there are no held-out batches", way_out="held_out=[...]: the damage is measured on them")
    evaluation = Evaluation(batches, FrozenTeacher(model, copied=False), ranks)
    whole = Variants(model, {ALL: FarSkipConfig(connectivity=connectivity, layers=layers)})
    together = evaluation(lambda batch: whole.logits(ALL, batch), model)
    changed = [row for row in whole.reports[ALL].rows if row.left_out]
    wishes = {row.name: FarSkipConfig(connectivity={row.name: row.left_out}) for row in changed}
    variants = Variants(model, {"none": FarSkipConfig(connectivity="none"), **wishes})
    found: dict[str, HeldOut] = {}
    for number, name in enumerate(variants.wishes):
        found[name] = evaluation(_under(variants, name), model)
        told(number, len(changed))
    return Damage(
        connectivity,
        layers,
        found["none"],
        tuple(RowDamage(row.name, row.layer, tuple(row.left_out), found[row.name]) for row in changed),
        together,
    )


def _under(variants: Variants, name: str) -> Callable[[Batch], torch.Tensor]:
    return lambda batch: variants.logits(name, batch)
