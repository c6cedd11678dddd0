# SPDX-License-Identifier: Apache-2.0
"""The rewired graph of a call as a module for `torch.export`.

In:    a model, and a `ExportedCall` of it.
Out:   a module with the parameters, buffers and names of the model, the same objects, whose forward has the signature
       of the model's, and runs the rewired graph.
Never: holds code of the model: what runs is the graph, and hooks are a part of it.

Algorithm of its forward:
1. Check what the graph takes for granted of sizes, so that `torch.export` holds it against what is to vary.
2. Give each input of the graph what it stands for; run the graph.
3. Build what the model returns of its outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from farskip_compile._compat.modules import not_persistent
from farskip_compile._compat.trees import leaves_of, put_together
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.tools.export.call import Constant, ExportedCall, Leaf, LeafSize, ModelTensor, Output


def as_module(model: nn.Module, call: ExportedCall) -> nn.Module:
    """The module that computes `call` for any arguments of its structure."""
    module = _with_states_of(model)
    kind = type(f"FarSkip{type(model).__name__}", (nn.Module,), {"forward": _forward(model, call)})
    module.__class__ = kind
    return module.train(model.training)


def _with_states_of(model: nn.Module) -> nn.Module:
    """An empty module with the submodules, parameters and buffers of `model`."""
    found = nn.Module()
    for name, child in model.named_children():
        found.add_module(name, _with_states_of(child))
    for name, parameter in model.named_parameters(recurse=False, remove_duplicate=False):
        found.register_parameter(name, parameter)
    left_out = not_persistent(model)
    for name, buffer in model.named_buffers(recurse=False, remove_duplicate=False):
        found.register_buffer(name, buffer, persistent=name not in left_out)
    return found


def _forward(model: nn.Module, call: ExportedCall) -> Callable[..., Any]:
    def value(module: nn.Module, leaves: list[Any], outputs: list[Any], of: Any) -> Any:
        match of:
            case ModelTensor(name):
                owner, _, attribute = name.rpartition(".")
                return getattr(module.get_submodule(owner), attribute)
            case Leaf(number):
                return leaves[number]
            case LeafSize(number, dimension):
                return leaves[number].shape[dimension]
            case Constant(fixed):
                return fixed
            case Output(number):
                return outputs[number]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        leaves, _ = leaves_of((args, kwargs))
        if not call.conditions.hold([leaves[number] for number in call.conditioned]):  # 1
            raise UnsupportedPatternError(
                f"the sizes are not such as the program is made for: {call.conditions.text}",
                way_out="export a program of a call with these sizes",
            )
        inputs = [value(self, leaves, [], source) for source in call.inputs]  # 2
        outputs = list(call.graph.forward(*inputs))
        return put_together([value(self, leaves, outputs, one) for one in call.results], call.shape)  # 3

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(model.forward)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return forward
