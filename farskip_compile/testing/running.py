# SPDX-License-Identifier: Apache-2.0
"""Run a model once, forward and backward, and bring back everything that it computes.

Contract: out come outputs, gradients and what was written, by name. The model is left as it was found: parameters,
gradients, buffers, modes and random numbers, inputs too (it gets copies). Two runs draw the same random numbers. While
it runs, a copy of the parameters is in memory: compiled code may write into any of them.

Algorithm: for the backward pass every output that has a gradient gets a fixed one of its own, different in each entry,
so that no two errors cancel by symmetry. Without gradients (`torch.no_grad`, frozen parameters) there is no backward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.modules import plain_name
from farskip_compile.testing.comparing import local
from farskip_compile.tools.prepare.preserve_state import copied, state_kept

PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class ModelRun:
    """What one call of a model has computed."""

    values: Mapping[str, Any]
    """Outputs, and inputs, buffers and changed parameters as the call left them; of tensors, copies."""
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
) -> ModelRun:
    """Call `function` with copies of its inputs.

    Args:
        function: the model.
        args: inputs.
        kwargs: inputs by name.
        parameters: whose gradients are asked for, by the names that they are to have.
        buffers: that may be written, by name.
        modules: whose state is to be kept.
    """
    given = {name: leaf for name, leaf in leaves((args, dict(kwargs)), "") if isinstance(leaf, torch.Tensor)}
    with state_kept(modules, given.values()), _kept(parameters) as before:
        args, kwargs, copies = copied(args, kwargs, given.values())
        inputs = {_input_name(name): copy for name, copy in zip(given, copies, strict=True)}
        output = function(*args, **kwargs)
        found = dict(leaves(output, "output"))
        with_gradient = {n: leaf for n, leaf in found.items() if isinstance(leaf, torch.Tensor) and leaf.requires_grad}
        if with_gradient:
            torch.autograd.backward(list(with_gradient.values()), list(map(_cotangent, with_gradient.values())))
        leaf_of = {**parameters, **inputs}
        gradients = {f"gradient of {name}": _gradient(one) for name, one in leaf_of.items() if one.requires_grad}
        found |= {f"{name} afterwards": one for name, one in inputs.items()}
        found |= {f"buffer {name} afterwards": one for name, one in buffers.items()}
        found |= {
            f"parameter {name} afterwards": one for name, one in parameters.items() if not _same(one, before[name])
        }
        values = {n: local(leaf).clone() if isinstance(leaf, torch.Tensor) else leaf for n, leaf in found.items()}
    return ModelRun(values, gradients, frozenset(with_gradient))


def leaves(value: Any, name: str, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every leaf of `value` (tensors, plain values, objects that can't be looked into), with a name that says where.

    Looks into tuples, lists, mappings (also the outputs of transformers), data classes and other objects with
    attributes, such as caches, but not into those `above`.
    """
    parts = None if isinstance(value, (torch.Tensor, *PLAIN)) or id(value) in above else _parts(value)
    if parts is None:
        yield name, value
    for key, part in parts or ():
        yield from leaves(part, f"{name}{key}", above | {id(value)})


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What `value` is made of, with the way from it to its part; None if that is not known."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{key}", getattr(value, key)) for key in value._fields]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, type | nn.Module) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return [(f".{entry.name}", getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    return [(f".{key}", part) for key, part in vars(value).items()] if hasattr(value, "__dict__") else None


def named_parameters(module: object) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have in the module that is not compiled; of a function, none."""
    found = module.named_parameters() if isinstance(module, nn.Module) else ()
    return {plain_name(name): parameter for name, parameter in found}


def named_buffers(module: object) -> dict[str, torch.Tensor]:
    """Buffers, likewise."""
    found = module.named_buffers() if isinstance(module, nn.Module) else ()
    return {plain_name(name): buffer for name, buffer in found}


@contextmanager
def _kept(parameters: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Yield copies of the parameters. Gradients are None at the beginning of the block; afterwards they, and the
    parameters, are what they were."""
    gradients = [(parameter, parameter.grad) for parameter in parameters.values()]
    copies = {name: local(parameter).detach().clone() for name, parameter in parameters.items()}
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield copies
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for name, before in copies.items():
                if not _same(parameters[name], before):
                    local(parameters[name]).copy_(before)


def _same(parameter: torch.Tensor, before: torch.Tensor) -> bool:
    """Return whether a parameter is what it was, to the bit."""
    now = local(parameter).detach()
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    return torch.equal(now.reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))


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


def _input_name(path: str) -> str:
    """`[0][1]` of (args, kwargs) is args[1], `[1]['ids']` is ids."""
    if path.startswith("[0]"):
        return f"input args{path[3:]}"
    name, _, rest = path.removeprefix("[1]['").partition("']")
    return f"input {name}{rest}"
