# SPDX-License-Identifier: Apache-2.0
"""Of what layers with experts compute: the shares of attention, shared experts and routed experts, measured.

Contract: times the parts of the plain model in eager mode, on a group that replays recorded exchanges; the shares add
up to 1. Every rank makes the same calls. Routed is all of the MoE but its shared experts: the router, the permutations
of rows, and the experts of this rank.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from farskip_compile.models import Decoder
from farskip_compile.models.moe import MoE

REPETITIONS = 3
PARTS = {
    "attention": ("attention", "forward"),
    "shared": ("feed_forward", "shared"),
    "routed": ("feed_forward", "routed"),
}
"""The module of a layer and its method."""


def compute_shares(model: Decoder, step: Callable[[], Any]) -> dict[str, float]:
    """Shares by part, of a `step` of `model` without gradients; empty: no layer has experts."""
    seconds: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for layer in model.layers:
            for part, (module, method) in PARTS.items() if isinstance(layer.feed_forward, MoE) else ():
                owner = getattr(layer, module)
                stack.enter_context(mock.patch.object(owner, method, _timed(getattr(owner, method), part, seconds)))
        step()  # the first one is slower
        seconds.clear()
        for _ in range(REPETITIONS):
            step()
    total = seconds.total()
    return {part: seconds[part] / total for part in PARTS} if total else {}


def _timed(method: Callable[..., Any], part: str, seconds: Counter[str]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = method(*args)
        seconds[part] += time.perf_counter() - start  # type: ignore[assignment]
        return result

    return timed
