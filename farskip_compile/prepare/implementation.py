"""Choose an experts implementation that captures, for experts that `transformers` dispatches by configuration.

Contract: a model comes in, the changes go out. Only experts modules that carry the marks of transformers'
`use_experts_implementation` are considered, and only the configuration objects that they dispatch on are written, so
nested models and wrappers of several models are treated alike. An implementation that captures is left alone.

    "eager"        loops over the experts that were hit: a loop whose length depends on data can't be a graph
    "grouped_mm"   captures; computes in bfloat16, float16 and float32
    "batched_mm"   captures, in any dtype; for float64, where grouped_mm has no kernel
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from farskip_compile.prepare.changes import Change, named

GROUPED = "grouped_mm"
BATCHED = "batched_mm"
MARKS = ("config", "has_gate", "has_bias", "is_transposed", "_is_expert_parallel")
"""What `use_experts_implementation` sets on each module."""
MARK = "_replaces_experts_loop"
"""On forwards that `loops` has set."""
WHY_LOOP = "the loop over the experts that were hit depends on data and can't be captured"
WHY_DOUBLE = "grouped_mm has no kernel for float64"


def is_dispatched(module: nn.Module) -> bool:
    """Whether transformers picks this module's forward by its configuration."""
    return (
        all(hasattr(module, mark) for mark in MARKS)
        and hasattr(module.config, "_experts_implementation")
        and not hasattr(module.forward, MARK)
    )


def float_dtype(module: nn.Module) -> torch.dtype | None:
    """The type of the first parameter that is a floating-point number of 16 bits or more."""
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() > 1)
    return next(dtypes, None)


def choose_implementation(model: nn.Module) -> list[Change]:
    """Set the implementation of each configuration that dispatches to one that does not capture."""
    experts: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if is_dispatched(module):
            experts.setdefault(id(module.config), []).append((name, module))
    changes = []
    for group in experts.values():
        module, dtypes = group[0][1], {float_dtype(m) for _, m in group}
        config: Any = module.config
        current = config._experts_implementation
        double = torch.float64 in dtypes
        if None in dtypes or not (current in ("eager", None) or (current == GROUPED and double)):
            continue
        wanted = BATCHED if double else GROUPED
        _assign(config, wanted)
        changes.append(
            Change(
                what=f"experts implementation of {named([name for name, _ in group])}",
                before=str(current),
                after=wanted,
                why=WHY_DOUBLE if current == GROUPED else WHY_LOOP,
                restore=lambda config=config, current=current: _assign(config, current),  # type: ignore[misc]
            )
        )
    return changes


def _assign(config: Any, implementation: str | None) -> None:
    # a dictionary names this configuration alone; a string would also reach the ones nested in it
    config._experts_implementation = {"": implementation}
