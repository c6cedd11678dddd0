# SPDX-License-Identifier: Apache-2.0
"""A guard for `generate` of a compiled `PeftModel`, which would generate in the original wiring.

PEFT's `generate` is the method of the model inside, which calls itself. So the compiled `PeftModel` around it is never
called, neither after `model.compile(...)` nor after `torch.compile(model)`.

Contract: once PEFT is imported (`farskip_compile/__init__.py`), its classes' `generate` refuses with an
`OriginalWiringError` if the `PeftModel` is compiled in place with this backend and the model inside is not compiled;
with `strict=False` there is one `FarSkipWarning` for each model. All else is PEFT's. `wrappers` watches the modules
that `torch.compile` returns, and asks here which modules `generate` calls (`modules_that_generate`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from farskip_compile._compat.modules import is_compiled
from farskip_compile._compat.reached import compiled_in_place_for
from farskip_compile.compiler.guard.compilers import is_ours, is_strict
from farskip_compile.compiler.guard.report import report_original_wiring

WAY_OUT = 'model.get_base_model().compile(backend="farskip", fullgraph=True) in place of compiling the PeftModel'
CHECKED = "farskip_checked"


def watch_generate() -> None:
    """Let `generate` of all of PEFT's classes check the model first. A second call changes nothing."""
    import peft.peft_model

    for cls in vars(peft.peft_model).values():
        plain = vars(cls).get("generate") if isinstance(cls, type) and issubclass(cls, nn.Module) else None
        if plain is not None and not hasattr(plain, CHECKED):
            cls.generate = _watched(plain)


def modules_that_generate(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model itself, and the model inside if it is a `PeftModel`."""
    yield model
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel):
        yield model.get_base_model()


def _watched(plain: Any) -> Any:
    @functools.wraps(plain)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiler = compiled_in_place_for(self)
        if compiler is not None and is_ours(compiler) and not is_compiled(self.get_base_model()):
            report_original_wiring(
                self,
                "`generate` of a PeftModel calls the model inside of it, which is not compiled and would run in its "
                "original wiring: only a call of the PeftModel itself runs rewired",
                WAY_OUT,
                strict=is_strict(compiler),
            )
        return plain(self, *args, **kwargs)

    setattr(generate, CHECKED, True)
    return generate
