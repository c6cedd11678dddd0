# SPDX-License-Identifier: Apache-2.0
"""The identity of a compile in Inductor's caches.

Contract: one hash that covers everything that decides the result but is not visible in the code of the graph: the
source of this package, the configuration, the hardware profile, whether products may use TF32 (by which they are
estimated), the recompute tags of opened checkpoints, and which waits are left to another graph (metadata, which the
cache keys ignore: without the tags, a model with checkpointing and one without would share an artifact).
`inductor_passes` puts it into the keys of the FX-graph cache and of the AOTAutograd cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from torch import fx

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.costs.operators import tf32_allowed
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.passes.boundary.depart import crosses


def identity_of(
    config: FarSkipConfig, module: fx.GraphModule, profile: HardwareProfile | None, around: object = None
) -> str:
    """Return a hash of everything that decides the result of a compile and is not visible in the code of its graph.

    Args:
        config: the configuration.
        module: the graph.
        profile: the hardware profile, if there is one.
        around: see `make_plan`.
    """
    tags = [(node.name, str(node.meta["recompute"])) for node in module.graph.nodes if "recompute" in node.meta]
    figures = profile.to_json() if profile is not None else None
    crossing = [(node.name, found) for node in module.graph.nodes if (found := crosses(node)) is not None]
    options = json.dumps(config.to_json(), sort_keys=True)
    parts = [source_hash(), options, json.dumps(tags), json.dumps(crossing), json.dumps(figures), str(around)]
    parts.append(f"tf32={tf32_allowed()}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def source_hash() -> str:
    """Return a hash of every source file of this package, its passes and hardware profiles included."""
    import farskip_compile.passes

    digest = hashlib.sha256()
    for package in (farskip_compile, farskip_compile.passes):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for kind in ("*.py", "*.json") for path in root.rglob(kind)):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
