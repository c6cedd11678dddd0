# SPDX-License-Identifier: Apache-2.0
"""Call a model to see what it returns, or for what it makes in its first call, and leave it as it was.

Contract: within `state_kept`, random numbers may be drawn, buffers written and modes switched; afterwards they are what
they were. `copied` gives inputs to call it with, so that what it writes to (caches) is not written to. Gradients are
the caller's concern. `warm_up` is one such call, without gradients: what the model made on the side (tables, lazily
loaded kernels) and what can't be captured stays, which is its purpose.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Give each part of the modules the mode back that it had before the block."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def state_kept(modules: Sequence[nn.Module], inputs: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Put random numbers, buffers and modes of the modules, which are called with `inputs`, back after the block."""
    buffers = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
    devices = {t.device for module in modules for t in (*module.parameters(), *module.buffers())}
    devices |= {t.device for t in inputs}
    accelerators = sorted({device.type for device in devices} - {"cpu", "meta"})
    state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(modes_kept(*modules))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in accelerators:
            of_kind = sorted((d for d in devices if d.type == kind), key=str)
            stack.enter_context(torch.random.fork_rng(devices=of_kind, device_type=kind))
        try:
            yield
        finally:
            random.setstate(state)
            with torch.no_grad():
                for buffer, value in buffers.items():
                    buffer.copy_(value)


def copied(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Iterable[torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any], list[torch.Tensor]]:
    """Copies of the inputs of a call, and those of `tensors`, which are in them: each is a leaf of its own.

    What requires a gradient does so in the copy.
    """
    memo: dict[int, Any] = {}  # `deepcopy` takes leaves only
    copies = []
    for tensor in tensors:
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copies.append(memo[id(tensor)])
    return copy.deepcopy(args, memo), copy.deepcopy(dict(kwargs), memo), copies


def warm_up(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call the model once and put its state back."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    with state_kept([model], tensors), torch.no_grad():
        args, kwargs, _ = copied(args, kwargs, tensors)
        model(*args, **kwargs)
