"""Programs that the scheduler's search is called with, captured without running or building anything.

In:    docs/benchmarks.json, for the hardware profile that was calibrated for each cell; scenarios at full width.
Out:   a `Case` for each call of the search: by cell as a graph and as kernels, by scenario as a graph.
Never: measures anything; searches differently: each program comes from the one before it in the compile.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from common import DOCS
from torch._inductor.async_compile import AsyncCompile

from farskip_compile.costs import HardwareProfile
from farskip_compile.passes.schedule import graph, kernels, search
from farskip_compile.passes.schedule.program import Program
from farskip_compile.simulate import Scenario, predict
from farskip_compile.testing.fake_ranks import fake_ranks
from overlap_bench.cells import Cell
from overlap_bench.settings import FULL, settings_of
from overlap_bench.steps import Step, Variant, make_model

RESULTS = DOCS / "benchmarks.json"
RATIOS, HOSTS, ROUTING = (0.5, 1.0), 2, "balanced"
FULL_SIZE: tuple[dict[str, Any], ...] = (
    {"model": "deepseek-v3", "device": "h200", "ep": 32, "phase": "train", "prompt": 4096, "batch": 32, "layers": 8},
    {"model": "qwen3-235b-a22b", "device": "h100", "ep": 8, "phase": "prefill", "prompt": 4096, "layers": 16},
    {"model": "llama4-scout", "device": "mi325x", "tp": 8, "phase": "decode", "batch": 64, "layers": 16},
)
PREDICT = import_module("farskip_compile.simulate.predict")  # the package has a function of that name


@dataclass(frozen=True)
class Case:
    """One call of the search."""

    name: str
    group: str
    program: Program
    limits: search.Limits | None
    baseline_peak: int | None
    known: tuple[tuple[int, ...], ...]


class _Stop(BaseException):
    """Ends a step before its first kernel runs."""


def _stop(*_: Any) -> None:
    raise _Stop


@contextlib.contextmanager
def _recorded(name: str, cases: list[Case], *, full_size: bool = False) -> Iterator[None]:
    """Keep what the search is called with."""

    def recorder(group: str) -> Callable[..., search.Schedule]:
        def record(program: Program, limits: Any = None, peak: Any = None, begin_with: Any = ()) -> search.Schedule:
            cases.append(Case(name, "full size" if full_size else group, program, limits, peak, tuple(begin_with)))
            return search.list_schedule(program, limits, peak, begin_with)

        return record

    with (
        mock.patch.object(graph, "list_schedule", recorder("graphs")),
        mock.patch.object(kernels, "list_schedule", recorder("kernels")),
        mock.patch.object(PREDICT, "list_schedule", recorder("graphs")),
    ):
        yield


def capture(only: Sequence[str]) -> list[Case]:
    """All cases whose name contains one of `only`, or all."""
    cases: list[Case] = []
    for cell in json.loads(RESULTS.read_text())["cells"]:
        _, _, routing, hosts, ratio = cell["cell"].split("/")
        if (int(hosts), routing) == (HOSTS, ROUTING) and float(ratio) in RATIOS and _named(cell["cell"], only):
            _capture_cell(cell, cases)
    for options in FULL_SIZE:
        name = f"{options['model']}/{options['phase']}"
        if _named(name, only):
            with _recorded(name, cases, full_size=True):
                predict(Scenario(**options))
    return cases


def _named(name: str, only: Sequence[str]) -> bool:
    return not only or any(text in name for text in only)


def _capture_cell(cell: dict[str, Any], cases: list[Case]) -> None:
    settings = settings_of(Cell.parse(cell["cell"]).group, FULL)
    profile = HardwareProfile.from_json(cell["profile"])
    torch.compiler.reset()
    with (
        fake_ranks(HOSTS) as group,
        _recorded(cell["cell"], cases),
        mock.patch.object(AsyncCompile, "cpp_pybinding", return_value=_stop),
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
        contextlib.suppress(_Stop),
    ):
        model = make_model(settings, group)
        options = {"connectivity": "full", "profile": profile, "check_order": False}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        Step(settings, 0, model)(Variant("full", model, compiled))
    print(f"captured {cell['cell']}", file=sys.stderr, flush=True)
