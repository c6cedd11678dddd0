# SPDX-License-Identifier: Apache-2.0
"""Inputs on which two ways to compute a module are compared, and copies of the module to run them on.

Contract: a model comes in, `ProbeCall`s of its parts go out: arguments that a part accepts, in many variations. What is
run are copies that share the memory of the parameters and nothing else (`isolated`), without hooks, so neither buffers
nor attributes nor anything that hooks would write to are touched; what they write into parameters is put back
(`everything_kept`). Names of arguments play no role.

The arguments come from the first of these that there is:
1. example inputs of the model: the arguments that reach the part in that call;
2. random rows, if the part takes one tensor. The width is tried from its own weights;
3. random token ids for the whole model, if it takes one tensor.

Variations keep what belongs together: rows of all tensors with the same leading dimensions are taken alike. One row,
twice: k experts get tokens, and others the second time; one row repeated: all tokens go to the same experts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.modules import clear_hooks
from farskip_compile.tools.prepare.preserve_state import copied, everything_kept

Map = Callable[[torch.Tensor], torch.Tensor]
ROWS = (2, 5)
"""The numbers of sequences and of tokens of random rows."""
WIDTHS = 8
"""The number of widths that are tried."""


@dataclass(frozen=True)
class ProbeCall:
    """Arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    row_sizes: torch.Tensor | None = None
    """Magnitudes of the rows, [rows, 1]: gradients of outputs are divided by them, so that small rows count as much."""

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors among the arguments, also in tuples and lists."""
        return list(tensors_in((self.args, dict(self.kwargs))))

    def map(self, function: Map) -> ProbeCall:
        """Return the same call with `function` applied to each tensor."""
        return ProbeCall(_mapped(self.args, function), _mapped(dict(self.kwargs), function), self.row_sizes)


def isolated(module: nn.Module, weights: Mapping[str, nn.Parameter] | None = None) -> nn.Module:
    """Return a copy whose parameters are the same memory, but with buffers and attributes of its own, and no hooks.

    Run it within `everything_kept`: a forward may write into its parameters.

    Args:
        module: the module.
        weights: parameters by name, for the copy to hold in place of the module's.

    Raises:
        Exception: whatever parts raise that can't be copied.
    """
    weights = weights or {}
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        memo[id(parameter)] = weights.get(name, nn.Parameter(parameter.detach(), parameter.requires_grad))
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        clear_hooks(part)
    return twin


def calls_in(model: nn.Module, names: Iterable[str], call: ProbeCall) -> dict[str, ProbeCall]:
    """Return the arguments of the first call of each named part that returns, in one call of a model.

    Raises:
        Exception: whatever the model raises before any of them returns.
    """
    twin = isolated(model)
    begun: dict[str, ProbeCall] = {}
    found: dict[str, ProbeCall] = {}

    def begin(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            begun.setdefault(name, ProbeCall(*copied(args, kwargs, ProbeCall(args, kwargs).tensors())[:2]))

        return hook

    for name in names:
        part = twin.get_submodule(name)
        part.register_forward_pre_hook(begin(name), with_kwargs=True)
        part.register_forward_hook(lambda *_, name=name: found.setdefault(name, begun[name]) and None)
    with everything_kept([twin], call.tensors()), torch.no_grad():
        args, kwargs, _ = copied(call.args, call.kwargs, call.tensors())
        try:
            twin(*args, **kwargs)
        except Exception:
            if not found:
                raise
    return found


def random_ids(model: nn.Module) -> ProbeCall:
    """Return a call with token ids that every embedding of a model has."""
    known = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return ProbeCall((torch.randint(0, min(known, default=2), ROWS, generator=_seeded()).to(_device(model)),), {})


def random_rows(module: nn.Module) -> ProbeCall | None:
    """Return a call with rows that a module accepts as its only argument, or None."""
    weights = [p for p in module.parameters() if p.is_floating_point() and p.dim() > 1]
    widths = list(dict.fromkeys(size for weight in weights for size in reversed(weight.shape)))[:WIDTHS]
    for width in widths:
        for shape in ((*ROWS, width), (ROWS[1], width)):
            call = ProbeCall((torch.randn(shape, generator=_seeded()).to(_device(module), weights[0].dtype),), {})
            try:
                twin = isolated(module)
                with everything_kept([twin]), torch.no_grad():
                    twin(*call.args)
            except Exception:  # another width, or no module that takes rows
                continue
            return call
    return None


def variations(call: ProbeCall) -> Iterator[ProbeCall]:
    """Yield the call itself, and others of the same structure."""
    yield call
    rows = _rows_of(call)
    if rows is None:
        return
    generator = _seeded()

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.numel() > 1:
            scale = tensor.std().nan_to_num(nan=1.0)
            return (torch.randn(tensor.shape, generator=generator).to(tensor) * scale + tensor.mean()).to(tensor.dtype)
        return tensor

    def taken(dims: int, choose: Callable[[int], torch.Tensor]) -> ProbeCall:
        return _taken(call, rows, dims, choose)

    yield call.map(fresh)
    yield call.map(fresh)
    yield taken(1, lambda n: torch.randperm(n, generator=generator))
    yield taken(1, lambda n: torch.tensor([0]))
    dims = min(2, max(1, rows.dim() - 1))  # sequences and tokens, or tokens alone
    for row in range(4):
        yield taken(dims, lambda n, row=row: torch.tensor([row % n]))  # type: ignore[misc]
    yield taken(dims, lambda n: torch.zeros(n, dtype=torch.long))
    yield taken(dims, lambda n: torch.arange(2 * n) % n)


def without_rows(call: ProbeCall) -> ProbeCall | None:
    """Return the same call with no row at all, as a rank without tokens makes it; None if no argument has rows."""
    rows = _rows_of(call)
    return None if rows is None else _taken(call, rows, 1, lambda _: torch.arange(0))


def _rows_of(call: ProbeCall) -> torch.Tensor | None:
    """Return the tensor whose leading dimensions say what a row is, or None."""
    tensors = call.tensors()
    rows = next((t for t in tensors if t.is_floating_point()), next(iter(tensors), None))
    return None if rows is None or rows.dim() == 0 else rows


def _taken(call: ProbeCall, rows: torch.Tensor, dims: int, choose: Callable[[int], torch.Tensor]) -> ProbeCall:
    """Return the call with the rows that `choose` picks out of a number, along the first `dims` dimensions."""

    def take(tensor: torch.Tensor) -> torch.Tensor:
        same = [dim for dim in range(dims) if tensor.shape[: dim + 1] == rows.shape[: dim + 1]]
        for dim in same:
            tensor = tensor.index_select(dim, choose(rows.shape[dim]).to(tensor.device))
        return tensor

    return call.map(take)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type | dict):
        yield from tensors_in([getattr(value, one.name, None) for one in fields(value)])
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def _mapped(value: Any, function: Map) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(part, function) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(part, function) for part in value)
    return value


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
