"""One capture of a model, run under many connectivities.

In:    a model, a batch, and named wishes: a connectivity and a range of layers each.
Out:   `Variants`: `logits(name, batch)` under each of them, operator by operator.
Never: compiles for speed; changes the model. Dynamo's capture costs far more than rewiring, so it is made once for each
       shape and mode, and every wish gets a copy of the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.backend import backend
from farskip_compile.config import FarSkipConfig
from farskip_compile.distill.batches import Batch, caller
from farskip_compile.report.compile import CompileReport


class Variants:
    """See the module.

    Args:
        model: not compiled.
        wishes: configurations by name; `inner` and `schedule` do not matter.

    Raises:
        FarSkipError: at the first call, if the model can't be rewired as one of them asks.
    """

    def __init__(self, model: nn.Module, wishes: Mapping[str, FarSkipConfig]) -> None:
        self.wishes = {name: replace(one, inner="eager", schedule=False, inductor={}) for name, one in wishes.items()}
        self.reports: dict[str, CompileReport] = {}
        self._now = next(iter(self.wishes))
        self._compiled = caller(torch.compile(model, backend=self._receive, fullgraph=True), model)

    def logits(self, name: str, batch: Batch) -> torch.Tensor:
        """Logits [B, T, V] of the model under the wish called `name`."""
        self._now = name
        return self._compiled(batch)

    def _receive(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        functions: dict[str, Callable[..., Any]] = {}

        def function(name: str) -> Callable[..., Any]:
            if name not in functions:
                one = replace(self.wishes[name], on_report=lambda report: self.reports.__setitem__(name, report))
                graph = fx.GraphModule(module, copy.deepcopy(module.graph))
                functions[name] = backend(one)(graph, inputs)
            return functions[name]

        function(self._now)  # a refusal is raised by the call that needs it
        return lambda *arguments: function(self._now)(*arguments)
