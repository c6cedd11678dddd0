# SPDX-License-Identifier: Apache-2.0
"""How Dynamo treats layers that are compiled one by one; a part of `_compat`.

Checked by running on torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch._dynamo.config as dynamo_config


def allow_recompiles(count: int) -> Callable[[], None]:
    """Let Dynamo compile one function at least so often for other arguments; returns what puts the limits back."""
    before = dynamo_config.recompile_limit, dynamo_config.accumulated_recompile_limit
    dynamo_config.recompile_limit = max(before[0], count)
    dynamo_config.accumulated_recompile_limit = max(before[1], count)

    def undo() -> None:
        dynamo_config.recompile_limit, dynamo_config.accumulated_recompile_limit = before

    return undo


def unsplit() -> AbstractContextManager[None]:
    """Inside, Dynamo does not cut graphs into the buckets of an active `DistributedDataParallel`.

    A layer's graph hands over its gradients when the layer is done, which is what the cuts are for.
    """
    context: AbstractContextManager[None] = dynamo_config.patch(optimize_ddp=False)
    return context
