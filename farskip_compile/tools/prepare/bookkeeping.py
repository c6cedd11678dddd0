# SPDX-License-Identifier: Apache-2.0
"""Two things of transformers that get in the way of capture: hooks that record outputs, and compiling decode steps.

Contract: a model comes in, the changes go out.

Hooks for router logits and hidden states are installed in the first call that asks for `output_router_logits` or the
like, under a lock, which can't be captured. Here the same function installs them without a call. They do nothing until
outputs are requested, so they are installed whether or not the configuration asks: `labels=...` with
`output_router_logits=True` needs them too. transformers installs hooks from the outermost model that records; a model
in it must not be visited twice, or each output would be recorded twice. So a model that contains one with hooks is not
touched itself.

With a static cache on an accelerator, `generate` puts decode steps, and only these, through a `torch.compile` of its
own, with Inductor and other options. A model or a forward that is compiled inside it keeps its backend (seen with torch
2.13), but nothing guarantees which of two nested compiles wins, and if it were the outer one, decode steps of the
original model would follow a prefill of the rewired one. So `disable_compile`, transformers' switch for that, is set in
the generation configuration; configurations passed to `generate` inherit it unless they set it themselves.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from farskip_compile._compat.modules import forward_hooks
from farskip_compile.compiler.guard.generation import check_generate
from farskip_compile.tools.prepare.changes import Change

INSTALLED = "_output_capturing_hooks_installed"
RECORDABLE = "_can_record_outputs"


def install_recording(model: nn.Module) -> list[Change]:
    """Install the hooks of each outermost `PreTrainedModel`."""
    from transformers import PreTrainedModel

    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # versions that record in another way
        return []
    hooks_before = {(id(module), key) for module in model.modules() for key in forward_hooks(module)}
    flags_before = {m for m in model.modules() if hasattr(m, INSTALLED)}
    recorded: set[str] = set()

    def install_outermost(module: nn.Module) -> None:
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
            install_outermost(child)

    install_outermost(model)
    if not recorded:
        return []

    def restore() -> None:
        for part in model.modules():
            for key in [key for key in forward_hooks(part) if (id(part), key) not in hooks_before]:
                forward_hooks(part).pop(key)
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


def keep_generate_from_compiling(model: nn.Module) -> list[Change]:
    """Set `disable_compile` on each model that generates, and let it refuse this backend in a `compile_config`."""
    from transformers import PreTrainedModel

    changes = []
    for name, module in model.named_modules():
        if not (isinstance(module, PreTrainedModel) and module.can_generate()):
            continue
        restore = check_generate(module)
        if restore is not None:
            changes.append(
                Change(
                    what=f"{name + '.' if name else ''}generate",
                    before="with compile_config=CompileConfig(backend='farskip'), it rewires decode steps at most",
                    after="it refuses that",
                    why="the prompt would go through the original wiring",
                    restore=restore,
                )
            )
        config: Any = getattr(module, "generation_config", None)
        if config is None or getattr(config, "disable_compile", True):
            continue
        before = config.disable_compile
        config.disable_compile = True
        changes.append(
            Change(
                what=f"{name + '.' if name else ''}generation_config.disable_compile",
                before=str(before),
                after="True",
                why="generate would compile decode steps once more, with a backend and options of its own",
                restore=partial(setattr, config, "disable_compile", before),
            )
        )
    return changes
