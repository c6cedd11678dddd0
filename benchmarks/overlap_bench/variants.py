"""Makes the variants that `names.py` lists.

Contract: all variants of a rank have equal weights. Those that differ only in the compiler share one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile.costs import HardwareProfile
from farskip_compile.errors import FarSkipError
from farskip_compile.models import Decoder, FarSkipForm, OverlappedForm, ParallelConfig, build
from overlap_bench.names import COMPUTE, EAGER, HAND, OURS, PLAIN, PROFILED
from overlap_bench.own_overlap import options_for
from overlap_bench.steps import Variant


def make_model(settings: Mapping[str, Any], group: dist.ProcessGroup) -> Decoder:
    """The model of a cell, its matrices or experts spread over `group`."""
    capacity = settings["capacity_factor"]
    mode = "dropless" if capacity is None else "padded"
    where = {"tp_group" if settings["tensor_parallel"] else "ep_group": group}
    parallel = ParallelConfig(**where, ep_mode=mode, capacity_factor=capacity)  # type: ignore[arg-type]
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["overrides"].items()}
    return build(settings["model"], seed=0, parallel=parallel, **overrides)


class Variants:
    """Makes the variants of a cell.

    Args:
        settings: of the cell.
        group: all ranks.
    """

    def __init__(self, settings: Mapping[str, Any], group: dist.ProcessGroup) -> None:
        self._settings = settings
        self._group = group
        self.model = make_model(settings, group)
        self.missing: dict[str, str] = {}
        """Variants that can't be made, and why."""

    def fixed(self) -> list[Variant]:
        """Those that do not depend on the network."""
        made = [
            Variant(PLAIN, self.model, torch.compile(self.model, fullgraph=True)),
            Variant(HAND, self.model, torch.compile(FarSkipForm(self.model), fullgraph=True)),
        ]
        model = make_model(self._settings, self._group)  # its own: the form may install hooks
        try:
            made.append(Variant(EAGER, model, OverlappedForm(model)))
        except FarSkipError as error:
            self.missing[EAGER] = str(error)
        return made

    def profiled(self, profile: HardwareProfile, options: Mapping[str, Any]) -> list[Variant]:
        """Those that are scheduled by `profile`; `options` are further ones of our backend."""
        return [Variant(name, self.model, self._profiled(name, profile, options)) for name in PROFILED]

    def _profiled(self, name: str, profile: HardwareProfile, options: Mapping[str, Any]) -> Callable[..., torch.Tensor]:
        if name in OURS:
            ours = {**options, "connectivity": name, "profile": profile}
            return torch.compile(self.model, backend="farskip", fullgraph=True, options=ours)
        theirs = options_for(name, profile, options.get("load_imbalance", 1.0))
        return torch.compile(self.model, fullgraph=True, options=theirs)


def compute_alone(settings: Mapping[str, Any], group: dist.ProcessGroup) -> Variant:
    """The hand-written form, compiled by Inductor, over a group that sends nothing."""
    model = make_model(settings, group)
    return Variant(COMPUTE, model, torch.compile(FarSkipForm(model), fullgraph=True))
