# SPDX-License-Identifier: Apache-2.0
"""Generated decoders through Dynamo and the backend: what is demanded of each.

In:    a `GeneratedCase`: a decoder, an input, a connectivity and a range.
Out:   counts; or the first demand that is not met, as `Broken`.

Demands, for the connectivity of the case and for all others: refused with `LayerRangeError` exactly where the rules of
the paper leave nothing to change; else the output has the bits of the FarSkip form written by hand, and the gradients
are its up to rounding in float64. Under `none` both are those of the model itself, bit for bit.

Dynamo costs more than all the rest, so it captures each model once: the graph is handed to one backend for each wish,
and what they return is run with the arguments of the first call.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from farskip_compile import FarSkipConfig, FarSkipError, backend, reports
from farskip_compile.errors import LayerRangeError
from farskip_compile.testing.strategies import nothing_to_leave_out
from farskip_compile.testing.strategies.architectures import GeneratedCase
from tests.compare import far_gradients, run_with_gradients
from tests.fuzz.demands import check_refusal, demand
from tests.fuzz.wishes import NAMED

TOLERANCE = 1e-12
Function = Callable[..., Any]


@dataclass
class Backends:
    """A backend for Dynamo that hands each graph to a backend of ours for each case."""

    cases: Sequence[GeneratedCase]
    graphs: int = 0
    functions: dict[GeneratedCase, Function] = field(default_factory=dict)
    refusals: dict[GeneratedCase, FarSkipError] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    """What the graph was called with."""

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Function:
        self.graphs += 1
        for case in self.cases:
            duplicate = fx.GraphModule(module, copy.deepcopy(module.graph))
            try:
                self.functions[case] = backend(FarSkipConfig(**case.options(inner="eager")))(duplicate, inputs)
            except FarSkipError as error:
                check_refusal(error)
                self.refusals[case] = error

        def call(*arguments: Any) -> Any:
            self.arguments = arguments
            return module.forward(*arguments)

        return call


def check_architecture(example: GeneratedCase) -> Counter[str]:
    """Check one model.

    Raises:
        Broken: a demand is not met.
    """
    torch.compiler.reset()
    reports().clear()
    others = [replace(example, connectivity=name, layers=None) for name in NAMED]
    cases = list(dict.fromkeys([example, *others]))
    model, ids = example.model(), example.ids()
    backends = Backends(cases)
    torch.compile(model, backend=backends, fullgraph=True)(ids)
    demand(backends.graphs == 1, f"Dynamo made {backends.graphs} graphs")
    plain = run_with_gradients(model, model, ids)
    counts: Counter[str] = Counter({"accepted": 1})
    for case in cases:
        counts[f"{case.connectivity}: {_check_case(case, backends, model, ids, plain)}"] += 1
    torch.compiler.reset()
    return counts


def _check_case(case: GeneratedCase, backends: Backends, model: Any, ids: torch.Tensor, plain: Any) -> str:
    wish = f"{case.connectivity}, layers {case.layers}"
    error = backends.refusals.get(case)
    if nothing_to_leave_out(case):
        demand(isinstance(error, LayerRangeError), f"{wish}: nothing could be left out, and yet: {error!r}")
        return type(error).__name__
    demand(error is None, f"{wish}: refused: {error}")
    function = backends.functions[case]
    output, gradients = run_with_gradients(lambda *_: function(*backends.arguments)[0], model, ids)
    expected, expected_gradients = plain
    if case.connectivity != "none":
        expected, expected_gradients = run_with_gradients(case.oracle(model), model, ids)
    demand(torch.equal(output, expected), f"{wish}: outputs differ from the form written by hand")
    demand(gradients.keys() == expected_gradients.keys(), f"{wish}: other parameters have gradients")
    far = far_gradients(gradients, expected_gradients, 0.0 if case.connectivity == "none" else TOLERANCE)
    demand(not far, f"{wish}: gradients differ by {far}")
    return "rewired" if case.connectivity != "none" else "unchanged"
