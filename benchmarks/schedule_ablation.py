# SPDX-License-Identifier: Apache-2.0
"""What each part of the scheduler's search earns: the search without it, on programs that are captured once.

Usage: python benchmarks/schedule_ablation.py --programs FILE [--only TEXT ...] [--json docs/schedule_ablation.json]

FILE is read if it exists, else the programs are captured into it (sealed JSON), which takes minutes: those of cells of
docs/benchmarks.md, each with the hardware profile that was calibrated for it, as graphs and as kernels; and those of
models at full width (`farskip_compile.measure.simulate`). `--only` captures those whose name contains a TEXT. Nothing
is measured: compiled kernels are not built, and costs are those of the machine model. Each program is searched on its
own, so that kernels keep the graph that the whole search made; each comes from the one before it in the compile.

The table says by how much an order is slower without a part: the worst program and the mean, for kernels and graphs of
cells and for models at full size; then the worst on a network half as slow again, and the most memory above that of the
whole search. The file also has the processor time. `benchmarks/overlap.py --table` puts it on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from common import DOCS, facts
from overlap_bench.ablations import GROUPS
from overlap_bench.cells import Cell
from overlap_bench.settings import FULL, settings_of
from overlap_bench.steps import Step, Variant, make_model
from torch._inductor.async_compile import AsyncCompile

from farskip_compile.base.json_files import JsonReader, encode, read_sealed, write_sealed
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.costs import HardwareProfile
from farskip_compile.measure.simulate import Scenario, predict
from farskip_compile.passes.schedule import graph, kernels, list_scheduler, search
from farskip_compile.passes.schedule.list_scheduler import slower_network
from farskip_compile.passes.schedule.program import Program
from farskip_compile.passes.schedule.timeline import run_timeline

RATIOS, HOSTS, ROUTING = (0.5, 1.0), 2, "balanced"
PIECES = (1, 4)
FULL_SIZE: tuple[dict[str, Any], ...] = (
    {"model": "deepseek-v3", "device": "h200", "ep": 32, "phase": "train", "prompt": 4096, "batch": 32, "layers": 8},
    {"model": "qwen3-235b-a22b", "device": "h100", "ep": 8, "phase": "prefill", "prompt": 4096, "layers": 16},
    {"model": "llama4-scout", "device": "mi325x", "tp": 8, "phase": "decode", "batch": 64, "layers": 16},
)
PREDICT = import_module("farskip_compile.measure.simulate.predict")  # the package has a function of that name


# Capture


@dataclass(frozen=True)
class Case:
    """One call of the search."""

    name: str
    group: str
    program: Program
    limits: search.MemoryLimits | None = None
    baseline_peak: int | None = None
    known: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Cases:
    """A file of them."""

    cases: tuple[Case, ...]


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
    for cell in json.loads((DOCS / "benchmarks.json").read_text())["cells"]:
        _, _, routing, hosts, ratio = cell["cell"].split("/")
        wanted = not only or any(text in cell["cell"] for text in only)
        if (int(hosts), routing) == (HOSTS, ROUTING) and float(ratio) in RATIOS and wanted:
            for pieces in PIECES:
                _capture_cell(cell, cases, pieces)
    for options in FULL_SIZE:
        name = f"{options['model']}/{options['phase']}"
        if not only or any(text in name for text in only):
            with _recorded(name, cases, full_size=True):
                predict(Scenario(**options))
    return cases


def _capture_cell(cell: dict[str, Any], cases: list[Case], pieces: int) -> None:
    settings = settings_of(Cell.parse(cell["cell"]).group, FULL)
    name = cell["cell"] if pieces == 1 else f"{cell['cell']} in {pieces} pieces"
    profile = HardwareProfile.from_json(cell["profile"])
    torch.compiler.reset()
    with (
        fake_ranks(HOSTS) as group,
        _recorded(name, cases),
        mock.patch.object(AsyncCompile, "cpp_pybinding", return_value=_stop),
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
        contextlib.suppress(_Stop),
    ):
        model = make_model(settings, group)
        options = {"connectivity": "full", "pieces": pieces, "profile": profile, "check_order": False}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        Step(settings, 0, model)(Variant("full", model, compiled))
    print(f"captured {name}", file=sys.stderr, flush=True)


def write_cases(file: Path, cases: Sequence[Case]) -> None:
    write_sealed(file, encode(Cases(tuple(cases))))


def read_cases(file: Path) -> list[Case]:
    """What `write_cases` wrote; anything else is a `ConfigError`."""
    way_out = "remove it: the programs are captured again"
    found = read_sealed(file, "captured programs", way_out=way_out)
    return list(JsonReader(str(file), always=way_out).decode(Cases, found).cases)


# Search


def _heuristics(keep: Callable[[list_scheduler.Heuristic], bool]) -> dict[str, Any]:
    return {"HEURISTICS": tuple(filter(keep, search.HEURISTICS))}


def _one_window(*args: Any) -> tuple[int, ...]:
    count = len(args[0].program.tasks)
    return list_scheduler.make_order(*args) if args[2] == count else tuple(range(count))


BIASES, SLACKS = search.WAIT_BIASES, search.NETWORK_SLACKS
PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one heuristic": (search, {"HEURISTICS": search.HEURISTICS[:1]}),
    **{f"no wait bias of {one:g}": (search, _heuristics(lambda h, one=one: h.wait_bias != one)) for one in BIASES},
    **{f"no slack of {one:g}": (search, _heuristics(lambda h, one=one: h.network_slack != one)) for one in SLACKS},
    "compute weight 1": (list_scheduler, {"COMPUTE_WEIGHT": 1.0}),
    "compute weight 0.1": (list_scheduler, {"COMPUTE_WEIGHT": 0.1}),
    "no smaller windows": (search, {"make_order": _one_window}),
    "no other candidates": (list_scheduler, {"CANDIDATES": 1}),
    "no `lower_peak`": (search, {"lower_peak": lambda program, order, limit: order}),
    "no second search with less memory": (search, {"MODEST": ()}),
    "no price for memory": (search, {"WORTH": 0.0}),
    "no gaps filled": (search, {"fill_gaps": lambda program, order, judge, allowed: order}),
    "no coarsening": (search, {"LARGE": 10**9}),
    "no known orders": (search, {}),
}


def searched(case: Case, part: str | None = None) -> dict[str, float]:
    """Figures of the search without `part`."""
    module, changes = PARTS[part] if part is not None else (search, {})
    known = () if part == "no known orders" else case.known
    start = time.process_time()
    with mock.patch.multiple(module, **changes) if changes else contextlib.nullcontext():
        found = search.list_schedule(case.program, case.limits, case.baseline_peak, known)
    seconds = time.process_time() - start
    slower = run_timeline(slower_network(case.program, 0.5), found.order).makespan
    after = found.after
    return {"time": after.makespan, "slower": slower, "peak": after.peak_bytes, "cpu": seconds}


def row(part: str, cases: Sequence[Case], whole: Sequence[dict[str, float]]) -> dict[str, Any]:
    """One line of the table: fractions above the whole search."""
    without = [searched(case, part) for case in cases]

    def more(what: str, group: str | None = None) -> list[float]:
        rows = zip(cases, without, whole, strict=True)
        return [one[what] / max(base[what], 1e-12) - 1 for case, one, base in rows if group in (None, case.group)]

    times = {group: [max(found), mean(found)] for group in GROUPS if (found := more("time", group))}
    cpu = sum(one["cpu"] for one in without) / sum(one["cpu"] for one in whole)
    return {"part": part, "time": times, "slower": max(more("slower")), "peak": max(more("peak")), "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    args = parser.parse_args()
    if not args.programs.exists():
        write_cases(args.programs, capture(args.only))
    cases = read_cases(args.programs)
    whole = [searched(case) for case in cases]
    rows = []
    for part in PARTS:
        rows.append(row(part, cases, whole))
        print(json.dumps(rows[-1]), flush=True)
    found = {group: [case.name for case in cases if case.group == group] for group in GROUPS}
    if args.json is not None:
        kept = json.loads(args.json.read_text()).get("removed", []) if args.json.exists() else []
        data = {"facts": facts(), "programs": found, "rows": rows, "removed": kept}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
