# SPDX-License-Identifier: Apache-2.0
"""The profile of the device that a graph is for.

In:    a graph with fake values. The device may be absent: a plan can be made on a machine without it.
Out:   the shipped profile; without a name of the device, the stand-in for its kind, with a warning.
Never: starts a device, or measures.
"""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.costs.profile import HardwareProfile, default_profile
from farskip_compile.passes.graph import ops

NOT_AN_ACCELERATOR = ("cpu", "meta")
"""Models make tensors on `meta` to ask for a shape or a stride."""


def profile_of(graph: fx.Graph) -> HardwareProfile:
    """Return the profile of the first accelerator that a value of `graph` is on, or of the CPU."""
    devices = (value.device for node in graph.nodes if (value := ops.tensor(node)) is not None)
    device = next((device for device in devices if device.type not in NOT_AN_ACCELERATOR), torch.device("cpu"))
    is_here = device.type == "cuda" and torch.cuda.is_available()
    return default_profile(device.type, torch.cuda.get_device_name(device) if is_here else "")
