# SPDX-License-Identifier: Apache-2.0
"""The autocast that is on; a part of `_compat`.

Checked by running on torch 2.13.0.
"""

from __future__ import annotations

import torch
from torch import fx

NO_DATA = ("meta",)


def ambient_autocast(module: fx.GraphModule) -> tuple[str, torch.dtype] | None:
    """Device type and type of the autocast that a graph will run under; None if there is none."""
    for node in module.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.device.type not in NO_DATA:
            device = value.device.type
            return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
    return None
