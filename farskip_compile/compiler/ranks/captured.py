# SPDX-License-Identifier: Apache-2.0
"""A graph without an announcement compares its collectives across ranks all the same, at the first run of each compile.

Contract: for graphs that are not scheduled (`schedule=False`, or an inner backend other than Inductor), into which no
pass writes an announcement (`ranks.announce`). What Dynamo has captured is compared, in its order: the options and the
collectives of the forward graph that are visible there. Those inside an `autograd.Function`, those that DTensor makes
and those of the backward graph are not. After its first run a graph costs a few look-ups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.compiler.ranks.agree import check_across_ranks, check_once
from farskip_compile.compiler.ranks.compiles import Frame
from farskip_compile.records.announcement import LaunchSizes

PHASE = "captured"


def check_of(
    orders: Mapping[str, list[str]], sizes: Mapping[str, LaunchSizes], common: Mapping[str, Any]
) -> Callable[[Frame], None]:
    """Return what compares `orders`, `sizes` (see `ranks.announce`) and `common` across ranks, once in each epoch of
    the frame that it is given."""
    text = json.dumps([PHASE, orders, sizes, common], sort_keys=True)

    def check(frame: Frame) -> None:
        if not frame.knows(text):
            check_once(frame, text, lambda: check_across_ranks(orders, PHASE, common, sizes, frame))

    return check
