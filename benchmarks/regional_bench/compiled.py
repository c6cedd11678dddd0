# SPDX-License-Identifier: Apache-2.0
"""Seconds of a compile, cold and warm: the whole graph, regional, and plain Inductor layer by layer.

In:    phase, form, and number of layers, each with a process of its own per measurement.
Out:   a `Compiled`: plain data.
Never: keeps caches from one measurement to another, or measures two at a time.

Algorithm: the model is the one of `compile_cost.py`, a DeepSeek-V3 of tiny widths, with its experts spread over fake
ranks (`farskip_compile.testing.fake_ranks`), so that there are exchanges to move. A first process compiles it with an
empty cache folder: *cold*. A second, equally fresh one does the same with what the first one left there: *warm*. Both
times are those of the first step, from the call that asks for the compile to the end of the forward pass, or of the
backward pass in training, and of what Inductor prepares once in a process and a cache folder (it compiles the headers
of C++), which an addition of two numbers makes it do before. Importing and building the model are not in them. The next
step in the same process shows how much of that is not compiling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from compile_cost import fresh_process, timed, tiny_model
from overlap_bench.cells import PREFILL, TRAINING

WHOLE, REGIONAL, PLAIN_LAYERS = "whole graph", "regional", "plain, by layer"
FORMS = (WHOLE, REGIONAL, PLAIN_LAYERS)
PHASES = (PREFILL, TRAINING)
LAYERS = (8, 32, 61)
"""61: as many as the real model has. The first three are dense in all of them."""
RANKS = 2
OPTIONS: dict[str, Any] = {"connectivity": "full", "check_order": False}
"""Of our backend; of fake ranks, none answers when orders are compared."""


@dataclass(frozen=True)
class First:
    """The first step in one process, and the next one."""

    prepared: float
    """Seconds for an addition, before."""
    model: float
    """Seconds for the first step."""
    later: float
    """For the next one."""
    graphs: int
    """Captured by Dynamo."""
    loaded: int
    """Of the model's graphs by Inductor, those that came from its cache."""

    @property
    def seconds(self) -> float:
        """Both: what a user waits for."""
        return self.prepared + self.model


@dataclass(frozen=True)
class Compiled:
    """One model size in one form and phase."""

    phase: str
    form: str
    layers: int
    cold: First
    warm: First

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is a measurement of."""
        return self.phase, self.form, self.layers


def tasks(phases: Iterable[str], layers: Iterable[int]) -> list[tuple[str, str, int]]:
    """Keys of what is to be measured, the cheap ones first."""
    sizes = sorted(layers)
    return [(phase, form, count) for count in sizes for form in reversed(FORMS) for phase in PHASES if phase in phases]


def measure(wanted: Iterable[tuple[str, str, int]]) -> Iterator[Compiled]:
    """One after another."""
    for key in wanted:
        with tempfile.TemporaryDirectory(prefix="caches-") as folder:
            cold, warm = (_apart(folder, *key) for _ in range(2))
        yield Compiled(*key, cold=cold, warm=warm)


def _apart(folder: str, *key: Any) -> First:
    with fresh_process(folder) as worker:
        return worker.submit(first_step, *key).result()


def first_step(phase: str, form: str, layers: int) -> First:
    """Compile one model in this process, which must be fresh."""
    import torch
    from torch._dynamo.utils import counters

    from farskip_compile.compiler.ranks.fake import fake_ranks
    from farskip_compile.models import ParallelConfig

    with fake_ranks(RANKS) as group:
        parallel = ParallelConfig(ep_group=group, capacity_factor=1.0)
        model, ids = tiny_model(layers, caches=True, parallel=parallel)

        def step(run: Callable[..., Any]) -> None:
            with torch.set_grad_enabled(phase == TRAINING):
                logits = run(ids)
                if phase == TRAINING:
                    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

        spent = {"prepared": 0.0, "model": 0.0, "later": 0.0}
        with timed(spent, "prepared"):
            torch.compile(lambda one: one + 1)(torch.zeros(1))
        counters.clear()
        with timed(spent, "model"):
            run = asked(form, model)
            step(run)
        with timed(spent, "later"):
            step(run)
    return First(**spent, graphs=counters["stats"]["unique_graphs"], loaded=counters["inductor"]["fxgraph_cache_hit"])


def asked(form: str, model: Any) -> Callable[..., Any]:
    """What is called in place of `model`, and compiles when it is."""
    import torch

    import farskip_compile

    if form == WHOLE:
        return torch.compile(model, backend="farskip", fullgraph=True, options=OPTIONS)
    if form == REGIONAL:
        farskip_compile.regional(model, **OPTIONS)
    else:
        for layer in model.layers:
            layer.compile(backend="inductor", fullgraph=True)
    return model
