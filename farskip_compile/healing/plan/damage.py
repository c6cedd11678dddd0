# SPDX-License-Identifier: Apache-2.0
"""The damage: what it costs to rewire each sub-block alone.

In:    a causal model with trained weights, held-out batches, and the connectivity whose rows are candidates.
Out:   `Damage`: for each row that this connectivity changes, the held-out KL from the original, and the next-token
       loss, when nothing else is changed; and the same for all rows together.
Never: trains; compiles for speed; changes the model. Healing repairs most of the damage, so these figures say which
       rows are the hard ones (the earliest, arXiv 2511.11505, section 5.1, figure 3), not what is left afterwards.

Dynamo's capture costs far more than rewiring, so it is made once for each shape and mode, and every connectivity gets a
copy of the graph (`Variants`), which runs operator by operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import ConfigError, ConnectivityError
from farskip_compile.healing.causal.asking import Asking, Hidden
from farskip_compile.healing.causal.batches import Batch, as_batch
from farskip_compile.healing.causal.evaluate import Evaluation, HeldOut
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher, evaluating
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport

ALL = "all rows"


class Variants:
    """One capture of a model, run under many connectivities.

    Args:
        asking: how the model is asked, which is not compiled.
        configs: by name; `inner` and `schedule` do not matter.

    Raises:
        FarSkipError: at the first call, if the model can't be rewired as one of them asks.
    """

    def __init__(self, asking: Asking, configs: Mapping[str, FarSkipConfig]) -> None:
        self.configs = {name: replace(one, inner="eager", schedule=False, inductor={}) for name, one in configs.items()}
        self.reports: dict[str, CompileReport] = {}
        self._current = next(iter(self.configs))
        self._compiled = asking.of(torch.compile(asking.model, backend=self._receive, fullgraph=True))

    def said(self, name: str, batch: Batch) -> torch.Tensor | Hidden:
        """What the model says of a batch under the configuration called `name`, as the losses take it."""
        self._current = name
        return self._compiled(batch).said

    def _receive(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        functions: dict[str, Callable[..., Any]] = {}

        def function(name: str) -> Callable[..., Any]:
            if name not in functions:
                one = replace(self.configs[name], on_report=lambda report: self.reports.__setitem__(name, report))
                graph = fx.GraphModule(module, copy.deepcopy(module.graph))
                functions[name] = backend(one)(graph, inputs)
            return functions[name]

        function(self._current)  # a refusal is raised by the call that needs it
        return lambda *arguments: function(self._current)(*arguments)


@dataclass(frozen=True)
class RowDamage:
    """One sub-block, rewired alone."""

    row: str
    """Name of the sub-block."""
    layer: int
    """Its layer."""
    left_out: tuple[str, ...]
    """Terms that it no longer reads."""
    held_out: HeldOut
    """With this row rewired and all others as written."""


@dataclass(frozen=True)
class Damage:
    """The damage of each row of a connectivity."""

    connectivity: Connectivity
    """Whose rows were rewired, as it was asked for."""
    layers: LayerRange
    """Likewise."""
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
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> Damage:
    """Rewire one row of `connectivity` after another, and measure what it does to held-out text.

    Args:
        model: as in `self_distill`; not compiled.
        held_out: batches, as in `self_distill`; each is run once for each row.
        connectivity: whose rows are candidates, as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        on_row: called with the number of rows measured so far, and their total.

    Raises:
        FarSkipError: the model can't be rewired to `connectivity`.
        ConfigError: there are no held-out batches.
    """
    evaluation, asking = _evaluation(model, held_out)
    whole = Variants(asking, {ALL: FarSkipConfig(connectivity=connectivity, layers=layers)})
    together = evaluation(partial(whole.said, ALL), model)
    table = whole.reports[ALL].table
    changed = {row: tuple(table.names(row.left_out)) for row in table.rows if row.left_out}
    configs = {row.name: FarSkipConfig(connectivity={row.name: gone}) for row, gone in changed.items()}
    variants = Variants(asking, {"none": FarSkipConfig(connectivity="none"), **configs})
    found: dict[str, HeldOut] = {}
    for number, name in enumerate(variants.configs):
        found[name] = evaluation(partial(variants.said, name), model)
        on_row(number, len(changed))
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
    """What sets of rows do to held-out text when each set is rewired as a whole.

    Args:
        model: as in `measure_damage`.
        held_out: batches, as in `measure_damage`; each is run once for each set.
        damage: of the rows alone.
        sets: names of rows, such as `rows` of the points of a `Front`; an empty one is the model as written.

    Raises:
        ConnectivityError: a name is not a row of `damage`.
        ConfigError: there are no held-out batches.
        FarSkipError: the model can't be rewired to one of the sets.
    """
    evaluation, asking = _evaluation(model, held_out)
    configs = {rows: FarSkipConfig(connectivity=connectivity_of(damage, rows) if rows else "none") for rows in sets}
    variants = Variants(asking, {" ".join(rows): one for rows, one in configs.items()})
    return {rows: evaluation(partial(variants.said, " ".join(rows)), model) for rows in configs}


def connectivity_of(damage: Damage, rows: Iterable[str]) -> Connectivity:
    """The table that rewires just these rows.

    Raises:
        ConnectivityError: one of them is not a row of `damage`.
    """
    chosen, known = list(rows), {row.row: row.left_out for row in damage.rows}
    if unknown := [row for row in chosen if row not in known]:
        raise ConnectivityError(f"no damage is known of {unknown[0]}", way_out=f"one of {', '.join(known)}")
    return {row: known[row] for row in known if row in chosen}


def _evaluation(model: nn.Module, held_out: Iterable[Any]) -> tuple[Evaluation, Asking]:
    ranks = TrainingRanks(model)
    batches = [as_batch(one, ranks.device) for one in held_out]
    if not batches:
        raise ConfigError("there are no held-out batches", way_out="held_out=[...]: the damage is measured on them")
    with evaluating(model):
        asking = Asking(model, batches[0])
    return Evaluation(batches, FrozenTeacher(model, copied=False, asking=asking), ranks), asking
