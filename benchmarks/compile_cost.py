# SPDX-License-Identifier: Apache-2.0
"""What the rewiring adds to compile time, and how that grows with the size of the model.

Usage: python benchmarks/compile_cost.py [--quick] [--json FILE]

Measured on a DeepSeek-V3 (latent attention, group-limited sigmoid router, one shared expert) of tiny widths with 2,
8, 32 and 61 layers; 61 is the depth of the real one. Width does not matter: the passes see nodes, not numbers. Each
size has its own process, with one thread, an empty compile cache directory and all of PyTorch's caches off:

* `cold total`: the first call of the compiled model, a prefill under `no_grad`: Dynamo, our backend, the inner
  backend with its C++ builds, guards, and the run itself. Measured once.
* `ours, cold`: the time that this call spent in our backend. To time it separately, our backend is called with
  inner="eager", which adds nothing, and the rewired graph is then handed to the inner backend.
* `share`: `ours, cold` over `cold total`.
* per-pass times and `ours`: medians over repetitions of our whole backend on copies of the graph that Dynamo
  captured, after the cold calls. `other` is what the reports don't time: the report itself, the cache identity.
  The sizes are interleaved, so that a busy machine slows all of them alike. Python's garbage collector runs as usual.

The last line is the verdict, and the exit status is 0 only if both hold:

* growth is linear: the least-squares slope of log(fastest repetition) over log(nodes) from 8 layers on is at most
  1.15. The slope is the exponent of a power law: 1 is linear, 2 quadratic. From 8 to 61 layers nodes grow 8.6 times:
  n log n would show as 1.12, a quadratic term that is a tenth of the time at 8 layers as 1.25, n * sqrt(n) as 1.5.
  The fastest repetition, because noise from other processes is never negative. Two layers are left out of the fit:
  fixed costs dominate there.
* the share at the largest size is under 3 %.

`--quick` compiles 61 layers with inner="aot_eager" (Dynamo, AOTAutograd and its decompositions, but no code
generation), and meanwhile captures the other sizes in one process without compiling them further: they have no total.
The total is much smaller than Inductor's and the share that much larger: its limit is harder to meet than in the full
run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import aligned, columns, facts

LAYERS = (2, 8, 32, 61)
FIT_FROM_LAYERS = 8
MAX_EXPONENT = 1.15
MAX_SHARE = 0.03
CAPTURE_ONLY = "none"
"""Instead of an inner backend: the call ends when our backend is done."""


@dataclass(frozen=True)
class Measurement:
    """One model size; all times in seconds."""

    layers: int
    nodes: int
    inner: str
    passes: dict[str, float]
    """Median of each pass."""
    ours: float
    """Our whole backend without the inner one: median."""
    fastest: float
    """The same: fastest repetition."""
    ours_cold: float
    """The same in the cold call."""
    total: float | None
    """The cold call; None if it ended with the capture."""

    @property
    def share(self) -> float:
        """Our fraction of the cold call."""
        return math.nan if self.total is None else self.ours_cold / self.total


# The verdict


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of log(y) over log(x): p of y = c * x^p."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two different sizes")
    return statistics.linear_regression(*([math.log(one) for one in axis] for axis in zip(*points, strict=True))).slope


def verdict(measurements: Sequence[Measurement]) -> tuple[bool, str]:
    """Whether growth and share are within their limits, and a line with the figures."""
    fitted = [m for m in measurements if m.layers >= FIT_FROM_LAYERS]
    largest = max(measurements, key=lambda m: m.layers)
    growth = exponent([(m.nodes, m.fastest) for m in fitted])
    linear, cheap = growth <= MAX_EXPONENT, largest.share < MAX_SHARE
    words = ["met" if holds else "missed" for holds in (linear, cheap)]
    span = f"{min(m.layers for m in fitted)} to {largest.layers} layers"
    line = (
        f"{'PASS' if linear and cheap else 'FAIL'}: time ~ nodes^{growth:.2f} from {span} "
        f"(limit {MAX_EXPONENT}: {words[0]}); {100 * largest.share:.2f} % of a cold {largest.inner} compile of "
        f"{largest.layers} layers ({1e3 * largest.ours_cold:.0f} ms of {largest.total or math.nan:.1f} s; "
        f"limit {100 * MAX_SHARE:g} %: {words[1]})"
    )
    return linear and cheap, line


# One size


class Probe:
    """One model size: one cold compile, then any number of runs of our backend on copies of the captured graph."""

    def __init__(self, layers: int, inner: str) -> None:
        import torch

        import farskip_compile
        from farskip_compile.compiler.ranks.identity import identity_of

        model, ids = tiny_model(layers)
        config = farskip_compile.FarSkipConfig(inner="eager")
        self.layers, self.inner = layers, inner
        self.rows: list[dict[str, float]] = []
        self._ours = farskip_compile.backend(config)
        self._identity = lambda module: identity_of(config, module, None)
        self._last_report = lambda: farskip_compile.reports().compiles[-1]
        captured: list[torch.fx.GraphModule] = []
        spent = {"copy": 0.0, "ours": 0.0}

        def cold(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            with timed(spent, "copy"):
                captured.append(_copy(module))
            with timed(spent, "ours"):
                self._rewire(module, inputs)
            return _stop if inner == CAPTURE_ONLY else torch._dynamo.lookup_backend(inner)(module, inputs)

        start = time.perf_counter()
        with torch.no_grad(), contextlib.suppress(_Captured):
            torch.compile(model, backend=cold, fullgraph=True)(ids)
        total = time.perf_counter() - start - spent["copy"]
        self.total = None if inner == CAPTURE_ONLY else total
        self.ours_cold = spent["ours"]
        report = self._last_report()
        if len(captured) != 1 or report.outcome is not farskip_compile.Outcome.REWIRED:
            raise RuntimeError(f"expected one rewired graph: {len(captured)} graphs, {report.summary()}")
        self.nodes = report.nodes
        self._graph = captured[0]

    def repeat(self) -> None:
        """Time our backend once more."""
        module = _copy(self._graph)
        whole = {"ours": 0.0}
        with timed(whole, "ours"):
            self._rewire(module, [])
        passes = self._last_report().seconds
        self.rows.append({**passes, "other": whole["ours"] - sum(passes.values()), **whole})

    def _rewire(self, module: Any, inputs: Sequence[Any]) -> None:
        """All that our backend does before it calls the inner one; `module` is rewired in place."""
        self._ours(module, inputs)
        self._identity(module)

    def result(self) -> Measurement:
        """Medians of the repetitions so far."""
        medians = {name: statistics.median(row[name] for row in self.rows) for name in self.rows[0]}
        return Measurement(
            layers=self.layers,
            nodes=self.nodes,
            inner=self.inner,
            ours=medians.pop("ours"),
            fastest=min(row["ours"] for row in self.rows),
            passes=medians,
            ours_cold=self.ours_cold,
            total=self.total,
        )


class _Captured(Exception):
    """Ends a call once its graph is captured."""


def _stop(*args: Any) -> Any:
    raise _Captured


def _copy(module: Any) -> Any:
    """A graph module of the same class (Dynamo's generate their code lazily) with a copy of the graph."""
    kind = next(base for base in type(module).__mro__ if not base.__qualname__.endswith("GraphModuleImpl"))
    return kind(module, copy.deepcopy(module.graph))


def tiny_model(layers: int, *, caches: bool = False, **options: Any) -> tuple[Any, Any]:
    """The model and 16 tokens for it, in a process with one thread, and without caches unless they are asked for."""
    import torch

    from farskip_compile.models import build

    torch.set_num_threads(1)
    torch.compiler.config.force_disable_caches = not caches
    warnings.filterwarnings("ignore", message=".*force_disable_caches.*")
    dense = min(3, layers - 1)
    kinds = ("dense",) * dense + ("moe",) * (layers - dense)
    widths = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}
    model = build("deepseek_v3", layers=kinds, **widths, **options)
    return model, torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start


# Processes


@contextlib.contextmanager
def fresh_process(folder: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """A worker with one thread, and `folder` for its compile caches; None: an empty one."""
    with contextlib.ExitStack() as stack:
        cache = folder or stack.enter_context(tempfile.TemporaryDirectory())
        context = get_context("spawn")
        yield stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(cache,)))


_probes: list[Probe] = []
"""Of this worker."""


def _begin(cache: str) -> None:
    """Before anything imports torch."""
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=cache, OMP_NUM_THREADS="1")


def _compile(sizes: Sequence[int], inner: str) -> None:
    _probes.extend(Probe(size, inner) for size in sizes)


def _each(method: str) -> list[Any]:
    return [getattr(probe, method)() for probe in _probes]


def measure_all(lots: Sequence[tuple[Sequence[int], str]], repetitions: int, together: bool) -> list[Measurement]:
    """One fresh process for each lot of sizes and their inner backend; cold calls one after another or all together."""
    with contextlib.ExitStack() as stack:
        workers, compiled = [], []
        for sizes, inner in lots:
            workers.append(stack.enter_context(fresh_process()))
            compiled.append(workers[-1].submit(_compile, sizes, inner))
            if not together:
                compiled[-1].result()
        for one in compiled:
            one.result()
        for _ in range(repetitions):
            for worker in workers:
                worker.submit(_each, "repeat").result()
        found = (one.submit(_each, "result").result() for one in workers)
        return sorted(chain.from_iterable(found), key=lambda m: m.layers)


# Output


def table(measurements: Sequence[Measurement]) -> str:
    """Rows are sizes; times in ms, but totals in s."""
    passes = list(measurements[-1].passes)
    lines = [["layers", "nodes", *passes, "ours", "ms/1000 nodes", "ours, cold", "cold total", "share"]]
    for m in measurements:
        times = [*(1e3 * m.passes[name] for name in passes), 1e3 * m.ours, 1e6 * m.ours / m.nodes, 1e3 * m.ours_cold]
        whole = ["-", "-"] if m.total is None else [f"{m.total:.1f} s", f"{100 * m.share:.2f} %"]
        lines.append([str(m.layers), str(m.nodes), *(f"{time:.1f}" for time in times), *whole])
    return columns(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="compile the largest size only, inner=aot_eager: < 50 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    parser.add_argument(
        "--inner", choices=("inductor", "aot_eager", CAPTURE_ONLY), help="the inner backend (default: inductor)"
    )
    parser.add_argument("--repetitions", type=int, help="of our backend, per size (default: 7; quick: 3)")
    args = parser.parse_args()
    args.inner = args.inner or ("aot_eager" if args.quick else "inductor")
    args.repetitions = args.repetitions or (3 if args.quick else 7)
    return args


def main() -> int:
    args = arguments()
    start = time.perf_counter()
    about = facts()
    *small, largest = LAYERS
    lots = [([largest], args.inner), (small, CAPTURE_ONLY)] if args.quick else [([n], args.inner) for n in LAYERS]
    measurements = measure_all(lots, args.repetitions, together=args.quick)
    elapsed = time.perf_counter() - start
    passed, line = verdict(measurements)

    print(f"Cost of the rewiring: DeepSeek-V3 of tiny widths, prefill of 16 tokens, inner={args.inner!r}")
    print(aligned(about))
    print(
        f"method:   passes in ms, median of {args.repetitions} on copies of the captured graph; cold total once, "
        f"caches off, empty cache directory{', smaller sizes captured meanwhile' * args.quick}; {elapsed:.0f} s in all"
    )
    print(table(measurements))
    if args.json is not None:
        shares = ({"share": None if m.total is None else m.share} for m in measurements)
        record = {
            **about,
            "repetitions": args.repetitions,
            "elapsed": elapsed,
            "measurements": [dataclasses.asdict(m) | one for m, one in zip(measurements, shares, strict=True)],
            "exponent": exponent([(m.nodes, m.fastest) for m in measurements if m.layers >= FIT_FROM_LAYERS]),
            "passed": passed,
            "verdict": line,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
