# SPDX-License-Identifier: Apache-2.0
"""What scheduling adds to compile time, and how that grows with the size of the model.

Usage: python benchmarks/schedule_cost.py [--quick] [--phases ...] [--layers N ...] [--pieces N] [--json FILE]

Measured on a DeepSeek-V3 of tiny widths with 8, 32 and 61 layers, its experts spread over 8 ranks; 61 is the depth of
the real one, which has four all-to-alls for each MoE layer in a training step. A process group that sends nothing
stands in for the ranks: compiling needs no more. Width does not matter: the scheduler sees kernels, not numbers. With
the shipped profile, communication takes much longer than these kernels, so that the search never ends early because
everything is hidden: its longest case. Each size and phase has a process of its own, with one thread, an empty compile
cache directory and all of PyTorch's caches off:

* `total`: the first call of the compiled model, with `connectivity="full"`. Prefill: the forward pass under `no_grad`.
  Training: the forward pass, whose call compiles the backward graph, too.
* `graph`: normalised collectives, exchanges cut into `--pieces` with the proof of it, estimates, the order of the
  post-grad graph, and its pins; `pins`: those before fusion, for which Inductor looks up ancestors again; `kernels`:
  estimates and the order of the fused kernels.
* `share`: all three over `total`.

The last line is the verdict, and the exit status is 0 only if both hold at the largest size, in every phase: the share
is under 2 %; the exponent of scheduling time over kernels, by least squares over all sizes, is at most 1.3. An order
costs n log n; where n is larger there are more windows, and large graphs are made smaller first. `--quick` measures 2
and 8 layers of prefill: it shows that the benchmark runs, and its share is only a hint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from common import aligned, columns, facts
from compile_cost import exponent, fresh_process, timed, tiny_model

LAYERS, QUICK_LAYERS = (8, 32, 61), (2, 8)
PHASES = ("prefill", "training")
RANKS = 8
MAX_SHARE, MAX_EXPONENT = 0.02, 1.3
PARTS = ("graph", "pins", "kernels")


@dataclass(frozen=True)
class Measurement:
    """One size and phase; times in seconds."""

    layers: int
    phase: str
    nodes: int
    """In the ATen graphs that were ordered, forward and backward together."""
    kernels: int
    collectives: int
    seconds: dict[str, float]
    """For each part of the scheduling."""
    total: float

    @property
    def scheduling(self) -> float:
        """Seconds of all parts together."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Scheduling as a fraction of the first call."""
        return self.scheduling / self.total


def measure(layers: int, phase: str, pieces: int = 1) -> Measurement:
    """Compile one model in this process, which must be fresh."""
    import torch

    from farskip_compile.compiler.ranks.fake import fake_ranks
    from farskip_compile.models import ParallelConfig

    with contextlib.ExitStack() as stack:
        group = stack.enter_context(fake_ranks(RANKS))
        parallel = ParallelConfig(ep_group=group, capacity_factor=1.0)
        model, ids = tiny_model(layers, parallel=parallel, experts=2 * RANKS)
        # no other rank answers, so that there is none to compare with
        options = {"connectivity": "full", "check_order": False, "pieces": pieces}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        seconds, counts = stack.enter_context(_timed_parts())
        stack.enter_context(torch._functorch.config.patch(force_non_lazy_backward_lowering=True))
        if phase == "prefill":
            stack.enter_context(torch.no_grad())
        start = time.perf_counter()
        compiled(ids)
        total = time.perf_counter() - start
    return Measurement(layers, phase, seconds=seconds, total=total, **counts)


@contextlib.contextmanager
def _timed_parts() -> Iterator[tuple[dict[str, float], dict[str, int]]]:
    """Time the functions of ours that Inductor calls, and count what they are called on."""
    from farskip_compile._compat import inductor
    from farskip_compile.compiler import inner
    from farskip_compile.compiler.inductor_passes import post_grad
    from farskip_compile.compiler.inductor_passes.after_fusion import KernelPass
    from farskip_compile.passes.graph import comms

    seconds = dict.fromkeys(PARTS, 0.0)
    counts = {"nodes": 0, "kernels": 0, "collectives": 0}

    def counted(part: str, function: Callable[..., Any], count: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            count(*args)
            with timed(seconds, part):
                return function(*args)

        return call

    def graph(graph: Any, *_: Any) -> None:
        counts["nodes"] += len(graph.nodes)
        counts["collectives"] += sum(map(comms.is_collective, graph.nodes))

    def kernels(_: Any, kernels: Sequence[Any]) -> None:
        counts["kernels"] += len(kernels) * any(map(inductor.is_launch_kernel, kernels))

    order = counted("graph", post_grad.schedule_post_grad, graph)
    pin = counted("pins", inner.pin_before_fusion, lambda *_: None)
    reorder = counted("kernels", KernelPass.__call__, kernels)
    with (
        mock.patch.object(post_grad, "schedule_post_grad", order),
        mock.patch.object(inner, "pin_before_fusion", pin),
        mock.patch.object(KernelPass, "__call__", reorder),
    ):
        yield seconds, counts


def measure_apart(layers: int, phase: str, pieces: int = 1) -> Measurement:
    with fresh_process() as worker:
        return worker.submit(measure, layers, phase, pieces).result()


def verdict(measurements: Sequence[Measurement]) -> tuple[bool, str]:
    """Whether share and growth keep their limits, and one line for each phase with the figures."""
    good, lines = True, []
    for phase in dict.fromkeys(m.phase for m in measurements):
        sizes = [m for m in measurements if m.phase == phase]
        largest = max(sizes, key=lambda m: m.layers)
        growth = exponent([(m.kernels, m.scheduling) for m in sizes])
        cheap, even = largest.share < MAX_SHARE, growth <= MAX_EXPONENT
        words = ["met" if holds else "missed" for holds in (cheap, even)]
        good = good and cheap and even
        lines.append(
            f"{'PASS' if cheap and even else 'FAIL'}: {phase}, {largest.layers} layers: scheduling is "
            f"{100 * largest.share:.2f} % of a cold compile ({largest.scheduling:.1f} s of {largest.total:.0f} s; "
            f"limit {100 * MAX_SHARE:g} %: {words[0]}); time ~ kernels^{growth:.2f} "
            f"(limit {MAX_EXPONENT}: {words[1]})"
        )
    return good, "\n".join(lines)


def table(measurements: Sequence[Measurement]) -> str:
    """Rows are sizes; times in seconds."""
    lines = [["phase", "layers", "nodes", "kernels", "collectives", *PARTS, "ms/1000 kernels", "total", "share"]]
    for m in measurements:
        counts = map(str, (m.layers, m.nodes, m.kernels, m.collectives))
        figures = [f"{1e6 * m.scheduling / m.kernels:.0f}", f"{m.total:.1f}", f"{100 * m.share:.2f} %"]
        lines.append([m.phase, *counts, *(f"{m.seconds[part]:.2f}" for part in PARTS), *figures])
    return columns(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, prefill")
    parser.add_argument("--phases", nargs="+", choices=PHASES, help="default: both")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="default: 8 32 61; two sizes at least")
    parser.add_argument("--pieces", type=int, default=1, help="of each exchange; default: 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    args = parser.parse_args()
    args.layers = args.layers or (QUICK_LAYERS if args.quick else LAYERS)
    args.phases = args.phases or (PHASES[:1] if args.quick else PHASES)
    if len(set(args.layers)) < 2:
        parser.error("growth needs two sizes")
    return args


def main() -> int:
    args = arguments()
    about = facts()
    cut = "" if args.pieces == 1 else f", exchanges in {args.pieces} pieces"
    print(f"Cost of scheduling: DeepSeek-V3 of tiny widths, experts over 8 ranks, 16 tokens on each{cut}")
    print(aligned(about), flush=True)
    measurements = [measure_apart(layers, phase, args.pieces) for phase in args.phases for layers in args.layers]
    passed, line = verdict(measurements)
    print(table(measurements))
    if args.json is not None:
        figures = [dataclasses.asdict(m) | {"share": m.share} for m in measurements]
        args.json.write_text(json.dumps({**about, "measurements": figures, "verdict": line}, indent=1) + "\n")
    print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
