# SPDX-License-Identifier: Apache-2.0
"""Steps over an emulated link: plain Inductor, its own overlap, and ours, by the ratio of communication to compute.

In:    a phase.
Out:   a row for each variant and ratio, and one for each generated program (`order.py`).
Never: gives variants different links; takes the copy that a launch makes for communication: it is there over a link
       that takes no time, too.

Schedules are made for one ratio, and timed at all. Exposed is what a step takes longer over the link than over one that
takes no time, by the same code.

Algorithm:
1. Plain Inductor over a link that takes no time: what a step computes, and what it sends.
2. The bandwidth at which all collectives, one after another, take each ratio of that.
3. Compile the other variants with the link of the planned ratio in their profile; read the order of each program.
4. Time all of them at all ratios, interleaved.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from captured_code import captured_code

from farskip_compile import reports
from farskip_compile.costs import HardwareProfile
from farskip_compile.models import Decoder
from gpu_bench.bench import LEAST, Bench
from gpu_bench.link import EmulatedLink, Wire, emulated, profile_of
from gpu_bench.order import order_of
from gpu_bench.results import Failure, Link, Times
from gpu_bench.variants import (
    OURS,
    PHASES,
    PLAIN,
    PREFILL,
    TRAINING,
    compiled,
    ids_of,
    known_profile,
    model_of,
    step_of,
)

FREE = "free"
COMPILING = 0.4
"""Fraction of the time that is left for timing: variants that are not compiled by then are left out."""


def measure(bench: Bench, phase: str) -> None:
    """See the module's contract."""
    assert phase in PHASES
    # programs are read off compiles, and more are compiled of one model than Dynamo allows by default
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    torch._dynamo.config.recompile_limit = 64
    with emulated(bench.sizes.ranks, bench.device) as group:
        _Links(bench, phase, group).measure()


class _Links:
    """One phase."""

    def __init__(self, bench: Bench, phase: str, group: EmulatedLink) -> None:
        self.bench, self.phase, self.group = bench, phase, group
        sizes, device = bench.sizes, bench.device
        self.model: Decoder = model_of(sizes.timed, device.kind, sizes.dtype, "padded", group)
        self.ids = ids_of(sizes.tokens, sizes.timed, device.kind)
        self.steps: dict[str, Callable[[], object]] = {}
        self.sent: dict[str, list[float]] = {}

    def measure(self) -> None:
        """The algorithm of the module."""
        bench, sizes = self.bench, self.bench.sizes
        self._build(PLAIN, None)  # 1
        compute = statistics.median(bench.timed(self.steps[PLAIN]) for _ in range(LEAST))
        wires = {ratio: wire_of(ratio * compute, self.sent[PLAIN], sizes.alpha) for ratio in sizes.ratios}  # 2
        known = known_profile(bench.device.kind, bench.device.name())
        profile = profile_of(known, wires[sizes.planned], sizes.ranks)
        for variant in (one for one in sizes.variants if one != PLAIN):  # 3
            if bench.left() < COMPILING:
                bench.keep(Failure(f"{self.phase}, {variant}", "no time was left to compile it"))
                continue
            with bench.attempt(f"{self.phase}, {variant}"):
                self._build(variant, profile)
        busy = {(sizes.planned, blocks): wires[sizes.planned] for blocks in sizes.blocks}
        asked = {(ratio, 0): wire for ratio, wire in wires.items()} | busy
        self._time({at: Wire(wire.alpha, wire.bandwidth, at[1]) for at, wire in asked.items()})  # 4

    def _build(self, variant: str, profile: HardwareProfile | None) -> None:
        more = {"memory_increase": self.bench.sizes.memory_increase}
        run, figures = compiled(self.model, variant, profile, **more)
        step = step_of(self.phase, self.model, run, self.ids)
        reports().clear()
        self.group.wire = None
        with figures, self.bench.device.building(), captured_code() as codes:
            step()
        self.group.sent.clear()
        step()
        self.bench.device.settle()
        self.sent[variant], self.steps[variant] = list(self.group.sent), step
        graphs = ("inference",) if self.phase == PREFILL else ("forward", "backward")
        schedules = {report.phase: report for report in reports().schedules} if variant in OURS else {}
        if len(codes) != len(graphs):
            self.bench.keep(Failure(f"{self.phase}, {variant}, order", f"{len(codes)} programs, not {len(graphs)}"))
        for graph, code in zip_longest(graphs, codes[: len(graphs)], fillvalue=""):
            self.bench.keep(order_of(code, variant, self.phase, schedules.get(graph), graph))

    def _time(self, wires: dict[tuple[float, int], Wire]) -> None:
        runs: dict[str, Callable[[], object]] = {}
        for variant in self.steps:
            for at, wire in ((FREE, None), *wires.items()):
                runs[f"{variant} {at}"] = partial(self._over, wire, variant)
        seconds = self.bench.interleaved(runs)
        for variant in self.steps:
            free, sent = Times.of(seconds[f"{variant} {FREE}"]), self.sent[variant]
            for at, wire in wires.items():
                step, on_wire = Times.of(seconds[f"{variant} {at}"]), sum(map(wire.seconds, sent))
                row: tuple[Any, ...] = (*at, wire.bandwidth, step, free, on_wire, len(sent))
                self.bench.keep(Link(self.phase, variant, *row))

    def _over(self, wire: Wire | None, variant: str) -> None:
        self.group.wire = wire
        self.steps[variant]()


def wire_of(seconds: float, sent: list[float], alpha: float) -> Wire:
    """The link over which collectives that send so many bytes take so many seconds, one after another.

    Raises:
        ValueError: their `alpha` alone takes longer.
    """
    rest = seconds - alpha * len(sent)
    if rest <= 0 or not sent:
        raise ValueError(f"{len(sent)} collectives of at least {alpha:g} s can't take {seconds:g} s in all")
    return Wire(alpha, sum(sent) / rest)


def prefill(bench: Bench) -> None:
    """The part of the forward pass."""
    measure(bench, PREFILL)


def training(bench: Bench) -> None:
    """The part of the forward and the backward pass."""
    measure(bench, TRAINING)
