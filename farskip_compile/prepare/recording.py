"""Install transformers' hooks for router logits and hidden states before a graph is captured.

Contract: in comes a model, out come the changes. transformers installs these hooks in the first call that asks for
`output_router_logits` or the like, under a lock, which can't be captured. Here the same function installs them
without a call. They do nothing until outputs are asked for, so they are installed whether or not the configuration
asks: `labels=...` with `output_router_logits=True` needs them too.

transformers installs hooks from the outermost model that records; a model in it must not be visited twice, or each
output would be recorded twice. So a model with one in it that has its hooks already is not touched itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from farskip_compile._compat.modules import forward_hooks
from farskip_compile.prepare.changes import Change

INSTALLED = "_output_capturing_hooks_installed"
RECORDABLE = "_can_record_outputs"


def install_recording(model: nn.Module) -> list[Change]:
    """Install the hooks of each outermost `PreTrainedModel`."""
    from transformers import PreTrainedModel

    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # versions that record in another way
        return []
    hooks_before = _hooks(model)
    flags_before = {m for m in model.modules() if hasattr(m, INSTALLED)}
    recorded: set[str] = set()

    def visit(module: nn.Module) -> None:
        inside = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
        if isinstance(module, PreTrainedModel):
            if getattr(module, INSTALLED, False):
                return
            outputs = {name for m in inside for name in getattr(m, RECORDABLE, None) or ()}
            if not any(getattr(m, INSTALLED, False) for m in inside):
                if outputs:
                    maybe_install_capturing_hooks(module)
                    recorded.update(outputs)
                return
        for child in module.children():
            visit(child)

    visit(model)
    if not recorded:
        return []

    def restore() -> None:
        for hooks, key in _hooks(model) - hooks_before:
            for part in model.modules():
                if id(part) == hooks:
                    forward_hooks(part).pop(key, None)
        for part in model.modules():
            if part not in flags_before and hasattr(part, INSTALLED):
                delattr(part, INSTALLED)

    return [
        Change(
            what=f"hooks that record {', '.join(sorted(recorded))}",
            before="installed by the first call that asks for them",
            after="installed",
            why="that call takes a lock, which can't be captured",
            restore=restore,
        )
    ]


def _hooks(model: nn.Module) -> set[tuple[int, Any]]:
    return {(id(module), key) for module in model.modules() for key in forward_hooks(module)}
