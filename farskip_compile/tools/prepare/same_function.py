# SPDX-License-Identifier: Apache-2.0
"""Do two copies of a module compute the same, to the last bit? Decided by running both.

Contract: two modules that share the memory of their parameters, and calls for them, come in; None goes out if they
agree, or the reason why not. Compared are, in training and in evaluation mode, with the same random numbers: what is
returned, gradients of inputs and parameters, buffers, what the modules keep in attributes, and what they write into
parameters, which is put back. A parameter without a gradient counts as one with zeros: experts without tokens have one
or the other. Calls that the first module itself does not take are left out, but for the first one.
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


class Cannot(Exception):
    """A module could not be run, or gave something that can't be compared."""


@dataclass(frozen=True)
class FunctionDifference:
    """Why one module is not the same function as another."""

    reason: str
    ran: bool = True
    """Whether it gave something else, and did not just fail."""


def difference(old: nn.Module, new: nn.Module, calls: Iterable[ProbeCall]) -> FunctionDifference | None:
    """Why `new` is not the same function as `old`, or None."""
    compared = 0
    for training in (False, True):
        mode = "training" if training else "evaluation"
        for call in calls:
            try:
                expected = run(old, call, training)
            except Exception as error:  # whatever a foreign forward raises on such input
                if compared == 0:
                    return FunctionDifference(f"it could not be run on its own ({first_line(error)})")
                continue
            try:
                found = run(new, call, training)
            except Exception as error:
                return FunctionDifference(f"rewritten, it fails in {mode} mode ({first_line(error)})", ran=False)
            if (what := _unlike(expected, found)) is not None:
                return FunctionDifference(f"rewritten, it gives other {what} in {mode} mode")
            compared += 1
    return None


def first_line(error: Exception) -> str:
    """Type and message of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


FoundTensors = dict[str, list[Any]]


def run(module: nn.Module, call: ProbeCall, training: bool, backward: bool = True) -> FoundTensors:
    """Outputs, gradients and state after one call."""
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
                raise Cannot("it returns no tensor")
            leaves += _parameters(module)
            gradients = _gradients(outputs, leaves)
        return {
            "outputs": [o.detach() for o in outputs],
            "gradients": gradients,
            "state": [torch.get_rng_state(), *_state(module), *_written(module, writes)],
        }


def _gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[Any]:
    roots = [o for o in outputs if o.requires_grad and o.is_floating_point()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    if not roots:  # nothing that has a gradient had a part in it, such as experts that got no tokens
        return [torch.zeros_like(leaf) for leaf in leaves]
    if not leaves:
        return []
    generator = torch.Generator().manual_seed(1)
    pulls = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
    try:
        return list(torch.autograd.grad(roots, leaves, pulls, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:  # a forward for inference only, which overwrites what a backward would need
        return [type(error).__name__]


def _parameters(module: nn.Module) -> list[torch.Tensor]:
    """All of them, or some of each shape."""
    every = list(module.parameters())
    if sum(p.numel() * p.element_size() for p in every) <= LARGE:
        return list(every)
    kinds: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for parameter in every:
        kinds[parameter.shape, parameter.dtype].append(parameter)
    return [one for kind in kinds.values() for one in (*kind[: OF_EACH_SHAPE // 2], *kind[-OF_EACH_SHAPE // 2 :])]


def _state(module: nn.Module) -> Iterator[Any]:
    """Buffers, and attributes that are tensors or plain values."""
    for part in module.modules():
        yield from (buffer.clone() for buffer in part.buffers(recurse=False))
        for name, value in sorted(vars(part).items()):
            if isinstance(value, bool | int | float | str):
                yield name, value
            else:
                yield from (t.detach().clone() for t in tensors_in(value) if not isinstance(t, nn.Parameter))


def _written(module: nn.Module, writes: Writes) -> Iterator[torch.Tensor]:
    """Parameters that the call has written into, as it left them."""
    return (one.detach().clone() for one in module.parameters() if writes.has_changed(one))


def _unlike(expected: FoundTensors, found: FoundTensors) -> str | None:
    """The first thing that differs."""
    for what, values in expected.items():
        if len(values) != len(found[what]) or not all(map(_equal, values, found[what])):
            return what
    return None


def _equal(left: Any, right: Any) -> bool:
    if not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
        return bool(left == right)
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
