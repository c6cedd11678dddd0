# SPDX-License-Identifier: Apache-2.0
"""A guard for `generate(compile_config=CompileConfig(backend="farskip"))`, which rewires decode steps at most.

With that configuration transformers compiles decode steps only, and none at all where `disable_compile` is set (by
`prepare`) or where it does not compile for the cache or the device. The prompt's keys and values are then those of the
original wiring.

Contract: unless the model is compiled in place, the guard refuses with an `OriginalWiringError`: before the first step
if the model went through `prepare` (`check_generate`), else when the first decode step is compiled
(`refuse_decode_only`). Where transformers skips compiling, on a model that `prepare` has not seen, no code of this
package runs, and the warning of transformers is the only one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any

from torch import nn

from farskip_compile._compat.modules import is_compiled
from farskip_compile.compiler.guard.compilers import NAME, is_ours
from farskip_compile.errors import OriginalWiringError

LOOP = "transformers.generation.utils"
"""The module of the loops over tokens."""
STEP = "model_forward"
"""The local variable of these loops with the function that they call for each decode step."""
CHECKED = "farskip_checked"


def refuse_decode_only() -> None:
    """Refuse to compile a graph that is the decode step of a model whose prefill runs in the original wiring.

    Raises:
        OriginalWiringError: the graph is such a decode step.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == LOOP and STEP in frame.f_locals:
            model = frame.f_locals.get("self")
            if isinstance(model, nn.Module) and not is_compiled(model) and is_compiled(frame.f_locals[STEP]):
                raise _refused()
            return
        frame = frame.f_back


def check_generate(model: Any) -> Callable[[], None] | None:
    """Let `model.generate` check its `compile_config` first. Return the way back, or None if it does already."""
    if hasattr(vars(model).get("generate", None), CHECKED):
        return None
    vars(model)["generate"] = MethodType(_checked_generate(type(model)), model)
    return functools.partial(vars(model).pop, "generate", None)


def _checked_generate(cls: Any) -> Any:
    plain = cls.generate

    @functools.wraps(plain)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("generation_config") or next((one for one in args if hasattr(one, "compile_config")), None)
        places = (kwargs, vars(given) if given is not None else {}, vars(self.generation_config))
        config = next((place["compile_config"] for place in places if place.get("compile_config") is not None), None)
        backend = getattr(config, "backend", None)
        if (backend == NAME or (callable(backend) and is_ours((backend, {})))) and not is_compiled(self):
            raise _refused()
        return plain(self, *args, **kwargs)

    setattr(generate, CHECKED, True)
    return generate


def _refused() -> OriginalWiringError:
    return OriginalWiringError(
        "generate(compile_config=...) compiles decode steps at most: the prompt goes through the model in its original "
        "wiring, and rewired steps read a cache that is not theirs",
        way_out='model.compile(backend="farskip", fullgraph=True) in place, and generate without compile_config',
    )
