# SPDX-License-Identifier: Apache-2.0
"""Do two modules compute the same? Decided by running both.

Contract: two modules of the same structure, and calls for them, come in; None goes out if they agree, or the reason why
not. Compared are, in training and in evaluation mode, with the same random numbers: what is returned, gradients of
inputs and parameters, and state: buffers, what the modules keep in attributes, and what they write into parameters,
which is put back. A parameter without a gradient counts as one with zeros: experts without tokens have one or the
other.

Without a tolerance, bits are compared, and calls that the first module itself does not take are left out, but for the
first one. With a tolerance, outputs must agree row by row and each gradient as a whole, up to rounding; every call must
run, and state is not compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.prepare.probe_inputs import ProbeCall, tensors_in
from farskip_compile.tools.prepare.writes import Writes

LARGE = 2**30
"""Bytes of parameters above which gradients are compared for some parameters of each shape only."""
OF_EACH_SHAPE = 4
OUTPUTS, GRADIENTS, STATE = "outputs", "gradients", "state"

RunResults = dict[str, list[Any]]
"""Outputs, gradients and state after one call."""


class Incomparable(Exception):
    """A module gave nothing that can be compared."""


@dataclass(frozen=True)
class FunctionDifference:
    """The reason why one module is not the same function as another."""

    reason: str
    ran: bool = True
    """True if the second module gave other results, False if it failed."""


def difference(
    old: nn.Module,
    new: nn.Module,
    calls: Iterable[ProbeCall],
    *,
    subject: str = "rewritten, it",
    tolerance: float | None = None,
) -> FunctionDifference | None:
    """Return why `new` is not the same function as `old`, or None if it is.

    Args:
        old: the module as it is.
        new: the module that is to take its place.
        calls: arguments that both are run on.
        subject: the words for `new` in the reason.
        tolerance: the largest relative difference that counts as rounding; None: bits and state are compared.
    """
    compared = 0
    for training in (False, True):
        mode = "training" if training else "evaluation"
        for call in calls:
            try:
                expected = run(old, call, training)
            except Exception as error:  # whatever a foreign forward raises on such input
                if compared == 0 or tolerance is not None:
                    return FunctionDifference(f"it could not be run on its own ({first_line(error)})")
                continue
            try:
                found = run(new, call, training)
            except Exception as error:
                return FunctionDifference(f"{subject} fails in {mode} mode ({first_line(error)})", ran=False)
            if (unlike := _first_unlike(expected, found, tolerance)) is not None:
                return FunctionDifference(f"{subject} gives other {unlike} in {mode} mode")
            compared += 1
    return None


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run(module: nn.Module, call: ProbeCall, training: bool, backward: bool = True) -> RunResults:
    """Call a module, with the same random numbers each time, and return its results."""
    with everything_kept([module], call.tensors()) as writes:
        torch.manual_seed(0)
        module.train(training)
        leaves: list[torch.Tensor] = []

        def leaf(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor.clone()
            leaves.append(tensor.detach().clone().requires_grad_())
            return leaves[-1] * 1  # no leaf itself, so that it may be written to

        with torch.set_grad_enabled(backward):
            moved = call.map(leaf)
            outputs = list(tensors_in(module(*moved.args, **moved.kwargs)))
            if not outputs:
                raise Incomparable("it returns no tensor")
            leaves += _compared_parameters(module)
            gradients = _gradients(outputs, leaves, call.row_sizes)
        return {
            OUTPUTS: [o.detach() for o in outputs],
            GRADIENTS: gradients,
            STATE: [torch.get_rng_state(), *_state(module), *_written_parameters(module, writes)],
        }


def _gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor], row_sizes: torch.Tensor | None) -> list[Any]:
    """Return the gradients of `leaves` for random gradients of the outputs, which are divided by `row_sizes`."""
    roots = [o for o in outputs if o.requires_grad and o.is_floating_point()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    if not roots:  # nothing that has a gradient had a part in it, such as experts that got no tokens
        return [torch.zeros_like(leaf) for leaf in leaves]
    if not leaves:
        return []
    generator = torch.Generator().manual_seed(1)
    pulls = []
    for root in roots:
        pull = torch.randn(root.shape, generator=generator)
        pulls.append((pull if row_sizes is None else pull / row_sizes).to(root))
    try:
        return list(torch.autograd.grad(roots, leaves, pulls, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:  # a forward for inference only, which overwrites what a backward would need
        return [type(error).__name__]


def _compared_parameters(module: nn.Module) -> list[torch.Tensor]:
    """Return all parameters, or some of each shape if there are too many bytes of them."""
    every = list(module.parameters())
    if sum(p.numel() * p.element_size() for p in every) <= LARGE:
        return list(every)
    kinds: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for parameter in every:
        kinds[parameter.shape, parameter.dtype].append(parameter)
    chosen: list[torch.Tensor] = []
    for kind in kinds.values():
        chosen += [*kind[: OF_EACH_SHAPE // 2], *kind[-OF_EACH_SHAPE // 2 :]]
    return chosen


def _state(module: nn.Module) -> Iterator[Any]:
    """Yield buffers, and attributes that are tensors or plain values."""
    for part in module.modules():
        yield from (buffer.clone() for buffer in part.buffers(recurse=False))
        for name, value in sorted(vars(part).items()):
            if isinstance(value, bool | int | float | str):
                yield name, value
            else:
                yield from (t.detach().clone() for t in tensors_in(value) if not isinstance(t, nn.Parameter))


def _written_parameters(module: nn.Module, writes: Writes) -> Iterator[torch.Tensor]:
    """Yield copies of the parameters that the call has written into."""
    return (one.detach().clone() for one in module.parameters() if writes.has_changed(one))


def _first_unlike(expected: RunResults, found: RunResults, tolerance: float | None) -> str | None:
    """Return the name of the first kind of results that differs, or None."""
    for kind, values in expected.items():
        if kind == STATE and tolerance is not None:
            continue
        if len(values) != len(found[kind]):
            return kind
        for left, right in zip(values, found[kind], strict=True):
            if not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
                if left != right:
                    return kind
            elif left.dtype != right.dtype or left.shape != right.shape:
                return f"{kind} ({tuple(right.shape)} {right.dtype}, not {tuple(left.shape)} {left.dtype})"
            elif not _agree(left, right, tolerance, by_row=kind == OUTPUTS):
                return kind
    return None


def _agree(left: torch.Tensor, right: torch.Tensor, tolerance: float | None, *, by_row: bool) -> bool:
    """Return whether two tensors of one shape are equal, or within `tolerance` of the largest number of `left`."""
    if tolerance is None or not left.is_floating_point() or left.numel() == 0:
        return torch.equal(left, right)
    gap, size = (left - right).abs(), left.abs()
    if by_row:
        return bool((gap.amax(dim=-1) <= tolerance * size.amax(dim=-1)).all())
    return bool(gap.max() <= tolerance * size.max())
