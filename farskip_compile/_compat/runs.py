# SPDX-License-Identifier: Apache-2.0
"""What PyTorch knows of the graphs that it runs: whose they are, and where autograd comes back to them.

Contract: reads, and puts hooks on one node of autograd; nothing is decided here. Checked by running on torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.distributed.fsdp import FSDPModule

from farskip_compile._compat.names import COMPILED_AUTOGRAD

COMPILED = "CompiledFunction"
"""How AOTAutograd's function is called, and so the node that runs the backward graph."""
DEPTH = 3
"""Nodes between what a compiled graph returns and that node: views, at most."""


def traced() -> nn.Module | None:
    """The module whose call Dynamo traces in this thread, as far as the function that it began with names one."""
    try:
        output = InstructionTranslator.current_tx().output
    except AttributeError:  # Dynamo does not trace
        return None
    return module_among(output.local_scope.values())


def module_among(values: Iterable[Any]) -> nn.Module | None:
    """The first of the `values`, local variables of a function, that is a module, or a method of one."""
    for value in values:
        owner = value if isinstance(value, nn.Module) else getattr(value, "__self__", None)
        if isinstance(owner, nn.Module):
            return owner
    return None


def traced_function() -> str:
    """Return the place of the function that Dynamo compiles in this thread, also of one that it made of the rest of a
    function after a graph break; empty if Dynamo does not trace. Generated code (compiled autograd's) has another file
    name in each compile, which does not count."""
    try:
        code = InstructionTranslator.current_tx().output.root_tx.f_code
    except AttributeError:
        return ""
    file = "" if code.co_filename.startswith("<") else code.co_filename
    return f"{file}:{code.co_firstlineno}:{code.co_name}"


def class_name(module: nn.Module) -> str:
    """The name of the class of `module`, without what FSDP2 makes of it."""
    cls = type(module)
    return cls.__bases__[1].__name__ if isinstance(module, FSDPModule) else cls.__name__


def named_as_run(module: nn.Module) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    """Each parameter of `module` by its name, as the tensors that its graphs may be given for it: itself, and under
    FSDP2 the whole one that takes its place while the module runs."""
    whole = {id(sharded): full for part in module.modules() for sharded, full in _unsharded(part)}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        full = whole.get(id(parameter))
        yield name, (parameter,) if full is None else (parameter, full)


def _unsharded(module: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The shards that FSDP2 keeps at `module`, and the whole parameters that it puts in their place; nothing before
    they were whole for the first time, nor where the module has parameters on several meshes."""
    if not isinstance(module, FSDPModule):
        return
    try:
        group = module._get_fsdp_state()._fsdp_param_group
    except AssertionError:  # several groups
        return
    for one in group.fsdp_params if group is not None else ():
        if (full := getattr(one, "_unsharded_param", None)) is not None:
            yield one.sharded_param, full


def before_first_backward(outputs: Any, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Call `begin` and `end` around the next run of the compiled backward graph of `outputs`, in its thread.

    Nothing if they need no gradient, or nothing compiled computes it; nor under compiled autograd, which would trace
    the hooks and cut its graph there.
    """
    if compiled_autograd.compiled_autograd_enabled or getattr(dynamo_config, COMPILED_AUTOGRAD):
        return
    nodes = [one.grad_fn for one in _tensors(outputs) if one.grad_fn is not None]
    for _ in range(DEPTH):
        found = next((node for node in nodes if node.name().startswith(COMPILED)), None)
        if found is not None:
            _around_once(found, begin, end)
            return
        nodes = [node for one in nodes for node, _ in one.next_functions if node is not None]


def _tensors(outputs: Any) -> Iterable[torch.Tensor]:
    every = outputs if isinstance(outputs, list | tuple) else (outputs,)
    return [one for one in every if isinstance(one, torch.Tensor)]


def _around_once(node: Any, begin: Callable[[], None], end: Callable[[], None]) -> None:
    handles: list[Any] = []

    def before(_: Any) -> None:
        begin()

    def after(*_: Any) -> None:
        end()
        for handle in handles:
            handle.remove()

    handles += [node.register_prehook(before), node.register_hook(after)]
