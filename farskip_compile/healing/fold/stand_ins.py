# SPDX-License-Identifier: Apache-2.0
"""The parameters of a model, and plain stand-ins for those that are distributed tensors.

In:    a model whose parameters are plain tensors, or parts of distributed ones (FSDP2, tensor parallelism by DTensor).
Out:   `Parameters`: within `as_plain` each distributed parameter is a plain one of the whole shape without memory, so
       that Dynamo captures the graph that one process would run; `real` gives for a stand-in the distributed one.
Never: gathers a parameter; leaves a stand-in in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.modules import parameters_of, without_fsdp_hooks


class Parameters:
    """See the module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names = {id(value): name for name, value in model.named_parameters()}
        self._buffers = {id(value) for value in model.buffers()}
        self._stand_ins: dict[int, nn.Parameter] = {}
        self._real: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        for value in model.parameters():
            if hasattr(value, "full_tensor"):
                plain = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device=value.device), False)
                plain.untyped_storage().resize_(0)
                self._stand_ins[id(value)] = plain
                self._real[id(plain)] = (plain, value)

    @contextmanager
    def as_plain(self) -> Iterator[None]:
        """See the module."""
        if not self._stand_ins:
            yield
            return
        replaced: list[tuple[MutableMapping[str, nn.Parameter | None], str, nn.Parameter]] = []
        try:
            for module in self.model.modules():
                held = parameters_of(module)
                for key, value in list(held.items()):
                    if value is not None and (plain := self._stand_ins.get(id(value))) is not None:
                        replaced.append((held, key, value))
                        held[key] = plain
            with without_fsdp_hooks(self.model):
                yield
        finally:
            for held, key, value in replaced:
                held[key] = value

    def real(self, value: Any) -> Any:
        """The parameter that `value` stands for; anything else as it is."""
        return self._real[id(value)][1] if id(value) in self._real else value

    def holds(self, value: Any) -> bool:
        """Whether this is a parameter or a buffer of the model, or stands for one."""
        return self.name_of(value) is not None or id(value) in self._buffers

    def name_of(self, value: Any) -> str | None:
        """The name of a parameter of the model, or of what stands for one."""
        return self._names.get(id(self.real(value)))
