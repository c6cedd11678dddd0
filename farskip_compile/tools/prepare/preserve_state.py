# SPDX-License-Identifier: Apache-2.0
"""Calls of a model that leave its state as it was.

Contract: within `state_kept`, random numbers may be drawn, buffers written or replaced, and modes switched; afterwards
they are what they were. `everything_kept` keeps parameters as well, and (`attributes=True`) the objects that modules
hold in their attributes; it is for eager calls. `copied` gives inputs to call a model with, so that the model writes to
copies (of caches). Gradients are the caller's concern. `warm_up` is one such call, without gradients: tables and lazily
loaded kernels that the model made on the side stay, which is its purpose.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.modules import buffers_of, parameters_of
from farskip_compile.tools.prepare.writes import Writes, WritesOutsideCompiles, memory_of


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
    tables = [buffers_of(part) for module in modules for part in module.modules()]
    registered = [(table, name, buffer) for table in tables for name, buffer in table.items() if buffer is not None]
    devices = {t.device for module in modules for t in (*module.parameters(), *module.buffers())}
    devices |= {t.device for t in inputs}
    accelerators = sorted({device.type for device in devices} - {"cpu", "meta"})
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
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
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            for table, name, buffer in registered:
                table[name] = buffer
            with torch.no_grad():
                for buffer, value in buffers.items():
                    buffer.copy_(value)


@contextmanager
def everything_kept(
    modules: Sequence[nn.Module],
    inputs: Iterable[torch.Tensor] = (),
    *,
    attributes: bool = False,
    compiles: bool = False,
) -> Iterator[Writes]:
    """Put the state, the parameters and, if asked, the attributes of the modules back after the block.

    Args:
        modules: the modules that run in the block.
        inputs: tensors that the modules are called with.
        attributes: True to put back which objects the attributes hold; changes inside of these objects stay.
        compiles: True to let `torch.compile` work in the block; writes in compiled code are not undone.

    Yields:
        The watch, which knows the parameters that were written so far.
    """
    parts = [part for module in modules for part in module.modules()]
    attributes_by_part = [(part, dict(vars(part))) for part in parts] if attributes else []
    entries = [(parameters_of(part), name, one) for part in parts for name, one in parameters_of(part).items()]
    parameters = list(dict.fromkeys(one for *_, one in entries if one is not None))
    memory = [(one, one.detach(), one.requires_grad) for one in parameters]
    writes = WritesOutsideCompiles(parameters) if compiles else Writes(parameters)
    try:
        with state_kept(modules, inputs), writes:
            yield writes
    finally:
        for part, before in attributes_by_part:
            vars(part).clear()
            vars(part).update(before)
        for table, name, parameter in entries:
            if not hasattr(parameter, "__tensor_flatten__"):  # FSDP2 itself changes which of its tensors are there
                table[name] = parameter
        for parameter, data_before, required_grad in memory:
            if memory_of(parameter) != memory_of(data_before):
                parameter.data = data_before
            parameter.requires_grad_(required_grad)
        writes.undo()


def copied(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Iterable[torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any], list[torch.Tensor]]:
    """Return copies of the inputs of a call, and the copies of `tensors`, which are among the inputs.

    Each copied tensor is a leaf of its own, and requires a gradient if the original does.
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
    with everything_kept([model], tensors), torch.no_grad():
        args, kwargs, _ = copied(args, kwargs, tensors)
        model(*args, **kwargs)
