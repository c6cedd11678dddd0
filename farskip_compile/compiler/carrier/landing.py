# SPDX-License-Identifier: Apache-2.0
"""The operator `farskip::land_if_recomputed`, which waits for collectives that a recomputed layer returns in flight.

Contract: `torch.utils.checkpoint` runs a layer's forward again during the backward pass, and drops its outputs, so
nobody else would wait for a collective that is launched there. In a forward pass the operator does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from farskip_compile._compat.collectives import wait_tensor
from farskip_compile._compat.tensors import in_backward
from farskip_compile.passes.schedule.in_flight import land_if_recomputed
from farskip_compile.records.announcement import LIBRARY

LIBRARY.define("land_if_recomputed(Tensor[] parts) -> ()")


def _land(parts: Sequence[torch.Tensor]) -> None:
    if in_backward():
        for part in parts:
            wait_tensor(part)


LIBRARY.impl("land_if_recomputed", _land, "CompositeExplicitAutograd")
torch.library.register_fake("farskip::land_if_recomputed", lambda parts: None, lib=LIBRARY)
torch.fx.node.has_side_effect(land_if_recomputed())
