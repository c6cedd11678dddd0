# SPDX-License-Identifier: Apache-2.0
"""Every way to touch the stream between two layers: what only reads it is exact, what changes it under `none` is exact,
and what changes it where layers take it in parts is an error. The class of fault: a touch that is lost, because it is
done to something that no later layer reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import farskip_compile
from farskip_compile.compiler.carrier.stream import Carrier
from farskip_compile.errors import PartialModelError
from tests.graphs import Layer, MoE, Stack, ids

Touch = Callable[[Any], Any]
kept: list[Any] = []


class Touched(Stack):
    """Three layers, between the first two of which `touch` is called; what it returns takes the stream's place."""

    touch: Touch | None = None

    def __init__(self) -> None:
        super().__init__(lambda: Layer(MoE()), layers=3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 0 and self.touch is not None:
                returned = self.touch(x)
                x = x if returned is None else returned
        return self.head(self.norm(x))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Touched]]:
    """One model as written, and two of the same weights that are compiled once for all tests."""
    torch.compiler.reset()
    plain = Touched()
    found = {"plain": plain, "none": copy.deepcopy(plain), "full": copy.deepcopy(plain)}
    made = [farskip_compile.regional(found[name], name, stack="layers", inner="eager") for name in ("none", "full")]
    yield found
    for one in made:
        one.undo()
    torch.compiler.reset()


@pytest.fixture(scope="module")
def untouched(models: dict[str, Touched]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return run(models["full"], None)


def run(model: Touched, touch: Touch | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of all parameters."""
    kept.clear()
    model.touch = touch
    model.zero_grad(set_to_none=True)
    output = model(ids())
    output.square().sum().backward()
    return output, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def assert_equal(one: Any, other: Any) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


def without_gradients(x: Any) -> Any:
    with torch.no_grad():
        return x.norm()


def written_by_a_function(x: Any) -> None:
    def scale(rows: np.ndarray) -> None:
        rows *= 2

    scale(x.detach().numpy())


def saved_and_written_later(x: Any) -> None:
    kept.append(x.view(-1, x.shape[-1]))
    kept.append(kept[0][1:])
    kept[1].data.zero_()


def doubled(x: Any) -> None:
    x.data.mul_(2)


READS: dict[str, Touch] = {
    "a norm for a log, without gradients": lambda x: kept.append(without_gradients(x)),
    "contiguous": lambda x: x.contiguous(),
    "to its own type": lambda x: x.to(torch.float64),
    "cpu": lambda x: x.cpu(),
    "isinstance": lambda x: x if isinstance(x, torch.Tensor) else x[0],
    "is_tensor": lambda x: x if torch.is_tensor(x) else x[0],
    "a tuple": lambda x: x[0] if isinstance(x, tuple) else x,
    "a copy that is written to": lambda x: kept.append(copy.copy(x).clone().mul_(2)),
    "numpy": lambda x: kept.append(x.detach().numpy().sum()),
    "NaN in a copy": lambda x: kept.append((x * float("nan")).add_(1)),
}
WRITES: dict[str, Touch] = {
    "in place": lambda x: kept.append(x.mul_(2)),
    "data": lambda x: kept.append(x.data.mul_(2)),
    "assigned data": lambda x: setattr(x, "data", x.data * 2),
    "a slice": lambda x: kept.append(x[:, :2].detach().add_(1)),
    "a view of a view": lambda x: kept.append(x.view(-1, x.shape[-1])[1:].data.zero_()),
    "detached": lambda x: kept.append(x.detach().mul_(2)),
    "foreach": lambda x: kept.append(torch._foreach_mul_([x.data], 2.0)),
    "foreach of a list": lambda x: kept.append(torch._foreach_add_([x.detach(), x.contiguous().data], 1.0)),
    "out": lambda x: kept.append(torch.mul(x.detach(), 2, out=x.data)),
    "numpy by a function": written_by_a_function,
    "DLPack": lambda x: kept.append(torch.from_dlpack(x.detach()).mul_(2)),
    "the storage": lambda x: kept.append(x.untyped_storage().fill_(0)),
    "copied into": lambda x: kept.append(x.data.copy_(x.detach() + 1)),
    "one row, from a list": saved_and_written_later,
    "a function that another backend compiles": torch.compile(doubled, backend="eager"),
    "minus zero": lambda x: kept.append(x.data[..., 0].fill_(-0.0)),
}
GRADIENTS: dict[str, Touch] = {
    "a hook": lambda x: x.register_hook(lambda gradient: gradient * 2) and None,
    "retain_grad": lambda x: x.retain_grad(),
    "a hook on what contiguous returns": lambda x: x.contiguous().register_hook(lambda gradient: -gradient) and None,
    "a hook by the class": lambda x: torch.Tensor.register_hook(x, lambda gradient: -gradient) and None,
    "a function of autograd": lambda x: Reversed.apply(x),
    "a reentrant checkpoint": lambda x: checkpoint(lambda value: value * 2, x, use_reentrant=True),
}
NEW: dict[str, Touch] = {"times two": lambda x: x * 2, "a float": lambda x: x.float().double()}


@pytest.mark.parametrize("name", [*READS, *WRITES, *GRADIENTS, *NEW])
def test_under_none_every_touch_is_exact(models: dict[str, Touched], name: str) -> None:
    touch = (READS | WRITES | GRADIENTS | NEW)[name]
    assert_equal(run(models["none"], touch), run(models["plain"], touch))


@pytest.mark.parametrize("name", READS)
def test_where_it_comes_in_parts_reading_is_exact(models: dict[str, Touched], untouched: Any, name: str) -> None:
    assert_equal(run(models["full"], READS[name]), untouched)


@pytest.mark.parametrize("name", [*WRITES, *GRADIENTS, *NEW])
def test_where_it_comes_in_parts_changing_it_is_refused(models: dict[str, Touched], name: str) -> None:
    touch = (WRITES | GRADIENTS | NEW)[name]
    with pytest.raises(PartialModelError, match=r"residual stream|would read") as caught:
        run(models["full"], touch)
    assert "torch.compile(model" in caught.value.way_out


def test_a_refusal_is_of_one_call_alone(models: dict[str, Touched], untouched: Any) -> None:
    with pytest.raises(PartialModelError):
        run(models["full"], lambda x: kept.append(x.data.mul_(2)))
    assert_equal(run(models["full"], None), untouched)


def test_a_write_after_the_next_layer_has_read_it_is_nobodys(models: dict[str, Touched]) -> None:
    """As in the plain model, where later layers read what the next one returned."""
    model = models["full"]
    handle = model.layers[1].register_forward_hook(lambda *_: kept.append(kept[0].data.zero_()))
    try:
        touched = run(model, lambda x: kept.append(x.contiguous()))
    finally:
        handle.remove()
    assert_equal(touched, run(model, None))


def test_the_way_out_works(models: dict[str, Touched]) -> None:
    """Layers on both sides that are not rewired: the stream between is a tensor, and every touch is exact."""
    model = copy.deepcopy(models["plain"])
    made = farskip_compile.regional(model, "full", layers=(2, 2), stack="layers", inner="eager")
    expected = copy.deepcopy(models["plain"])
    other = farskip_compile.regional(expected, "full", layers=(2, 2), stack="layers", inner="eager")
    touched = run(model, lambda x: kept.append(x.data.mul_(2)))
    assert_equal(touched, run(expected, lambda x: kept.append(x.data.copy_(x.data * 2))))
    assert not torch.equal(touched[0], run(model, None)[0])
    made.undo()
    other.undo()


def test_what_is_made_without_gradients_has_them_later(models: dict[str, Touched]) -> None:
    """A log without gradients reads the stream first; who reads it later, with gradients, gets the same tensor."""
    found: list[Any] = []

    def touch(x: Any) -> None:
        without_gradients(x)
        found.append(x)

    run(models["full"], touch)
    (carrier,) = found
    assert type(carrier) is Carrier
    assert carrier.whole() is carrier.whole()
    assert (carrier * 1).requires_grad
