# SPDX-License-Identifier: Apache-2.0
"""Every method of a tensor that writes in place, on floats: normalised, it computes the same bits, of the same type."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_leaves

from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.accumulations import lower

METHODS = sorted(name for name in dir(torch.Tensor) if name.endswith("_") and not name.startswith("_"))
NO_VALUE = {
    *("requires_grad_", "detach_", "rename_", "align_to_"),  # flags and names
    *("resize_", "resize_as_", "share_memory_", "set_", "sparse_resize_", "sparse_resize_and_clear_"),  # memory
    *("squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "t_", "transpose_", "as_strided_"),  # shapes
    *("apply_", "map_", "map2_", "coalesced_"),  # functions of Python, sparse tensors
}
RANDOM = {
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"),
}

FIRST = torch.linspace(-0.9, 0.95, 12).view(3, 4)
OTHER = torch.linspace(0.95, -0.8, 12).view(3, 4)
INDEX = torch.tensor([2, 0])
ARGUMENTS = {
    "nothing": (),
    "tensor": (OTHER,),
    "number": (0.5,),
    "two tensors": (OTHER, OTHER + 2.0),
    "two numbers": (-0.5, 0.5),
    "number and tensor": (0.5, OTHER),
    "matrices": (OTHER @ OTHER.T, OTHER),
    "mask and number": (OTHER > 0, 0.25),
    "mask and tensor": (OTHER > 0, OTHER.flatten()),
    "dimension": (0,),
    "along": (0, INDEX, OTHER[:2]),
    "along with a number": (0, INDEX, 0.5),
    "gathered": (0, INDEX.view(2, 1).expand(2, 4), OTHER[:2]),
    "at indices": ((INDEX,), OTHER[:2]),
}


def works(method: str, arguments: tuple[object, ...]) -> bool:
    """Whether torch takes these arguments, and gives the tensor back."""
    value = FIRST.clone()
    try:
        result = getattr(value, method)(*arguments)
    except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
        return False
    return result is value and value.shape == FIRST.shape


CASES = [
    (method, name)
    for method, (name, arguments) in itertools.product(METHODS, ARGUMENTS.items())
    if method not in NO_VALUE | RANDOM and works(method, arguments)
]


def program(method: str, arguments: tuple[object, ...], inputs: list[torch.Tensor]) -> fx.GraphModule:
    """y = x * 1; y.method_(...); y + 1, and the type of y."""
    numbers = itertools.count()
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = fx.node.map_aggregate(
        arguments,
        lambda one: graph.placeholder(f"p{next(numbers)}") if isinstance(one, torch.Tensor) else one,  # type: ignore[arg-type, return-value]
    )
    y = graph.call_method("mul", (x, 1))
    graph.call_method(method, (y, *nodes))  # type: ignore[misc]
    graph.output((graph.call_method("add", (y, 1)), y))
    module = fx.GraphModule(torch.nn.Module(), graph)
    FakeTensorProp(module).propagate(*inputs)
    for node in graph.nodes:
        node.meta["example_value"] = node.meta.get("val")
    return module


@pytest.mark.parametrize(("method", "name"), CASES)
def test_a_write_keeps_its_bits_and_its_type(method: str, name: str) -> None:
    arguments = ARGUMENTS[name]
    inputs = [FIRST, *(one for one in tree_leaves(arguments) if isinstance(one, torch.Tensor))]
    module = program(method, arguments, inputs)
    expected = module(*[one.clone() for one in inputs])
    normalize(module)
    lower(module.graph)
    module.recompile()
    found = module(*[one.clone() for one in inputs])
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_most_methods_are_among_them() -> None:
    assert len({method for method, _ in CASES}) > 80
