# SPDX-License-Identifier: Apache-2.0
"""What a call gives on fake values is the same, remembered or made: size, strides, place, type, device and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from farskip_compile._compat.fakes import FakeTensorMode
from farskip_compile._compat.tensors import storage_identity
from farskip_compile.passes.pieces.results import Results

aten = torch.ops.aten
CALLS: dict[str, tuple[Callable[..., Any], Callable[[torch.Tensor, torch.Tensor], tuple[Any, ...]], dict[str, Any]]] = {
    "slice": (aten.slice.Tensor, lambda a, _: (a, 1, 2, 6), {}),
    "slice of a slice": (aten.slice.Tensor, lambda a, _: (a[:, 1:], 2, 1, 3), {}),
    "view": (aten.view.default, lambda a, _: (a, [24, 4]), {}),
    "reshape that copies": (aten.reshape.default, lambda a, _: (a.transpose(0, 1), [24, 4]), {}),
    "permute": (aten.permute.default, lambda a, _: (a, [2, 0, 1]), {}),
    "expand": (aten.expand.default, lambda a, _: (a[:, :1], [3, 8, 4]), {}),
    "clone": (aten.clone.default, lambda a, _: (a.mT,), {"memory_format": torch.contiguous_format}),
    "product": (aten.bmm.default, lambda a, b: (a, b), {}),
    "product the other way": (aten.bmm.default, lambda a, b: (b, a), {}),
    "cast": (aten._to_copy.default, lambda a, _: (a,), {"dtype": torch.bfloat16}),
    "cat": (aten.cat.default, lambda a, b: ([a, a], 1), {}),
    "second argument's memory": (aten.slice.Tensor, lambda a, b: (b, 2, 0, 4), {}),
    "sum": (aten.sum.dim_IntList, lambda a, _: (a, [1], True), {}),
    "softmax": (aten._softmax.default, lambda a, _: (a, -1, False), {}),
}


def fakes(mode: FakeTensorMode) -> tuple[torch.Tensor, torch.Tensor]:
    with mode:
        return torch.empty(3, 8, 4), torch.empty(3, 4, 8)


@dataclass(eq=False)
class Counted:
    target: Callable[..., Any]
    times: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times += 1
        return self.target(*args, **kwargs)


def looks(value: torch.Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    tensors = [
        one for arg in args for one in (arg if isinstance(arg, list) else [arg]) if isinstance(one, torch.Tensor)
    ]
    memory = [storage_identity(one) == storage_identity(value) for one in tensors]
    strides = value.shape, value.stride(), value.storage_offset()
    return type(value), strides, value.dtype, value.device, memory, value.untyped_storage().nbytes()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_remembered_looks_like_what_is_made(name: str) -> None:
    target, arguments, kwargs = CALLS[name]
    results, called = Results(), Counted(target)
    for _ in range(2):  # the second time with other tensors that look the same
        mode = FakeTensorMode()
        args = arguments(*fakes(mode))
        with mode:
            made = target(*args, **kwargs)
        assert looks(results.of(called, args, kwargs), args) == looks(made, args)
    assert called.times == 1


def test_a_call_is_made_for_other_arguments() -> None:
    results, bmm, cut = Results(), Counted(aten.bmm.default), Counted(aten.slice.Tensor)
    a, b = fakes(FakeTensorMode())
    first, second = (results.of(bmm, (a, b), {}) for _ in range(2))
    assert storage_identity(first) != storage_identity(second)
    assert results.of(bmm, (b, a), {}).shape == (3, 4, 4)
    assert bmm.times == 2
    assert results.of(cut, (a, 1, 0, 4), {}).shape == (3, 4, 4)
    assert results.of(cut, (a, 1, 0, 2), {}).shape == (3, 2, 4)
    assert results.of(cut, (a.mT, 1, 0, 2), {}).stride() == (32, 1, 4)
    assert cut.times == 3


def test_what_may_look_different_each_time_is_made_each_time() -> None:
    results, several, sized = Results(), Counted(aten.split.Tensor), Counted(aten.slice.Tensor)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    a, _ = fakes(mode)
    rows = mode.shape_env.create_unbacked_symint()  # type: ignore[union-attr]
    for _ in range(2):
        assert len(results.of(several, (a, 4, 1), {})) == 2
        assert isinstance(results.of(sized, (a, 1, 0, rows), {}).shape[1], torch.SymInt)
    assert (several.times, sized.times) == (2, 2)


def test_a_view_of_one_of_two_that_share_memory_is_not_remembered() -> None:
    results, second = Results(), Counted(lambda _, other: other.view(-1))
    a, _ = fakes(FakeTensorMode())
    b, _ = fakes(a.fake_mode)  # type: ignore[attr-defined]
    results.of(second, (a, a.view(a.shape)), {})
    assert storage_identity(results.of(second, (a, b), {})) == storage_identity(b)
