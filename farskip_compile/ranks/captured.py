# SPDX-License-Identifier: Apache-2.0
"""A graph without an announcement compares its collectives across ranks all the same, at its first run.

Contract: for graphs that are not scheduled (`schedule=False`, or an inner backend other than Inductor), into which no
pass writes an announcement (`ranks.announce`). What Dynamo has captured is compared, in its order: the options and the
collectives of the forward graph that are visible there. Those inside an `autograd.Function`, those that DTensor makes
and those of the backward graph are not. After its first run a graph costs the test of a flag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.ranks.agree import check_across_ranks, check_once
from farskip_compile.ranks.announce import Sizes

PHASE = "captured"


def checked_at_first_run(
    compiled: Callable[..., Any], orders: Mapping[str, list[str]], sizes: Mapping[str, Sizes], common: Mapping[str, Any]
) -> Callable[..., Any]:
    """`compiled`, which compares `orders`, `sizes` (see `ranks.announce`) and `common` across ranks before its first
    run."""
    if not orders:
        return compiled
    text = json.dumps([PHASE, orders, sizes, common], sort_keys=True)
    unchecked = True

    def run(*args: Any) -> Any:
        nonlocal unchecked
        if unchecked:
            check_once(text, lambda: check_across_ranks(orders, PHASE, common, sizes))
            unchecked = False
        return compiled(*args)

    return run
