"""The programs that Inductor generates for a device, and what is to be given to them.

In:    what builds a model on the CPU, its input, a backend; within `pretended.pretended`.
Out:   `Programs`: forward and backward, as source; and where each input of the forward program comes from.
Never: builds or runs a program.

Algorithm:
1. Put a twin of the model on the device: fake parameters, of the same names and shapes.
2. Compile it with its backward, and take each program before it is built.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch._functorch import config as functorch_config
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode

Backend = Callable[[fx.GraphModule, Any], Any]
CALLS: tuple[tuple[str, str], ...] = (
    (r"_c10d_functional\.wait_tensor", "W"),
    (r"_c10d_functional\.\w+", "L"),
    (r"attention", "A"),
    (r"extern_kernels\.\w*mm|grouped_mm|triton_tem_", "m"),
    (r"\b(triton_\w+|multi_tensor_\w+)\.run\(", "k"),
    (r"torch\.ops\.|extern_kernels\.", "o"),
)
"""A line of a program -> the letter for it: wait, launch, attention, product, kernel, another operator."""


@dataclass
class Programs:
    """See the module's contract."""

    codes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Of each input of the forward program: an expression of `L`, the arguments of the model's `forward`."""


class _NotBuiltError(Exception):
    pass


def generate(build: Callable[[], nn.Module], ids: torch.Tensor, backend: Backend) -> Programs:
    """See the module's contract."""
    found = Programs()

    def take(graph: GraphLowering) -> Any:
        code, _ = graph.codegen()
        found.codes.append(getattr(code, "value", code))
        return SimpleNamespace(call=_refuse)

    def compile_(module: fx.GraphModule, inputs: Any) -> Any:
        named = module.graph.find_nodes(op="placeholder")
        found.sources = [_text(node.meta["grapharg"].source.name) for node in named]
        return backend(module, inputs)

    with (
        mock.patch.object(GraphLowering, "compile_to_module", take),  # 2
        functorch_config.patch(force_non_lazy_backward_lowering=True),
    ):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        twin = on_device(build(), mode)  # 1
        with mode:
            given = torch.empty(ids.shape, dtype=ids.dtype, device="cuda")
            with contextlib.suppress(_NotBuiltError):
                torch.compile(twin, backend=compile_, fullgraph=True)(given)
    torch.compiler.reset()
    return found


def on_device(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """`model`, whose parameters and buffers become fake ones on "cuda"."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    with mode:
                        fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    is_parameter = isinstance(value, nn.Parameter)
                    table[name] = nn.Parameter(fake, value.requires_grad) if is_parameter else fake
    return model


def order_of(code: str) -> str:
    """What a program calls, one letter for each call: `CALLS`."""
    letters = []
    for line in body_of(code).splitlines():
        text = line.strip()
        if not text.startswith(("assert", "#", "del ", "raise")):
            letters.append(next((letter for pattern, letter in CALLS if re.search(pattern, text)), ""))
    return "".join(letters)


def body_of(code: str) -> str:
    """What a program does when it is called."""
    return code.rpartition("def call(")[2].partition("\ndef ")[0]


def _text(name: Any) -> str:
    return str(name() if callable(name) else name)


def _refuse(*_: Any) -> Any:
    raise _NotBuiltError
