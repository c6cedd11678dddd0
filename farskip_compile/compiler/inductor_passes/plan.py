# SPDX-License-Identifier: Apache-2.0
"""How a graph is scheduled: everything that all ranks know alike before they compile the graph.

In:    the configuration; a graph from Dynamo, for its device; for a part of a model, what the rest of the model holds.
Out:   a `Plan`, or None if nothing is to be scheduled.
Never: measures or communicates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from farskip_compile._compat.distributed import world_group
from farskip_compile.compiler.config import Resolved
from farskip_compile.costs.device import profile_of
from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.passes.schedule.search import MemoryLimits

UNFUSED = 2.0
"""How much more the memory of the graph may grow than that of its kernels, which have the last word. In a graph, what
fusion will keep out of memory grows too; and kernels that were fused for one order can't take another."""


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """Facts about the rest of the model, for a part of it. Equal on all ranks."""

    bytes_outside: int = 0
    """Bytes that are live while the part runs, and that its graph does not know of."""
    seconds_until_arrival: float | None = None
    """Seconds until the terms that came in flight have landed; None: as if they had just been launched."""
    departure: str = ""
    """The key of the tail that the part leaves in flight."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to schedule a graph. Equal on all ranks."""

    config: Resolved
    """The configuration, without what decides nothing here and can't always be pickled (see `KernelPass`)."""
    profile: HardwareProfile
    """The hardware that costs are estimated for."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Facts that all ranks must have in common (`common_options`); compared with the order of the collectives."""
    context: LayerContext = LayerContext()

    @property
    def limits(self) -> MemoryLimits:
        """The limits on the memory of kernels."""
        config = self.config
        return MemoryLimits(config.memory_increase, config.in_flight_bytes, self.context.bytes_outside)

    @property
    def graph_limits(self) -> MemoryLimits:
        """The limits on the memory of a graph, which is not fused yet."""
        return replace(self.limits, memory_increase=UNFUSED * self.limits.memory_increase)

    def estimates(self, graph: fx.Graph) -> Estimates:
        """Return the estimated costs of the nodes of `graph`."""
        landed = self.context.seconds_until_arrival
        return Estimates(graph, self.profile, self.config.load_imbalance, came=landed)


def profile_to_schedule(config: Resolved, module: fx.GraphModule) -> HardwareProfile | None:
    """Return the hardware profile to schedule `module` for; None if nothing is to be scheduled."""
    if not config.schedule or world_group() is None:
        return None
    return config.profile if config.profile is not None else profile_of(module.graph)


def make_plan(
    config: Resolved,
    module: fx.GraphModule,
    *,
    common: Mapping[str, Any] | None = None,
    context: LayerContext | None = None,
) -> Plan | None:
    """Return how to schedule a graph from Dynamo; None if nothing is to be scheduled.

    Args:
        config: the configuration.
        module: the graph, for its device.
        common: facts that all ranks must have in common, but for the profile, which is added here.
        context: facts about the rest of the model; None: the graph is a whole model.
    """
    profile = profile_to_schedule(config, module)
    if profile is None:
        return None
    figures = hashlib.sha256(json.dumps(profile.to_json(), sort_keys=True).encode()).hexdigest()[:16]
    common = {**(common or {}), "profile": f"{profile.name} {figures}"}
    config = replace(config, on_report=None, inductor={}, manifest=None, kinds={})
    return Plan(config=config, profile=profile, common=common, context=context or LayerContext())
