"""Run a model once, forward and backward, and bring back everything that it computes.

Contract: out come outputs, gradients and what was written, by name. The model is left as it was found: gradients,
buffers, modes and random numbers, inputs too (it gets copies). Two runs draw the same random numbers.

Algorithm: for the backward pass every output that has a gradient gets a fixed one of its own, different in each entry,
so that no two errors cancel by symmetry. Without gradients (`torch.no_grad`, frozen parameters) there is no backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.prepare.probe import copied, state_kept
from farskip_compile.testing.comparing import local
from farskip_compile.testing.leaves import leaves, tensors

WRAPPER = "_orig_mod."
"""What `torch.compile` prepends to the names of a module's parameters."""


@dataclass(frozen=True)
class Run:
    """What one call of a model has computed."""

    values: Mapping[str, Any]
    """Outputs, and inputs and buffers as the call left them; of tensors, copies."""
    gradients: Mapping[str, torch.Tensor]
    """Of parameters and inputs; zero where there is none."""
    flows: frozenset[str]
    """Names of the outputs that have a gradient."""


def run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    modules: Sequence[nn.Module],
) -> Run:
    """Call `function(*args, **kwargs)`.

    Args:
        function: the model.
        args: inputs, of which it gets copies.
        kwargs: inputs by name, likewise.
        parameters: whose gradients are asked for, by the names that they are to have.
        buffers: that may be written, by name.
        modules: whose state is to be kept.
    """
    given = tensors((args, dict(kwargs)), "")
    with state_kept(modules, given.values()), _gradients_kept(parameters.values()):
        args, kwargs, copies = copied(args, kwargs, given.values())
        inputs = {_input_name(name): copy for name, copy in zip(given, copies, strict=True)}
        output = function(*args, **kwargs)
        found = dict(leaves(output, "output"))
        with_gradient = {name: leaf for name, leaf in found.items() if _has_gradient(leaf)}
        if with_gradient:
            cotangents = [_cotangent(leaf) for leaf in with_gradient.values()]
            torch.autograd.backward(list(with_gradient.values()), cotangents)
        gradients = {f"gradient of {name}": _gradient(one) for name, one in parameters.items() if one.requires_grad}
        gradients |= {f"gradient of {name}": _gradient(one) for name, one in inputs.items() if one.requires_grad}
        found |= {f"{name} afterwards": one for name, one in inputs.items()}
        found |= {f"buffer {name} afterwards": one for name, one in buffers.items()}
        values = {name: _kept(leaf) for name, leaf in found.items()}
    return Run(values, gradients, frozenset(with_gradient))


def named_parameters(module: object) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have in the module that is not compiled; of a function, none."""
    if not isinstance(module, nn.Module):
        return {}
    return {name.replace(WRAPPER, ""): parameter for name, parameter in module.named_parameters()}


def named_buffers(module: object) -> dict[str, torch.Tensor]:
    """Buffers, likewise."""
    if not isinstance(module, nn.Module):
        return {}
    return {name.replace(WRAPPER, ""): buffer for name, buffer in module.named_buffers()}


@contextmanager
def _gradients_kept(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Gradients are None at the beginning of the block, and what they were after it."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def _cotangent(leaf: torch.Tensor) -> torch.Tensor:
    """Different in each entry; for a distributed tensor in each of this rank's."""
    value = local(leaf)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)
    result = torch.empty_like(leaf)
    with torch.no_grad():
        local(result).copy_(weights)
    return result


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)).clone()


def _kept(leaf: Any) -> Any:
    return local(leaf).clone() if isinstance(leaf, torch.Tensor) else leaf


def _input_name(path: str) -> str:
    """`[0][1]` of (args, kwargs) is args[1], `[1]['ids']` is ids."""
    if path.startswith("[0]"):
        return f"input args{path[3:]}"
    name, _, rest = path.removeprefix("[1]['").partition("']")
    return f"input {name}{rest}"
