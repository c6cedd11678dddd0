# SPDX-License-Identifier: Apache-2.0
"""The search for the layers of a model: members of one container that the residual stream passes.

Contract: layers are chosen by the tree of modules and by how much of the model each container holds, never by names.
The choice is proven when each layer is compiled, since a module that adds to no stream, or returns none, is an error
then.

Algorithm:
1. Candidates are containers (lists, dictionaries and sequences of modules) with two members or more, none of them
   inside of a member of another one. A container that holds another one next to an embedding, norms and the like, as
   `ModuleDict(wte=..., h=ModuleList(...), ln_f=...)` does, is no candidate: its members are searched.
2. Containers with the same members are one candidate, by the first of its names.
3. The candidate with the most parameters is the stack. If another one has half as many, the caller must name one.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from farskip_compile.errors import PartialModelError

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
RIVAL = 0.5
"""The share of the largest container's parameters that makes another container a rival."""


NamedLayers = list[tuple[str, nn.Module]]
"""Layers by their names in the model, in order."""


def find_layers(model: nn.Module, stack: str | None) -> tuple[list[nn.Module], NamedLayers]:
    """Return the modules whose calls run the layers, outermost first, and the layers.

    A call of the model runs them, or a call of the module that holds their container, which has no call of its own.

    Raises:
        PartialModelError: no container holds the layers, or more than one could.
    """
    if stack is not None:
        return _named(model, stack)
    distinct: dict[tuple[nn.Module, ...], tuple[str, nn.Module]] = {}
    for candidate in _candidates(model, ""):
        distinct.setdefault(_members(candidate[1]), candidate)
    found = sorted(distinct.values(), key=lambda one: -_size(one[1]))
    if not found:
        raise PartialModelError(
            "no repeated layers were found: the model has no list of modules",
            way_out='name the stack: farskip_compile.regional(model, stack="model.layers"); or compile the whole model',
        )
    if len(found) > 1 and _size(found[1][1]) >= RIVAL * _size(found[0][1]):
        names = " and ".join(repr(name) for name, _ in found[:2])
        raise PartialModelError(
            f"{names} both may be the layers of the model", way_out=f"name one: stack={found[0][0]!r}"
        )
    return _named(model, found[0][0])


def _named(model: nn.Module, name: str) -> tuple[list[nn.Module], NamedLayers]:
    try:
        container = model.get_submodule(name)
    except AttributeError:
        container = None
    if not isinstance(container, CONTAINERS):
        raise PartialModelError(
            f"the model has no list of modules called {name!r}",
            way_out=f"one of {', '.join(one for one, _ in _candidates(model, '')) or 'none is there'}",
        )
    names = [other for other, one in model.named_modules(remove_duplicate=False) if _is_same(one, container)]
    layers = [(f"{name}.{child}", module) for child, module in container.named_children()]
    return list(dict.fromkeys([model, *(_caller(model, other) for other in names)])), layers


def _caller(model: nn.Module, name: str) -> nn.Module:
    """Return the innermost module around the container called `name` that can be called."""
    while name:
        name = name.rpartition(".")[0]
        if type(found := model.get_submodule(name)).forward is not nn.Module.forward:
            return found
    return model


def _candidates(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, CONTAINERS) and len(_members(child)) > 1 and _size(child) and not _holds_a_stack(child):
            yield path, child
        else:
            yield from _candidates(child, path)


def _holds_a_stack(container: nn.Module) -> bool:
    """Return whether a container's members are not layers: one can't be called, or all but one are small parts."""
    composed = [member for member in container.children() if len(list(member.children())) > 0]
    uncallable = any(isinstance(member, nn.ModuleList | nn.ModuleDict) for member in composed)
    return uncallable or (len(composed) == 1 and isinstance(composed[0], CONTAINERS))


def _members(container: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(container.children())


def _is_same(one: nn.Module, container: nn.Module) -> bool:
    return isinstance(one, CONTAINERS) and _members(one) == _members(container)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
