# SPDX-License-Identifier: Apache-2.0
"""The private parts of modules: what PyTorch keeps about them, their parameters, and their being compiled.

Contract: for comparing a model, or a graph of it, with names and shapes that were written down; nothing is decided by
what a name says. Checked by running on torch 2.11.0, 2.13.0 and 2.15.0; presence by reading on 2.12 and 2.14.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo import OptimizedModule

REGISTRIES = frozenset(["_modules", "_parameters", "_buffers", "__dict__"])
"""Dictionaries in which a module keeps what it has: steps of a path in a graph, no parts of a name. The last one is met
in modules with a `__getattr__` of their own."""

WRAPPERS = frozenset(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
"""Attributes in which modules that PyTorch puts around others keep these."""


def parameter_name(placeholder: fx.Node) -> str | None:
    """The dotted path by which the traced code reached the parameter that a Dynamo placeholder stands for.

    It begins with the name that the traced function had for what holds it: `self` for a model's own forward, a variable
    for a model or a module around it. None: no parameter.
    """
    value = placeholder.meta.get("example_value", placeholder.meta.get("val"))
    return plain_name(_path(placeholder)) if isinstance(value, nn.Parameter) else None


def input_path(placeholder: fx.Node) -> str:
    """Return the dotted path by which the traced code reaches an input of the call: `ids`, `kwargs.inputs_embeds` for
    a forward that takes `**kwargs`, `args.0`. The name of the node if Dynamo has noted none."""
    return _path(placeholder) or placeholder.name


def _path(placeholder: fx.Node) -> str:
    source = getattr(placeholder.meta.get("grapharg"), "source", None) or getattr(placeholder, "_dynamo_source", None)
    parts: list[str] = []
    while (base := getattr(source, "base", None)) is not None:
        part = getattr(source, "member", getattr(source, "index", None))
        if part is not None:
            parts.append(str(part))
        source = base
    root = getattr(source, "local_name", getattr(source, "global_name", None))
    if root is not None:  # tells two modules apart that one function calls
        parts.append(str(root))
    return ".".join(part for part in reversed(parts) if part not in REGISTRIES)


def module_paths(expression: str) -> tuple[str, ...]:
    """Return the paths of a module in its model, for the Python expression by which Dynamo reached the module.

    The variable that holds the model is no part of a path, whatever its name is: `L['self'].layers[0]` and
    `G['model'].layers[0]` are `layers.0`. An index behind the variable may be a container around the model, or a part
    of the path, so `L['models'][0].head` is both `0.head` and `head`.
    """
    text, before = expression, ""
    while text != before:
        before, text = text, re.sub(r"getattr\(([^(),]*), '([^']*)'\)", r"\1.\2", text)
    root = re.match(r"[LG]\['[^']*'\]((?:\['?[^\]']*'?\])*)", text)
    rests: tuple[str, ...] = (text,)
    if root is not None:
        path = root.group(1)
        rests = (path + text[len(root.group(0)) :], text[len(root.group(0)) :])
    return tuple(dict.fromkeys(_dotted(rest) for rest in rests))


def _dotted(expression: str) -> str:
    parts = re.sub(r"\['?([^\]']*)'?\]", r".\1", expression).split(".")
    return plain_name(".".join(part for part in parts if part and part not in REGISTRIES))


def parameter_itself(placeholder: fx.Node) -> nn.Parameter | None:
    """Return the parameter that a Dynamo placeholder stands for: the model's own, with what others put on it.

    None: no parameter, or the graph is no longer being compiled, so that Dynamo has let go of it.
    """
    try:
        found = getattr(placeholder.meta.get("grapharg"), "example", None)
    except AssertionError:  # Dynamo holds it by a weak reference, and the model is gone
        return None
    return found if isinstance(found, nn.Parameter) else None


def plain_name(name: str) -> str:
    """The name of a parameter without what PyTorch's wrappers put in between."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of `torch.compile` and of data parallelism."""
    while isinstance(model, OptimizedModule | nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner: nn.Module = model._orig_mod if isinstance(model, OptimizedModule) else model.module
        model = inner
    return model


def child_names(module: nn.Module) -> set[str]:
    """Names of the modules directly in `module`; one that has several names has all of them here."""
    return set(module._modules)


def forward_hooks(module: nn.Module) -> MutableMapping[int, Any]:
    """The hooks after the forward of `module`, by number; what is taken out of it is removed."""
    return module._forward_hooks


def parameters_of(module: nn.Module) -> MutableMapping[str, nn.Parameter | None]:
    """The parameters directly in `module`, by name; what is put there is the module's from then on."""
    return module._parameters


def buffers_of(module: nn.Module) -> MutableMapping[str, torch.Tensor | None]:
    """The buffers directly in `module`, by name; what is put there is the module's from then on."""
    return module._buffers


def not_persistent(module: nn.Module) -> set[str]:
    """Names of the buffers directly in `module` that are not a part of its state."""
    return set(module._non_persistent_buffers_set)


@contextmanager
def without_fsdp_hooks(model: nn.Module) -> Iterator[None]:
    """Within a `with`, the modules of `model` gather no parameters around their forward (FSDP2)."""
    taken: list[tuple[MutableMapping[int, Any], dict[int, Any]]] = []
    try:
        for module in model.modules():
            found: list[MutableMapping[int, Any]] = [module._forward_pre_hooks, module._forward_hooks]
            for hooks in found:
                if any(map(_is_of_fsdp, hooks.values())):
                    taken.append((hooks, dict(hooks)))
                    for number in [number for number, hook in hooks.items() if _is_of_fsdp(hook)]:
                        del hooks[number]
        yield
    finally:
        for hooks, before in taken:
            hooks.clear()
            hooks.update(before)


def _is_of_fsdp(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp._fully_shard")


def clear_hooks(module: nn.Module) -> None:
    """Remove all hooks around the forward and the backward of `module`."""
    for name, value in vars(module).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and "state" not in name:
            value.clear()


def is_compiled(model: Callable[..., Any]) -> bool:
    """By `torch.compile(model)`, or a module by `module.compile()` or `module.forward = torch.compile(module.forward)`.

    Modules inside of it are not looked at.
    """
    if not isinstance(model, nn.Module):
        return _is_compiled_function(model)
    return (
        isinstance(model, OptimizedModule)
        or getattr(model, "_compiled_call_impl", None) is not None
        or _is_compiled_function(model.forward)
    )


def _is_compiled_function(function: Callable[..., Any]) -> bool:
    """What is kept from being compiled is wrapped by Dynamo as well, and says so."""
    wrapped = hasattr(function, "_torchdynamo_orig_callable")
    return wrapped and not getattr(function, "_torchdynamo_disable", False)
