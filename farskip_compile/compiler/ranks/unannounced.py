# SPDX-License-Identifier: Apache-2.0
"""The comparison across ranks for graphs without an announcement, at the first run of each compile.

Contract: for graphs that are not scheduled (`schedule=False`, or an inner backend other than Inductor), into which no
pass writes an announcement (`ranks.announce`). The options are compared, and the collectives that are visible in
Dynamo's forward graph, in its order. Collectives inside an `autograd.Function`, of DTensor and of the backward graph
are not visible there. After its first run a graph costs a few look-ups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.compiler.ranks.agree import check_across_ranks, check_once
from farskip_compile.compiler.ranks.compiles import Frame
from farskip_compile.records.announcement import LaunchSizes

PHASE = "captured"


def check_of_captured(
    orders: Mapping[str, list[str]], sizes: Mapping[str, LaunchSizes], common: Mapping[str, Any]
) -> Callable[[Frame], None]:
    """Return a function that compares `orders`, `sizes` and `common` across ranks, once in each epoch of its frame."""
    text = json.dumps([PHASE, orders, sizes, common], sort_keys=True)

    def check(frame: Frame) -> None:
        if not frame.knows(text):
            check_once(frame, text, lambda: check_across_ranks(orders, PHASE, common, sizes, frame))

    return check
