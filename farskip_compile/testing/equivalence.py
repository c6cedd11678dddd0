# SPDX-License-Identifier: Apache-2.0
"""Do two models compute the same: outputs, gradients, and what they write?

Contract: both are run once, with the same random numbers, on copies of the same inputs; parameters, gradients, buffers,
modes and random numbers are afterwards as before. A failure names what differs most, and by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.guard.activity import original_on_purpose
from farskip_compile.errors import ConfigError, NoResidualStackError, PartialModelError
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.testing.comparing import differences, scale_of_gradients
from farskip_compile.testing.failure import failure, refusals_fail, some
from farskip_compile.testing.running import ModelRun, named_buffers, named_parameters, run
from farskip_compile.tools.capture import compiled_with

MOST_SHOWN = 3
"""Of outputs and writes, and of gradients."""

T = TypeVar("T", bound=torch.Tensor)
PairedTensors = dict[str, tuple[T, T]]
"""What belongs to both models, by the name that it has in the first one."""


def assert_equivalent(
    model: Callable[..., Any],
    reference: Callable[..., Any],
    *args: Any,
    tolerance: float | None = None,
    **kwargs: Any,
) -> None:
    """Assert that `model` computes what `reference` computes.

    Compared are all outputs, however nested; if they have gradients, those of all parameters and of the inputs that
    require one; inputs, buffers and parameters that are written. A gradient that is missing counts as zero. Parameters
    belong together if they are the same object, else if they have the same name; a function has those of the other
    model.

    Args:
        model: a module or a function, compiled or not.
        reference: another one, such as the model before a change, or a FarSkip form written by hand.
        *args: inputs of both.
        tolerance: largest difference, relative to the largest entry of each tensor (of a gradient that is smaller than
            a thousandth of the largest one, relative to that thousandth); None: bit for bit.
        **kwargs: inputs of both by name.

    Raises:
        AssertionError: something differs, or the compiler refuses the model.
        ConfigError: a tolerance that is not a number >= 0.
    """
    if tolerance is not None and not tolerance >= 0.0:
        raise ConfigError(f"tolerance={tolerance!r} is none", way_out="None for bit for bit, or a number >= 0")
    parameters = _paired(named_parameters(model), named_parameters(reference))
    if alone := sorted(name for name, pair in parameters.items() if None in pair):
        raise failure(
            f"{len(alone)} parameters belong to one of the two models only: {some(alone)}",
            way_out="parameters must be shared or have the same names",
        )
    buffers = _paired(named_buffers(model), named_buffers(reference))
    both = {name: pair for name, pair in buffers.items() if None not in pair}
    modules = [one for one in (model, reference) if isinstance(one, nn.Module)]
    _run_and_compare((model, reference), args, kwargs, parameters, both, tolerance, modules)  # type: ignore[arg-type]


def assert_unchanged(model: Callable[..., Any], *args: Any, **kwargs: Any) -> CompileReport:
    """Assert that under `connectivity="none"` the model is bit for bit what it is: outputs, gradients, what it writes.

    The graph is normalised, read and verified as for any other connectivity, and then run operator by operator
    (`inner="eager"`), so that any difference comes from this package. The model is compared with itself in eager mode;
    gradients too, if they are enabled and an output has one. Compiled code of this process is forgotten
    (`torch.compiler.reset`). Returns the report of the compile.

    Args:
        model: a module or a function that calls one, compiled or not.
        *args: inputs.
        **kwargs: inputs by name.

    Raises:
        AssertionError: something differs, or the model can't be captured, can't be read, or has no residual stack.
    """
    reports: list[CompileReport] = []

    def original(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"), original_on_purpose():
            return model(*args, **kwargs)

    torch.compiler.reset()
    try:
        none = backend(connectivity="none", inner="eager", on_report=reports.append)
        compiled = compiled_with(model, none)
        parameters: PairedTensors[torch.Tensor] = {name: (one, one) for name, one in named_parameters(model).items()}
        buffers = {name: (one, one) for name, one in named_buffers(model).items()}
        modules = [model] if isinstance(model, nn.Module) else []
        _run_and_compare((compiled, original), args, kwargs, parameters, buffers, None, modules)
    finally:
        torch.compiler.reset()
    with refusals_fail():
        if not reports or reports[-1].outcome is Outcome.NO_STACK:
            raise NoResidualStackError(
                "the model has no residual stack: no sum that a sub-block reads from",
                way_out="give the whole model, from token ids to logits",
            )
        if reports[-1].outcome is Outcome.FRAGMENT:
            raise PartialModelError(reports[-1].reason, way_out="give the whole model, from token ids to logits")
    return reports[-1]


def _run_and_compare(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    parameters: PairedTensors[torch.Tensor],
    buffers: PairedTensors[torch.Tensor],
    tolerance: float | None,
    modules: list[nn.Module],
) -> None:
    runs: list[ModelRun] = []
    for place, function in enumerate(functions):
        mine = {name: pair[place] for name, pair in parameters.items()}
        written = {name: pair[place] for name, pair in buffers.items()}
        with refusals_fail():
            runs.append(run(function, args, kwargs, mine, written, modules))
    found, wanted = runs
    if found.flows != wanted.flows:
        alone = sorted(found.flows ^ wanted.flows)
        has = "model" if alone[0] in found.flows else "reference"
        raise failure(f"{some(alone)}: only what the {has} returns has a gradient")
    values = differences(found.values, wanted.values, tolerance)
    scale = scale_of_gradients([*found.gradients.values(), *wanted.gradients.values()])
    gradients = differences(found.gradients, wanted.gradients, tolerance, scale)
    if not values and not gradients:
        return
    shown = [*values[:MOST_SHOWN], *gradients[:MOST_SHOWN]]
    more = len(values) + len(gradients) - len(shown)
    count = len(found.values) + len(found.gradients)
    limit = (
        "are not equal bit for bit" if tolerance is None else f"differ by more than {tolerance:g} of the largest entry"
    )
    raise failure(
        f"{len(values) + len(gradients)} of {count} values {limit}; the worst:",
        "\n".join([*map(str, shown), *([f"and {more} more"] if more else [])]),
    )


def _paired(first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, tuple[T | None, T | None]]:
    """What two models have, by the names of the first one; None where one of them lacks it."""
    if not first or not second:
        return {name: (one, one) for name, one in (first or second).items()}
    names = {id(one): name for name, one in first.items()}
    pairs = {name: (one, second.get(name)) for name, one in first.items()}
    renamed = {names.get(id(one), name): one for name, one in second.items()}
    return {**pairs, **{name: (first.get(name), one) for name, one in renamed.items()}}
