# SPDX-License-Identifier: Apache-2.0
"""Layers called in another order, twice or not at all, strangers between them, carriers that are copied or sent: they
are handled as in a compile of the whole model, or are an error that says what is wrong. No part of the stream is lost
or doubled."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import OriginalWiringError
from farskip_compile.compiler.carrier.stream import Carrier
from farskip_compile.errors import PartialModelError
from farskip_compile.tools.regional import Regional
from tests.graphs import Dense, Layer, MoE, Stack, ids

OPTIONS = {"inner": "eager"}


class Called(Stack):
    """Calls its layers in an order of its own; between them, `between` is called."""

    def __init__(self, order: Sequence[int] = (0, 1, 2), between: nn.Module | None = None) -> None:
        super().__init__(lambda: Layer(MoE()), layers=3)
        self.order = order
        self.between = between.double() if between is not None else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for place, number in enumerate(self.order):
            x = self.layers[number](x)
            if self.between is not None and place == 0:
                x = self.between(x)
        return self.head(self.norm(x))


class Doubled(nn.Module):
    """A module that is none of the layers and changes the stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def whole(model: nn.Module) -> torch.Tensor:
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="farskip", fullgraph=True, options=OPTIONS)
    with torch.no_grad():
        return compiled(ids())


def in_regions(model: nn.Module) -> tuple[Regional, torch.Tensor]:
    torch.compiler.reset()
    regional = farskip_compile.regional(model, "full", stack="layers", **OPTIONS)
    with torch.no_grad():
        return regional, model(ids())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 1, 1, 2), (0, 2), (0, 0, 0)])
def test_layers_in_any_order(order: Sequence[int]) -> None:
    """The last member of the list leaves nothing apart; where it is not called last, that is an error that says so."""
    model = Called(order)
    expected = whole(model)
    if 2 in order[:-1]:
        with pytest.raises(PartialModelError, match="would read"):
            in_regions(model)
    else:
        assert torch.equal(in_regions(model)[1], expected)


def test_a_stranger_that_keeps_the_stream_a_sum() -> None:
    model = Called(between=Doubled())
    expected = whole(model)
    with pytest.raises(PartialModelError, match="would read") as caught:
        in_regions(model)
    assert caught.value.where.layer == 1
    assert expected.shape == (2, 5, model.head.out_features)


def test_a_layer_that_is_not_compiled() -> None:
    model = Called()
    farskip_compile.regional(model, compile=False, stack="layers", **OPTIONS)
    for layer in (model.layers[0], model.layers[2]):
        layer.compile(backend="farskip", fullgraph=True, options=OPTIONS)
    with torch.no_grad(), pytest.raises(OriginalWiringError, match="original wiring"):
        model(ids())


def test_another_backend() -> None:
    model = Called()
    farskip_compile.regional(model, compile=False, stack="layers", **OPTIONS)
    for layer in model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    with torch.no_grad(), pytest.raises(OriginalWiringError):
        model(ids())


def test_a_layer_that_does_not_return_its_stream() -> None:
    class Normed(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm1(super().forward(x))

    model = Stack(lambda: Normed(MoE()), layers=2)
    farskip_compile.regional(model, "full", **OPTIONS)
    with torch.no_grad(), pytest.raises(PartialModelError, match="does not return its residual stream"):
        model(ids())


def test_a_dense_model() -> None:
    model = Stack(lambda: Layer(Dense()), layers=2)
    farskip_compile.regional(model, "full", **OPTIONS)
    with torch.no_grad(), pytest.raises(farskip_compile.errors.DenseModelError):
        model(ids())


def test_which_list_is_meant() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = (Stack(lambda: Layer(MoE()), layers=2) for _ in range(2))

    with pytest.raises(PartialModelError, match="both may be the layers") as caught:
        farskip_compile.regional(Two(), "full", **OPTIONS)
    assert "stack=" in caught.value.way_out
    with pytest.raises(PartialModelError, match="no list of modules called 'nothing'"):
        farskip_compile.regional(Two(), "full", stack="nothing", **OPTIONS)
    with pytest.raises(PartialModelError, match="no repeated layers"):
        farskip_compile.regional(nn.Linear(2, 2), "full", **OPTIONS)


# What passes between layers


def carrier_of(*, gradients: bool = False) -> Carrier:
    model = Called()
    found: list[Any] = []
    farskip_compile.regional(model, "full", stack="layers", **OPTIONS)
    model.layers[0].register_forward_hook(lambda _, args, out: found.append(out))
    with torch.set_grad_enabled(gradients):
        model(ids())
    assert type(found[0]) is Carrier
    return found[0]


def test_a_carrier_is_the_stream_to_whoever_reads_it() -> None:
    carrier = carrier_of()
    stream = carrier.whole()
    assert type(stream) is torch.Tensor
    assert carrier.shape == stream.shape
    assert (carrier.dtype, carrier.device, len(carrier)) == (stream.dtype, stream.device, len(stream))
    assert torch.equal(carrier + 1, stream + 1)
    assert torch.equal(1 - carrier, 1 - stream)
    assert torch.equal(carrier[0], stream[0])
    assert torch.equal(torch.stack([carrier, carrier]), torch.stack([stream, stream]))
    assert torch.equal(
        nn.functional.layer_norm(carrier, stream.shape[-1:]), nn.functional.layer_norm(stream, stream.shape[-1:])
    )
    assert torch.equal(carrier.mean(-1), stream.mean(-1))
    assert not torch.equal(carrier.base, stream)  # the base alone is not the stream


def test_a_carrier_that_is_copied_or_sent_is_a_tensor() -> None:
    carrier = carrier_of()
    for made in (copy.deepcopy(carrier), pickle.loads(pickle.dumps(carrier)), saved(carrier)):
        assert type(made) is torch.Tensor
        assert torch.equal(made, carrier.whole())


def saved(carrier: Carrier) -> Any:
    file = io.BytesIO()
    torch.save(carrier, file)
    file.seek(0)
    return torch.load(file)


def test_what_is_done_to_the_base_is_done_to_the_stream() -> None:
    from torch.distributed.utils import _apply_to_tensors
    from torch.utils._pytree import tree_map

    carrier = carrier_of(gradients=True)
    for walk in (tree_map, _apply_to_tensors):
        assert type(walk(lambda value: value.view_as(value), carrier)) is Carrier  # hooks of autograd do this
        cast = walk(lambda value: value.to(torch.float32), carrier)
        assert torch.equal(cast, carrier.whole().to(torch.float32))
        detached = walk(lambda value: value.detach(), carrier)
        assert torch.equal(detached, carrier.whole())
        assert not detached.requires_grad
        with pytest.raises(PartialModelError, match="changed a part of the residual stream"):
            walk(lambda value: value * 2, carrier)


def test_layers_that_are_compiled_differently() -> None:
    model = Called()
    farskip_compile.regional(model, compile=False, stack="layers", **OPTIONS)
    for number, layer in enumerate(model.layers):
        connectivity = "full" if number else "mlp"
        layer.compile(backend="farskip", fullgraph=True, options={**OPTIONS, "connectivity": connectivity})
    with torch.no_grad(), pytest.raises(PartialModelError, match="different connectivities: full, mlp"):
        model(ids())


@pytest.mark.parametrize(
    "write",
    [
        lambda carrier: carrier.add_(1),
        lambda carrier: carrier.__setitem__(0, 0.0),
        lambda carrier: carrier.__iadd__(1),
        lambda carrier: torch.nn.functional.relu_(carrier),
        lambda carrier: torch.nn.functional.relu(carrier, inplace=True),
        lambda carrier: torch.add(carrier.whole(), 1, out=carrier),
    ],
)
def test_what_is_written_into_a_carrier_is_not_lost_silently(write: Any) -> None:
    with pytest.raises(PartialModelError, match="would write into the residual stream"):
        write(carrier_of())
