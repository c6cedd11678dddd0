"""Make Inductor's caches tell our compiles apart.

Contract: adds one pass to Inductor's options that changes no graph. Its `uuid` enters the keys of the FX-graph cache
and of the AOTAutograd cache, and covers everything that decides the result but is not visible in the graph's code: the
source of this package, the configuration, and the recompute tags of opened checkpoints (tags are metadata, which the
keys ignore: without this, a model with and one without checkpointing would share an artifact).
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import fx

from farskip_compile._compat import CustomGraphPass, inductor_config
from farskip_compile.config import FarSkipConfig

OPTION = "post_grad_custom_post_pass"


class CacheIdentity(CustomGraphPass):
    """A pass that does nothing but carry an identity; calls the user's own pass, if there is one.

    Args:
        identity: hash of all that is not visible in the graph.
        inner: the user's pass in the same place.
    """

    def __init__(self, identity: str, inner: Any = None) -> None:
        self.identity = identity
        self.inner = inner

    def __call__(self, graph: fx.Graph) -> None:
        """Run the user's pass."""
        for one in self.inner if isinstance(self.inner, list | tuple) else [self.inner]:
            if one is not None:
                one(graph)

    def uuid(self) -> Any:
        """Identity of both passes; None (no caching) if the user's pass has none."""
        inner = self.inner if isinstance(self.inner, list | tuple) else [self.inner]
        identities = [one.uuid() if isinstance(one, CustomGraphPass) else None for one in inner if one is not None]
        return None if None in identities else (self.identity, *map(str, identities))


def with_identity(options: dict[str, Any], config: FarSkipConfig, module: fx.GraphModule) -> dict[str, Any]:
    """`options` for Inductor with the identity of this compile added."""
    tags = [(node.name, str(node.meta["recompute"])) for node in module.graph.nodes if "recompute" in node.meta]
    parts = [source_hash(), json.dumps(config.to_json(), sort_keys=True), json.dumps(tags)]
    identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    theirs = options.get(OPTION, getattr(inductor_config, OPTION))
    return {**options, OPTION: CacheIdentity(identity, theirs)}


@functools.cache
def source_hash() -> str:
    """Hash of every source file of this package, its passes and hardware profiles included."""
    import farskip_compile.passes

    digest = hashlib.sha256()
    for package in (farskip_compile, farskip_compile.passes):
        root = Path(str(package.__file__)).parent
        for path in sorted(path for kind in ("*.py", "*.json") for path in root.rglob(kind)):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
