"""Keep `generate` from compiling the decode steps itself.

Contract: in comes a model, out come the changes. With a static cache on an accelerator, `generate` compiles its
decode steps with Inductor, straight from the model's own forward: a forward that was compiled with this backend would
be looked through, and the decode steps would be those of the original model, behind a prefill of the rewired one.
`disable_compile`, transformers' switch for that, is set in the generation configuration; configurations passed to
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
                why="generate would compile decode steps of the original model behind a prefill of the rewired one",
                restore=restore,
            )
        )
    return changes
