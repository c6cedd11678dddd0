# SPDX-License-Identifier: Apache-2.0
"""How a graph is scheduled: what all ranks know alike before they compile it.

In:    the configuration; a graph from Dynamo, for its device; of a part of a model, what it is run among.
Out:   a `Plan`, or None if nothing is to be scheduled.
Never: measures or communicates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from farskip_compile._compat.distributed import world_group
from farskip_compile.compiler.config import FarSkipConfig, PieceCount, PiecesAlong, resolve
from farskip_compile.costs.device import profile_of
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.passes.graph.declared import Declared
from farskip_compile.passes.schedule.search import MemoryLimits


@dataclass(frozen=True)
class Around:
    """What a part of a model is run among. Equal on all ranks."""

    beside: int = 0
    """Bytes that are alive meanwhile and that its graph does not know of."""
    came: float | None = None
    """Seconds until what came in flight has landed; None: as if it had just been launched."""
    leaves: str = ""
    """Key of what it leaves in flight."""


@dataclass(frozen=True)
class Plan:
    """How to schedule: equal on all ranks."""

    profile: HardwareProfile
    limits: MemoryLimits = field(default_factory=MemoryLimits)
    ep_group: str | None = None
    """Name of the process group that all-to-alls are moved to."""
    imbalance: float = 1.0
    """Rows that the fullest rank gets in a dispatch without drops, over the mean."""
    check_order: bool = True
    """Compare the order of the collectives across ranks at the first run."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """What else all ranks must have in common, see `common_options`; compared with the order."""
    skip: tuple[str, ...] = ()
    """Names of passes to leave out."""
    pieces: PieceCount = 1
    """In how many pieces exchanges are cut."""
    strict: bool = True
    """What can't be cut is an error."""
    pieces_along: PiecesAlong = "auto"
    """What a piece of an exchange without drops is."""
    micro_batches: int = 1
    """In how many parts the batch is cut."""
    around: Around = Around()
    declared: tuple[Declared, ...] = ()
    """What operators were declared to be."""


def make_plan(
    config: FarSkipConfig, module: fx.GraphModule, common: Mapping[str, Any] | None = None, around: Around | None = None
) -> Plan | None:
    """How `config` wants a graph from Dynamo scheduled; None if not at all, or if there is no `torch.distributed`.

    `common` is what all ranks must have in common, but for the profile, which is found here.
    """
    config = resolve(config)
    if not config.schedule or world_group() is None:
        return None
    profile = config.profile if config.profile is not None else profile_of(module.graph)
    around = around or Around()
    limits = MemoryLimits(config.memory_increase, config.in_flight_bytes, around.beside)
    figures = hashlib.sha256(json.dumps(profile.to_json(), sort_keys=True).encode()).hexdigest()[:16]
    common = {**(common or {}), "profile": f"{profile.name} {figures}"}
    return Plan(
        profile,
        limits,
        config.ep_group,
        config.load_imbalance,
        config.check_order,
        common,
        config.disable_passes,
        config.pieces,
        config.strict,
        config.pieces_along,
        config.micro_batches,
        around,
        config.declared,
    )
