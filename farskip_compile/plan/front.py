"""The sets of rows of a model that pay: damage from held-out text, gain from the cost model.

In:    the `Damage` of a model's rows, and the model in parallel form, on ranks or `fake_ranks`.
Out:   a `Front`, from which a point is chosen; `connectivity_of(damage, point.rows)` is what `FarSkipConfig`,
       `self_distill` and `describe` take.
Never: takes rows of one model for those of another: the parallel model must have the same rows, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from farskip_compile.config import FarSkipConfig
from farskip_compile.plan.choose import Front, choose
from farskip_compile.plan.damage import Damage, connectivity_of
from farskip_compile.plan.exposure import Estimate, Exposure, with_estimates


def find_front(
    model: nn.Module,
    args: tuple[Any, ...],
    damage: Damage,
    *,
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    backward: bool = False,
    told: Callable[[tuple[str, ...]], None] = lambda rows: None,
) -> Front:
    """Which of the rows to rewire, for any share of the communication or any damage.

    Args:
        model: in parallel form; captured, not run.
        args: example inputs of one rank.
        damage: of the same model, whatever form it was measured in.
        kwargs: example inputs by name.
        config: profile and limits of the scheduler.
        backward: a training step instead of a call without gradients.
        told: called with each set of rows before it is estimated.

    Raises:
        ConnectivityError: the parallel model does not have these rows, or they read something else.
        ConfigError: there is no process group, or the model has no collectives.
    """

    def search(estimate: Estimate) -> Front:
        def of(rows: tuple[str, ...]) -> Exposure:
            told(rows)
            return estimate(connectivity_of(damage, rows) if rows else "none")

        return choose({row.row: row.held_out.kl or 0.0 for row in damage.rows}, of)

    return with_estimates(model, args, search, kwargs=kwargs, config=config, backward=backward)
