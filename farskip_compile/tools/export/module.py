# SPDX-License-Identifier: Apache-2.0
"""The rewired graph of a call as a module for `torch.export`.

In:    a model, and an `ExportedCall` of it.
Out:   a module with the parameters, buffers and names of the model, the same objects, whose forward has the signature
       of the model's, and runs the rewired graph.
Never: holds code of the model: the graph alone runs, and hooks are a part of it.

Algorithm of its forward:
1. Check the conditions of the graph on sizes, so that `torch.export` compares them with the sizes that vary.
2. Give each input of the graph its value; run the graph.
3. Build the return value of the model from the outputs.
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
    """Return the module that computes `call` for any arguments of its structure."""
    module = _with_state_of(model)
    kind = type(f"FarSkip{type(model).__name__}", (nn.Module,), {"forward": _forward(model, call)})
    module.__class__ = kind
    return module.train(model.training)


def _with_state_of(model: nn.Module) -> nn.Module:
    """Return an empty module with the submodules, parameters and buffers of `model`."""
    found = nn.Module()
    for name, child in model.named_children():
        found.add_module(name, _with_state_of(child))
    for name, parameter in model.named_parameters(recurse=False, remove_duplicate=False):
        found.register_parameter(name, parameter)
    not_saved = not_persistent(model)
    for name, buffer in model.named_buffers(recurse=False, remove_duplicate=False):
        found.register_buffer(name, buffer, persistent=name not in not_saved)
    return found


def _forward(model: nn.Module, call: ExportedCall) -> Callable[..., Any]:
    def value(module: nn.Module, leaves: list[Any], outputs: list[Any], origin: Any) -> Any:
        match origin:
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
                f"the program was made for other sizes: {call.conditions.text}",
                way_out="export a program of a call with these sizes",
            )
        inputs = [value(self, leaves, [], source) for source in call.inputs]  # 2
        outputs = list(call.graph.forward(*inputs))
        results = [value(self, leaves, outputs, result) for result in call.results]  # 3
        return put_together(results, call.shape)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(model.forward)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return forward
