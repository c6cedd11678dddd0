# SPDX-License-Identifier: Apache-2.0
"""`generate(compile_config=CompileConfig(backend="farskip"))` does not generate with half of a rewired model.

transformers compiles decode steps only with that configuration, and none at all where `disable_compile` is set (by
`prepare`) or the cache or the device is not one that it compiles for. The prompt's keys and values are then those of
the original wiring.

Contract: refuses with an `OriginalWiringError`, unless the model is compiled in place. Before the first step if the
model went through `prepare` (`check_generate`); else when the first decode step is compiled (`refuse_decode_only`).
Where transformers skips compiling, on a model that `prepare` has not seen, no code of this package runs, and the
warning that transformers gives is the only one.
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
"""Module of the loops over tokens, in whose frames is what they call for each decode step."""
STEP = "model_forward"
CHECKED = "farskip_checked"


def refuse_decode_only() -> None:
    """Called while a graph is compiled: refuse one that is the decode step of a model whose prefill ran as it is.

    Raises:
        OriginalWiringError: it is.
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
    """Let `model.generate` look at its `compile_config` first; returns the way back, or None if it does already."""
    if hasattr(vars(model).get("generate", None), CHECKED):
        return None
    vars(model)["generate"] = MethodType(_generate(type(model)), model)
    return functools.partial(vars(model).pop, "generate", None)


def _generate(cls: Any) -> Any:
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
