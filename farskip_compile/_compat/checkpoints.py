# SPDX-License-Identifier: Apache-2.0
"""Activation checkpoints whose body writes to Python objects, as the attention of transformers 5.25 sets a context.

Contract: Dynamo ends its graph at such a checkpoint, unless `skip_fwd_side_effects_in_bwd_under_checkpoint` is set.
Where it traces for one of the backends that `wanted` accepts, the checkpoint stays in the graph without that setting.
The write happens once for each call, in forward; recomputation repeats the traced operators and not the write.
Checked by running on torch 2.13.0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch._dynamo.variables.higher_order_ops import CheckpointHigherOrderVariable

from farskip_compile._compat.reached import Compiler, tracing_for


def trace_checkpoints_with_side_effects(wanted: Callable[[Compiler], bool]) -> None:
    """Keep checkpoints with side effects in the graphs of the backends that `wanted` returns True for."""
    initialize = CheckpointHigherOrderVariable.__init__

    @functools.wraps(initialize)
    def initialize_for_backend(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        compiler = tracing_for()
        self.allow_side_effects = self.allow_side_effects or (compiler is not None and wanted(compiler))

    CheckpointHigherOrderVariable.__init__ = initialize_for_backend  # type: ignore[method-assign]
