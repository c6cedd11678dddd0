# SPDX-License-Identifier: Apache-2.0
"""The backend that vLLM hands to `torch.compile`, with graphs rewired before it gets them.

In:    the backend that vLLM has chosen: its own in mode 3, the name of one of torch's in modes 1 and 2.
Out:   one that rewires each graph first. In mode 3 it is the same object, vLLM's, with another `__call__`, so that it
       splits, compiles and caches what it is given as ever. In modes 1 and 2 it is ours, with that one inside.
Never: compiles anything by itself in mode 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from farskip_compile.vllm import overlap
from farskip_compile.vllm.asked import ASKED, Asked
from farskip_compile.vllm.rewiring import rewire

INDUCTOR = "inductor"


def rewiring_backend(found: Any, compilation: Any, asked: Asked) -> Any:
    """What vLLM is to use instead of `found`; `compilation` is its compilation config."""
    if isinstance(found, str):
        return _Whole(found, dict(compilation.inductor_compile_config), asked)
    if asked.options.overlap and compilation.splitting_ops is not None:
        compilation.splitting_ops = list(dict.fromkeys([*compilation.splitting_ops, *overlap.SPLITTING]))
    found.__class__ = _in_pieces(type(found), asked)
    return found


class _Whole:
    """Modes 1 and 2: the graph goes to one of torch's backends as a whole."""

    def __init__(self, inner: str, inductor: dict[str, Any], asked: Asked) -> None:
        self.asked = asked
        self.inner = inner if inner != ASKED else INDUCTOR
        self.inductor = inductor if self.inner == INDUCTOR else {}
        self.__name__ = ASKED

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        options = {"inner": self.inner, "inductor": self.inductor, "schedule": self.asked.options.overlap}
        backend, report = rewire(module, self.asked, options, order=self.inner != INDUCTOR)
        return backend.compile(module, example_inputs, report, bare=True)  # vLLM serialises it


def _in_pieces(cls: Any, asked: Asked) -> Any:
    """A subclass of vLLM's backend for mode 3."""

    class Rewired(cls):
        def __call__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
            rewire(graph, asked, {"inner": "eager", "schedule": False}, order=True)
            return super().__call__(graph, example_inputs)

    Rewired.__name__ = Rewired.__qualname__ = cls.__name__
    return Rewired
