# SPDX-License-Identifier: Apache-2.0
"""Recipes: what `self_distill` is called with.

In:    `HealSettings`, the number of targets in the training text, and the rows that are rewired.
Out:   a `DistillConfig`.
Never: depends on the machine, but for `save_every`, which does not decide the result.

    best      fold; KL and a decaying match of the streams, weight 3; learning rate by trial
    default   KL alone; learning rate by trial
    paper     KL alone, the second moment by steps; learning rate 2e-5 (arXiv 2511.11505, section 3.1)

All have small batches (2 sequences unless asked for others), a warm-up of a tenth of the steps and 100 at most, and 20
evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from farskip_compile.base.choices import DistillRecipe
from farskip_compile.healing.distill.config import AUTO, DistillConfig
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "best": {"fold": True, "stream_weight": 3.0, "learning_rate": AUTO},
    "default": {"learning_rate": AUTO},
    "paper": {"recipe": "paper"},
}
EVALUATIONS = 20
WARM_UP = 100
SAVE_SECONDS = 600
"""Between two states, about."""


def options_of(settings: HealSettings) -> dict[str, Any]:
    """What recipe and options say, without what depends on text and rows."""
    found = dict(RECIPES[settings.recipe])
    for name in ("learning_rate", "fold", "stream_weight"):
        if getattr(settings, name) is not None:
            found[name] = getattr(settings, name)
    return {
        **found,
        "accumulate": settings.accumulate,
        "precision": settings.precision,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "options": {"inner": settings.inner},
    }


def steps_for(settings: HealSettings, targets: int, sequences: int) -> int:
    """Optimizer steps.

    Args:
        targets: in the training text.
        sequences: of it.
    """
    wanted = settings.tokens if settings.tokens is not None else targets
    return max(1, round(wanted * sequences / targets / (settings.batch_size * settings.accumulate)))


def config_for(
    settings: HealSettings, steps: int, chosen: tuple[Connectivity, LayerRange], seconds: float | None = None
) -> DistillConfig:
    """The configuration; `seconds`: of a step, as measured; None: not known yet.

    Raises:
        ConfigError: the options do not go together.
    """
    every = max(1, steps // EVALUATIONS)
    save = every if seconds is None else max(1, min(every, math.ceil(SAVE_SECONDS / max(seconds, 1e-6))))
    recipe: DistillRecipe = "paper" if settings.recipe == "paper" else "default"
    return DistillConfig.from_mapping(
        {
            **options_of(settings),
            "recipe": recipe,
            "connectivity": chosen[0],
            "layers": chosen[1],
            "steps": steps,
            "warm_up_steps": min(WARM_UP, steps // 10),
            "evaluate_every": every,
            "patience": None,
            "save_every": save,
            "output": settings.out,
        }
    )
