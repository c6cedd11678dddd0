# SPDX-License-Identifier: Apache-2.0
"""The damage by row, and which rows to rewire.

In:    the model and held-out text by which weights are chosen; settings; for `budget` and `free` a hardware profile,
       and the checkpoint's architecture in parallel form, on fake ranks.
Out:   plain data: damage of each row alone and of all; the rows that are rewired.
Never: rewires other rows than asked because a choice failed: that is an error.

`budget`: most communication hidden for at most that damage, summed over rows. `free`: least damage for that share of
what all rows free (`farskip_compile.healing.plan`). The figures are from before any healing: with the fold less damage
remains, and healing repairs most of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.healing.causal.evaluate import HeldOut
from farskip_compile.healing.heal.forecast import scenario_of
from farskip_compile.healing.heal.material import Material
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.healing.plan import Damage, connectivity_of, find_front, measure_damage
from farskip_compile.healing.plan.damage import RowDamage
from farskip_compile.measure.simulate.rank_model import rank_model
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

MEMORY_INCREASE = 0.5
"""What is in flight may take so much more memory, in the orders that are estimated."""


def damage_of(
    material: Material, settings: HealSettings, on_row: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """What each row does, when it is rewired alone.

    Raises:
        FarSkipError: the model can't be rewired as asked.
    """
    found = measure_damage(
        material.model,
        material.choosing.batches,
        connectivity=settings.connectivity,
        layers=settings.layers,
        on_row=on_row,
    )
    return {
        "original": found.original.figures,
        "together": found.together.figures,
        "rows": [
            {"row": one.row, "layer": one.layer, "left_out": list(one.left_out), **one.held_out.figures}
            for one in found.rows
        ],
    }


def choose_rows(damage: Mapping[str, Any], settings: HealSettings) -> dict[str, Any]:
    """Which rows are rewired; all of them unless a choice was asked for.

    Raises:
        ConfigError: none would be rewired, or the parallel form can't be estimated.
    """
    every = [one["row"] for one in damage["rows"]]
    if not settings.chooses_rows:
        return {"rows": every, "of": len(every), "connectivity": settings.connectivity}
    known = _damage(damage, settings)
    try:
        front = _front(known, settings)
    except ConfigError:
        raise
    except Exception as error:  # any: the model's own code runs on fake tensors
        reason = error.reason if isinstance(error, FarSkipError) else str(error).splitlines()[0]
        raise ConfigError(
            f"what rewiring hides can't be estimated for this model: {type(error).__name__}: {reason}",
            way_out="without --budget and --free: --connectivity, --layers A:B",
        ) from error
    point = front.for_share(settings.free) if settings.free is not None else front.for_budget(settings.budget or 0.0)
    if not point.rows:
        least = min(one["kl"] for one in damage["rows"])
        raise ConfigError(
            f"no row that hides anything does as little damage as {settings.budget}; the least is {least:.4g}",
            way_out="a larger --budget",
        )
    return {
        "rows": list(point.rows),
        "of": len(every),
        "connectivity": {row: list(gone) for row, gone in _table(connectivity_of(known, point.rows)).items()},
        "damage": point.damage,
        "freed": front.freed(point),
        "hidden": point.exposure.hidden,
        "estimates": len(front.points),
    }


def chosen_connectivity(plan: Mapping[str, Any], settings: HealSettings) -> tuple[Connectivity, LayerRange]:
    """What `choose_rows` found, as `self_distill` takes it."""
    if isinstance(plan["connectivity"], str):
        return settings.connectivity, settings.layers
    return {row: tuple(gone) for row, gone in plan["connectivity"].items()}, None


def _table(connectivity: Connectivity) -> Mapping[str, tuple[str, ...]]:
    assert not isinstance(connectivity, str)
    return {row: tuple(gone) for row, gone in connectivity.items()}


def _front(damage: Damage, settings: HealSettings) -> Any:
    scenario = scenario_of(settings)
    with fake_ranks(scenario.ranks), warnings.catch_warnings(action="ignore"):
        model = rank_model(scenario)
        config = FarSkipConfig(profile=scenario.profile, memory_increase=MEMORY_INCREASE)
        with model.mode:
            return find_front(model.module, (), damage, kwargs=model.kwargs, config=config, backward=scenario.trains)


def _damage(found: Mapping[str, Any], settings: HealSettings) -> Damage:
    """From plain data."""

    def held_out(numbers: Mapping[str, Any]) -> HeldOut:
        return HeldOut(**{name: numbers[name] for name in ("loss", "kl", "top1")})

    return Damage(
        settings.connectivity,
        settings.layers,
        held_out(found["original"]),
        tuple(RowDamage(one["row"], one["layer"], tuple(one["left_out"]), held_out(one)) for one in found["rows"]),
        held_out(found["together"]),
    )
