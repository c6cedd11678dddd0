# SPDX-License-Identifier: Apache-2.0
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from farskip_compile._compat.generated import NotBuiltError, generating_only

Backend = Callable[[fx.GraphModule, Any], Any]
CALLS: tuple[tuple[str, str], ...] = (
    (r"_c10d_functional\.wait_tensor|farskip\.on_host", "W"),
    (r"_c10d_functional\.\w+|farskip\.to_host", "L"),
    (r"attention", "A"),
    (r"extern_kernels\.\w*mm|grouped_mm|triton_tem_", "m"),
    (r"\b(triton_\w+|multi_tensor_\w+)\.run\(", "k"),
    (r"torch\.ops\.|extern_kernels\.|\baten\.\w+\.\w+\(|\.copy_\(", "o"),
)
"""A line of a program -> the letter for it: wait, launch, attention, product, kernel, another operator. Numbers on
their way to the host are launched and waited for, too."""


@dataclass
class Programs:
    """See the module's contract."""

    codes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Of each input of the forward program: an expression of `L`, the arguments of the model's `forward`."""


def generate(build: Callable[[], nn.Module], ids: torch.Tensor, backend: Backend) -> Programs:
    """See the module's contract."""
    found = Programs()

    def compile_(module: fx.GraphModule, inputs: Any) -> Any:
        named = module.graph.find_nodes(op="placeholder")
        found.sources = [_text(node.meta["grapharg"].source.name) for node in named]
        return backend(module, inputs)

    with generating_only(lambda kernels: None, found.codes.append):  # 2
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        twin = on_device(build(), mode)  # 1
        with mode:
            given = torch.empty(ids.shape, dtype=ids.dtype, device="cuda")
            with contextlib.suppress(NotBuiltError):
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
    return "".join(letter for letter, _ in calls_of(code))


def calls_of(code: str) -> Iterator[tuple[str, str]]:
    """The calls of a program: the letter of each, and its line."""
    for line in body_of(code).splitlines():
        text = line.strip()
        if "(" in text and not text.startswith(("assert", "#", "del ", "raise", "return")):
            letter = next((letter for pattern, letter in CALLS if re.search(pattern, text)), None)
            if letter is not None:
                yield letter, text


def body_of(code: str) -> str:
    """What a program does when it is called."""
    return code.rpartition("def call(")[2].partition("\ndef ")[0]


def _text(name: Any) -> str:
    return str(name() if callable(name) else name)
