# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of parameters, whatever stands around the model, and how two sets of names are laid side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from farskip_compile._compat.modules import parameter_name
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import ParameterFingerprint
from farskip_compile.manifest.fingerprint import align, parameters_of


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(6, 2)


SHAPES = {"first.weight": (6, 4), "second.weight": (2, 6), "second.bias": (2,)}


def test_as_it_is_and_compiled() -> None:
    model = Pair()
    assert parameters_of(model) == SHAPES
    assert parameters_of(torch.compile(model)) == SHAPES
    model.second = torch.compile(model.second)  # a module inside is compiled
    assert "second._orig_mod.weight" in dict(model.named_parameters())
    assert parameters_of(model) == SHAPES


def test_wrapped(two_ranks: Any) -> None:
    assert parameters_of(nn.parallel.DistributedDataParallel(Pair(), init_sync=False)) == SHAPES


def test_a_distributed_tensor_counts_as_a_whole(two_ranks: Any) -> None:
    model = Pair()
    mesh = init_device_mesh("cpu", (2,))
    local = distribute_tensor(model.first.weight, mesh, [Shard(0)])
    model.first.weight = nn.Parameter(local)
    assert model.first.weight.to_local().shape == (3, 4)
    assert parameters_of(model) == SHAPES


def test_tied_parameters_have_all_of_their_names() -> None:
    model = Pair()
    model.third = nn.Linear(4, 6, bias=False)
    model.third.weight = model.first.weight
    assert parameters_of(model) == {**SHAPES, "third.weight": (6, 4)}


def test_a_lazy_parameter_has_no_shape() -> None:
    with pytest.raises(ManifestError, match="'weight' has no shape yet"):
        parameters_of(nn.LazyLinear(3))


def test_hash_is_of_names_and_shapes_in_any_order() -> None:
    one = ParameterFingerprint({"a": (1,), "b": (2,)}, {})
    assert one.sha256 == ParameterFingerprint({"b": (2,), "a": (1,)}, {}).sha256
    others = [
        ParameterFingerprint({"a": (1,), "b": (3,)}, {}),
        ParameterFingerprint({"a": (1,), "c": (2,)}, {}),
        ParameterFingerprint({"a": (1,)}, {"b": (2,)}),
    ]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 4


def test_names_in_a_graph_tell_two_modules_apart() -> None:
    """Of one class, called by one function; one of them is a global, one is compiled itself."""
    seen: list[str | None] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(parameter_name(node) for node in module.graph.nodes if node.op == "placeholder")
        return module.forward

    local = nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.Linear(4, 4, bias=False))
    torch.compile(lambda x: local(x) + GLOBAL(x), backend=look, fullgraph=True)(torch.ones(1, 4))
    assert set(seen) == {"local.0.weight", "local.0.bias", "local.1.weight", "GLOBAL.weight", "GLOBAL.bias", None}


GLOBAL = nn.Linear(4, 4)
KNOWN = ["model.embed.weight", "model.layers.0.up.weight", "model.layers.1.up.weight", "head.weight"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (KNOWN, KNOWN),
        ([f"fn.__closure__.0.cell_contents.{name}" for name in KNOWN], KNOWN),  # a function around the model
        (["embed.weight", "layers.0.up.weight", "layers.1.up.weight"], KNOWN[:3]),  # a module inside of it
        (["decoder.embed.weight", "decoder.layers.0.up.weight"], KNOWN[:2]),  # a module inside, in another one
        ([], []),
    ],
)
def test_alignment(names: list[str], expected: list[str]) -> None:
    assert list(map(align(names, KNOWN), names)) == expected


def test_alignment_bears_a_wrong_name_anywhere() -> None:
    for wrong in range(3):
        names = ["w.embed.weight", "w.layers.0.up.weight", "w.layers.1.up.weight"]
        names[wrong] = "w.layers.0.down.other"
        found = list(map(align(names, KNOWN), names))
        assert sum(name in KNOWN for name in found) == 2


def test_two_copies_of_a_model_are_not_taken_for_one() -> None:
    names = [f"{copy}.{name}" for copy in ("a", "b") for name in KNOWN]
    found = list(map(align(names, KNOWN), names))
    assert sum(name in KNOWN for name in found) == len(KNOWN)
