# SPDX-License-Identifier: Apache-2.0
"""What each rank runs: one group of cells, that is one model and step at several ratios of communication to compute.

Contract: `measure_group` is called on every rank with the same arguments except `rank`, in its own process. Rank 0 asks
the process that started it for the rate of the network, and hands each finished cell over as plain data.

    1. Compute alone, without a limit on the network; this also records which collectives a step has.
    2. Compile the variants that do not depend on the network.
    3. For each ratio: find the rate at which communication alone takes that fraction of compute alone; calibrate the
       link; compile the variants that are scheduled by it, unless an earlier ratio had the same profile; compare
       results; time all variants, interleaved; profile each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from captured_code import captured_code

from farskip_compile import reports
from farskip_compile.compiler.ranks.process_group import leaving_process_group
from farskip_compile.costs import HardwareProfile
from farskip_compile.measure.profiling import kernels_visible
from farskip_compile.passes.schedule.program import Program
from overlap_bench import steps
from overlap_bench.alone import (
    Exchange,
    Probe,
    Replay,
    communication,
    compute_profile,
    find_rate,
    imbalance,
    link_profile,
    replay_group,
)
from overlap_bench.ask import ask
from overlap_bench.bound import Bound, bound_of, scaled
from overlap_bench.cells import (
    BACKEND,
    COMMUNICATION,
    COMPARED,
    COMPUTE,
    FULL,
    HALVES,
    LAG2_HAND,
    PLAIN,
    TIMED,
)
from overlap_bench.inductor import captured_programs, device_figures, facts, shared_kernels
from overlap_bench.profiled import exposure, peak_memory
from overlap_bench.results import Timing
from overlap_bench.shares import compute_shares

PROBES = 5
"""Repetitions of compute alone, and of communication alone, to find the rate."""
LARGE_MESSAGE = 600_000
"""Average bytes to another rank from which TCP may hand over larger segments."""

Data = Mapping[str, Any]


@dataclass
class Built:
    """A compiled variant."""

    variant: steps.Variant
    seconds: float
    """For its first step."""
    code: dict[str, int]
    """`CodeFacts` of what Inductor generated."""
    estimates: list[dict[str, Any]]
    """Of our scheduler, for each graph."""
    programs: list[Program]
    """What our scheduler was given."""


def measure_group(
    rank: int,
    settings: Data,
    ratios: Sequence[float],
    options: Data,
    known: Data | None,
    folder: str,
    traces: str | None,
) -> Data:
    """Measure cells, and hand each over when it is finished. Returns the profile of this machine's compute.

    As `run_group`, in the mailbox `folder`; `known` is what an earlier call returned (None: calibrate).
    """
    torch.set_num_threads(1)
    # every pass must run, since programs and code are taken from it; compiled kernels are still cached on disk
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    torch._dynamo.config.recompile_limit = 256
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    with leaving_process_group():
        machine = compute_profile(known, settings["calibration"])
        group = _Group(rank, settings, options, folder, machine)
        for ratio in ratios:
            group.measure(ratio, None if traces is None else Path(traces))
    return machine.to_json()


class _Group:
    """The state of a group between its cells."""

    def __init__(self, rank: int, settings: Data, options: Data, mailbox: str, machine: HardwareProfile) -> None:
        self.rank, self.settings, self.options, self.mailbox, self.machine = rank, settings, options, mailbox, machine
        self.world = dist.group.WORLD
        assert self.world is not None
        self.model = steps.make_model(settings, self.world)
        self.step = steps.Step(settings, rank, self.model)
        self.built: dict[str, Built] = {}
        self.digest = ""
        self._log("compute alone")
        self._compute_alone()
        variants, self.missing = steps.fixed_variants(self.model, settings, self.world)
        for variant in variants:
            self._build(variant, machine)

    def _log(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def _ask(self, question: dict[str, Any]) -> Any:
        """Rank 0's answer, on all ranks."""
        dist.barrier()
        answer = [ask(self.mailbox, question) if self.rank == 0 else None]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _compute_alone(self) -> None:
        self._ask({"rate": None})
        group = replay_group()
        self.shares = self._shares(group)
        variant = steps.compute_alone(self.settings, group, self.model)
        group.record()
        with kernels_visible(), shared_kernels():
            self.step(variant)
        group.record()
        self.step(variant)
        self.exchanges: list[Exchange] = list(group.exchanges)
        self.imbalance = imbalance(_gathered(self.exchanges))

        def run() -> None:
            group.rewind()
            self.step(variant)

        self.run_compute = run
        # the shortest: a moment in which the machine is slow would make the network slower in all cells
        probed = _gathered(steps.interleaved({COMPUTE: run}, 2 * PROBES)[COMPUTE])
        self.compute = min(map(max, zip(*probed, strict=True)))

    def _shares(self, group: Replay) -> dict[str, float]:
        """What attention, shared and routed experts compute: the mean over ranks."""
        model = steps.make_model(self.settings, group, self.model)
        variant = steps.Variant(PLAIN, model, model)
        group.record()
        self.step.forward(variant)

        def run() -> None:
            group.rewind()
            self.step.forward(variant)

        found = _gathered(compute_shares(model, run))
        return {part: statistics.fmean(one[part] for one in found) for part in found[0]}

    def _build(self, variant: steps.Variant, profile: HardwareProfile) -> None:
        reports().clear()
        start = time.perf_counter()
        with (
            kernels_visible(),
            shared_kernels(),
            device_figures(profile, self.imbalance),
            captured_programs() as programs,
            captured_code() as codes,
        ):
            self.step(variant)
        seconds = time.perf_counter() - start
        estimates = [schedule.to_json() for schedule in reports().schedules]
        self.built[variant.name] = Built(variant, seconds, asdict(facts(codes)), estimates, programs)
        self._log(f"{variant.name}: first step after {seconds:.0f} s")
        dist.barrier()

    def measure(self, ratio: float, traces: Path | None) -> None:
        """One cell."""
        run = communication(self.exchanges)
        run()
        probed = self._probe(ratio, run)
        network = probed.network
        times = f"compute {1e3 * self.compute:.0f} ms, communication {1e3 * probed.seconds:.0f} ms"
        self._log(f"ratio {ratio:g}: {times}; {network['text']}")
        seconds, rate = self.settings["calibration"], network["rate"]
        profile = link_profile(self.machine, seconds, exchanges=self.exchanges, rate=rate, alone=probed.seconds)
        stale, self.digest = profile.digest() != self.digest, profile.digest()
        options = {"load_imbalance": self.imbalance, **self.options}
        for variant in steps.profiled_variants(self.model, profile, options, self.settings, ratio, self.world):
            if stale or variant.name not in self.built:
                self._build(variant, profile)

        without = steps.left_out(self.settings, ratio)
        names = (name for name in TIMED if name in self.built and name not in without)
        variants = {name: self.built[name].variant for name in names}
        checks = self._checks(variants)
        runs = {name: (lambda variant=variant: self.step(variant)) for name, variant in variants.items()}
        before = steps.processor_seconds()
        seconds = steps.interleaved(
            {**runs, COMPUTE: self.run_compute, COMMUNICATION: run},
            int(self.settings["repetitions"]),
            least=int(self.settings["least"]),
            budget=float(self.settings["seconds"]),
        )
        busy = [now - then for now, then in zip(steps.processor_seconds(), before, strict=True)]
        exposed, peaks = {}, {}
        messages = {exchange.sent * exchange.dtype.itemsize for exchange in self.exchanges}
        for name in variants:
            file = f"{self.settings['model']}-{self.settings['phase']}-{ratio:g}-{name}-{self.rank}.json.gz"
            path = None if traces is None else traces / file
            exposed[name] = exposure(runs[name], int(self.settings["profiles"]), path)
            peaks[name] = peak_memory(runs[name])
        value = {
            "messages": sorted(messages),
            "seconds": seconds,
            "checks": checks,
            "exposed": exposed,
            "peak_bytes": peaks,
            "busy": busy,
        }
        self._hand_over(ratio, network, profile, _gathered(value), {name: self.built[name] for name in variants})

    def _checks(self, variants: Mapping[str, steps.Variant]) -> list[dict[str, Any]]:
        """Each variant against what it must equal. Results are gradients, too: no more than two are held at a time."""
        known = {**variants, LAG2_HAND: steps.lag2_by_hand(self.model), HALVES: steps.in_halves(self.model)}
        checks = []
        for other in dict.fromkeys(other for _, other in COMPARED):
            names = [one for one, wanted in COMPARED if wanted == other and one in variants]
            wanted = self.step.results(known[other]) if names else {}
            for one in names:
                checks.append({"one": one, "other": other, **steps.compare(self.step.results(known[one]), wanted)})
        return checks

    def _probe(self, ratio: float, run: Any) -> Probe:
        """Set the rate."""
        ranks = dist.get_world_size()
        own = sum(exchange.bytes_out(self.rank, ranks) for exchange in self.exchanges)
        large = own > LARGE_MESSAGE * len(self.exchanges) * (ranks - 1)

        def measured(rate: float) -> Probe:
            network = self._ask({"rate": rate, "large_segments": large})
            return Probe(rate, Timing.of(_gathered(steps.interleaved({"": run}, PROBES)[""])).median, network)

        return find_rate(ratio * self.compute, max(_gathered(own)), measured)

    def _hand_over(
        self, ratio: float, network: Data, profile: HardwareProfile, values: list[Data], built: Mapping[str, Built]
    ) -> None:
        ours = {name: one for name, one in built.items() if name in BACKEND}
        alone = [Timing.of([value["seconds"][what] for value in values]).median for what in (COMPUTE, COMMUNICATION)]
        bound: Bound = bound_of(scaled(self.built[FULL].programs, *alone))
        cell = {
            "ratio": ratio,
            "network": network,
            "ranks": values,
            "exchanges": len(self.exchanges),
            "resident_bytes": self.step.resident_bytes(self.model),
            "compile_seconds": {name: one.seconds for name, one in built.items()},
            "code": {name: one.code for name, one in built.items()},
            "estimates": {name: one.estimates for name, one in ours.items()},
            "model_bound": {**asdict(bound), "unhideable": bound.unhideable, "slowing": bound.slowed - bound.total},
            "profile": profile.to_json(),
            "missing": self.missing,
            "shares": self.shares,
            "least_makespans": {name: bound_of(one.programs).slowed for name, one in ours.items()},
            "largest_exchange": max(max(value["messages"]) for value in values),
        }
        self._ask({"cell": cell})


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
