# SPDX-License-Identifier: Apache-2.0
"""Which modules are the layers of a model: members of one container, that the residual stream passes.

Contract: chosen by the tree of modules and by how much of the model each container holds, never by names; what is
chosen is proven when each layer is compiled, since a module that adds to no stream, or returns none, is an error then.

Algorithm: candidates are containers (lists, dictionaries and sequences of modules) with two members or more, none of
them inside of a member of another one. The one with the most parameters is the stack. If another one has half as many,
it can't be told which is meant: name it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from farskip_compile.errors import PartialModelError

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
RIVAL = 0.5


def find_layers(model: nn.Module, stack: str | None) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """The module that holds the layers' container, and the layers by their names in the model, in order.

    Raises:
        PartialModelError: no container holds the layers, or more than one could.
    """
    if stack is not None:
        return _named(model, stack)
    found = sorted(_candidates(model, ""), key=lambda one: -_size(one[1]))
    if not found:
        raise PartialModelError(
            "no repeated layers were found: the model has no list of modules",
            way_out='name it: farskip_compile.regional(model, stack="model.layers"); or compile the whole model',
        )
    if len(found) > 1 and _size(found[1][1]) >= RIVAL * _size(found[0][1]):
        names = " and ".join(repr(name) for name, _ in found[:2])
        raise PartialModelError(
            f"{names} both may be the layers of the model", way_out=f"say which: stack={found[0][0]!r}"
        )
    return _named(model, found[0][0])


def _named(model: nn.Module, name: str) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    try:
        container = model.get_submodule(name)
    except AttributeError:
        container = None
    if not isinstance(container, CONTAINERS):
        raise PartialModelError(
            f"the model has no list of modules called {name!r}",
            way_out=f"one of {', '.join(one for one, _ in _candidates(model, '')) or 'none is there'}",
        )
    owner = model.get_submodule(name.rpartition(".")[0])
    return owner, [(f"{name}.{child}", module) for child, module in container.named_children()]


def _candidates(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, CONTAINERS) and len(list(child.children())) > 1 and _size(child):
            yield path, child
        else:
            yield from _candidates(child, path)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
