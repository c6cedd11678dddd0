"""Keep `generate` from compiling the decode steps itself.

Contract: in comes a model, out come the changes. With a static cache on an accelerator, `generate` puts decode steps,
and only these, through a `torch.compile` of its own, with Inductor and other options. A model or a forward that is
compiled inside of it keeps its backend (seen with torch 2.13), but which of two nested compiles wins is nowhere
promised, and if it were the outer one, decode steps of the original model would follow a prefill of the rewired one.
So `disable_compile`, transformers' switch for that, is set in the generation configuration; configurations passed to
`generate` take it from there unless they set it themselves.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from farskip_compile.prepare.changes import Change


def keep_generate_from_compiling(model: nn.Module) -> list[Change]:
    """Set `disable_compile` on each model that generates."""
    from transformers import PreTrainedModel

    changes = []
    for name, module in model.named_modules():
        if not (isinstance(module, PreTrainedModel) and module.can_generate()):
            continue
        config: Any = getattr(module, "generation_config", None)
        if config is None or getattr(config, "disable_compile", True):
            continue
        before = config.disable_compile

        def restore(config: Any = config, before: Any = before) -> None:
            config.disable_compile = before

        config.disable_compile = True
        changes.append(
            Change(
                what=f"{name + '.' if name else ''}generation_config.disable_compile",
                before=str(before),
                after="True",
                why="generate would compile decode steps once more, with a backend and options of its own",
                restore=restore,
            )
        )
    return changes
