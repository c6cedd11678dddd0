# SPDX-License-Identifier: Apache-2.0
"""The output head of a causal model: the module that turns hidden states into logits, found by dataflow.

In:    a model, and a few tokens to run it on, once, eagerly.
Out:   `Head`: the module, and the elementwise operators after it (a scale, a soft cap, a cast), so that the logits of
       any positions can be computed from their hidden states. Or a sentence that says why there is none of that form.
Never: goes by names. Accepts a head that does not give the model's own logits when it is run on single positions.

Algorithm:
1. Run the model. What a module makes of one tensor [B, T, H] is a candidate, the innermost module first.
2. Follow each candidate through operators that are elementwise and whose other arguments are numbers; record these.
3. The candidate that arrives at the logits is the head, if its module ran once.
4. Run it on every second position alone: it must give what the model gave there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.weak import WeakIdKeyDictionary

from farskip_compile._compat.dispatch import OperatorMode
from farskip_compile._compat.tensors import parameters
from farskip_compile.healing.causal.batches import Batch, caller

FEW_SEQUENCES, FEW_TOKENS = 2, 16
"""Of the run that finds the head: its logits are whole, and have to be small."""
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.detach.default)
"""Operators that change no number but by rounding, and that torch does not call elementwise."""
PARAMETRIZED = "parametrizations."
"""In the names of parameters that a module makes its own ones of (torch.nn.utils.parametrize)."""
OPEN = 0.05
"""Relative difference that is allowed for types of 16 bits or less; for others, the root of their precision."""


@dataclass(frozen=True)
class HeadStep:
    """One elementwise operator after the head."""

    operator: Any
    at: int
    """Place of the tensor among its arguments."""
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        given = (*self.arguments[: self.at], logits, *self.arguments[self.at + 1 :])
        return self.operator(*given, **self.named)


@dataclass(frozen=True, eq=False)
class Head:
    """See the module."""

    module: nn.Module
    tails: tuple[HeadStep, ...]
    vocabulary: int
    names: Mapping[str, str]
    """Parameters and buffers of the module: their names in it -> the names that the model has for the same tensors."""

    def logits(self, states: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., H], with these parameters and buffers, by names in the module."""
        direct = _Direct(self.module)
        found = functional_call(direct, {f"inner.{name}": one for name, one in values.items()}, (states,))
        for tail in self.tails:
            found = tail(found)
        return found

    def values(self, known: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Parameters and buffers to compute logits with, whole ones: those that the module has, or what is `known` by
        the names of the model."""
        own = dict(_named(self.module))
        chosen = own if not known else {name: known[self.names[name]] for name in own}
        return {name: whole(value) for name, value in chosen.items()}


class _Direct(nn.Module):
    """The forward of a module as its class has it, or whoever replaced it, without hooks; it is not made its parent."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> Any:
        """What the module makes of it."""
        return self.inner.forward(states)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor with all numbers of one that is spread over ranks (DTensor). Its gradient becomes the mean of the ranks'
    gradients: what FSDP2 makes of those of other parameters, and the same as one rank's where all compute the same."""
    if not hasattr(value, "full_tensor"):
        return value
    from torch.distributed.tensor import Partial

    spread: Any = value
    mesh = spread.device_mesh
    found: torch.Tensor = spread.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if found.requires_grad:
        found.register_hook(lambda grad: grad / mesh.size())
    return found


def few(batch: Batch) -> Batch:
    """The first tokens of the first sequences."""
    inputs = {name: value[:FEW_SEQUENCES, :FEW_TOKENS] for name, value in batch.inputs.items()}
    return Batch(inputs, batch.targets[:FEW_SEQUENCES, : FEW_TOKENS - 1])


def find_head(model: nn.Module, batch: Batch) -> Head | str:
    """The head of `model`; a string: why there is none that can be run by itself.

    Args:
        model: run once, without gradients, in the mode that it has; its state may change.
        batch: whose first tokens it is run on.
    """
    with torch.no_grad(), _Trace() as trace, trace.watching(model):
        logits = caller(model, model)(few(batch))
    if logits not in trace.paths:
        return (
            "the logits are not what one module makes of hidden states, with elementwise operators and numbers at most"
        )
    path: _Path = trace.paths[logits]
    if trace.calls[path.module] != 1:
        return f"the module that makes the logits, {type(path.module).__name__}, runs {trace.calls[path.module]} times"
    if any(hasattr(value, "full_tensor") and PARAMETRIZED in name for name, value in _named(path.module)):
        return f"{type(path.module).__name__}, which makes the logits, puts its parameters together from parts of ranks"
    named = {id(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}
    names = {name: named[id(value)] for name, value in _named(path.module)}
    head = Head(path.module, path.tails, logits.shape[-1], names)
    with torch.no_grad():
        again = whole(head.logits(whole(path.states).flatten(0, 1)[::2], head.values()))
    wanted = whole(logits).flatten(0, 1)[::2]
    if again.shape != wanted.shape or not _close(again, wanted):
        return f"{type(path.module).__name__}, which makes the logits, says something else of single positions"
    return head


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    precision = torch.finfo(other.dtype).eps
    limit = OPEN if precision > 1e-4 else precision**0.5
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return bool((one - other).abs().max() <= limit * other.abs().max())


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@dataclass(frozen=True)
class _Path:
    """How a tensor came out of a module."""

    module: nn.Module
    states: torch.Tensor
    """What the module was given."""
    tails: tuple[HeadStep, ...] = ()


class _Trace(OperatorMode):
    """Follows what modules return."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = WeakIdKeyDictionary()
        self.calls: dict[nn.Module, int] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Look at what each module of `model` returns."""
        with ExitStack() as stack:
            for module in model.modules():
                stack.callback(module.register_forward_hook(self._returned, with_kwargs=True).remove)
            yield

    def _returned(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls[module] = self.calls.get(module, 0) + 1
        is_of_one = len(args) == 1 and not kwargs and _is_sequence(args[0]) and _is_sequence(output)
        if is_of_one and output is not args[0] and output not in self.paths:
            self.paths[output] = _Path(module, args[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [(at, one) for at, one in enumerate(args) if isinstance(one, torch.Tensor)]
        alone = len(tensors) == 1 and not any(isinstance(one, torch.Tensor) for one in kwargs.values())
        known: _Path | None = self.paths.get(tensors[0][1]) if alone else None
        if any(one.alias_info is not None and one.alias_info.is_write for one in parameters(func)):
            for _, one in tensors:
                self.paths.pop(one, None)
        if known is not None and isinstance(out, torch.Tensor):
            place, before = tensors[0]
            if _is_elementwise(func):
                bare = tuple(None if at == place else one for at, one in enumerate(args))
                self.paths[out] = _Path(known.module, known.states, (*known.tails, HeadStep(func, place, bare, kwargs)))
            elif _is_same_view(out, before):
                self.paths[out] = known
        return out


def _is_sequence(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _is_elementwise(operator: Any) -> bool:
    if torch.Tag.nondeterministic_seeded in operator.tags:
        return False
    return torch.Tag.pointwise in operator.tags or operator in COPIES


def _is_same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers, such as `x[:, :]` and `x`."""
    placed = [(x.shape, x.dtype, x.stride(), x.storage_offset()) for x in (one, other) if not hasattr(x, "full_tensor")]
    return len(placed) == 2 and placed[0] == placed[1] and one.data_ptr() == other.data_ptr()
