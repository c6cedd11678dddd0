# SPDX-License-Identifier: Apache-2.0
"""The prediction of one step: as the model is written, and under FarSkip in AMD's order and in ours.

In:    a `Scenario`.
Out:   a `Prediction`.
Never: runs the model; needs the hardware; depends on a clock: equal scenarios give equal predictions.

1. Build the model of one rank, at full size on fake tensors (`rank_model`), within fake ranks.
2. Capture it once, and get the ATen graphs of two connectivities or more from the code that the backend runs
   (`capture`). For exchanges in pieces the model is built with them and captured once more; for two micro-batches it is
   captured with half of the sequences, and its programs are put together (`batches`).
3. Read each graph as a program of tasks, by the cost model and the profile (`phases`), and simulate the program on two
   resources, compute and the network, in several orders (`passes.schedule.program`):

       written     the model as it is, each collective awaited where it is launched
       scheduled   the model as it is, in the order of our scheduler: the gain of overlapping alone
       published   FarSkip, in AMD's order (`published`)
       farskip     FarSkip, in the order of our scheduler
       also        on request: the second and the last with exchanges in pieces, and in two micro-batches; other
                   connectivities

All ranks do the same, so one stands for all; with skewed routing it is the fullest one, for which all others wait.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.inductor_passes.plan import UNFUSED
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.phases import PhaseProgram, read_phases
from farskip_compile.measure.simulate.rank_model import RankModel, rank_model
from farskip_compile.measure.simulate.results import PhaseResult, Prediction, StepResult
from farskip_compile.measure.simulate.scenario import Scenario
from farskip_compile.passes.schedule.search import MemoryLimits, list_schedule
from farskip_compile.passes.schedule.timeline import flights, simulate
from farskip_compile.tools.capture import Graphs, GraphsOf, with_graphs

LIMITS = MemoryLimits(memory_increase=UNFUSED * MemoryLimits.memory_increase)
"""The backend's limits on memory for a graph whose kernels are not fused yet."""
NAMES_CUT: Mapping[ConnectivityName, str] = {"none": "overlapped", "full": "FarSkip"}
AFTER_CAPTURE = ("device", "measured", "slower", "interference")
"""Fields in which scenarios of one capture may differ."""


def predict(scenario: Scenario) -> Prediction:
    """Predict one step of `scenario`.

    Raises:
        ConfigError: the model can't be cut as the scenario says.
        FarSkipError: the model can't be rewired.
    """
    return predict_each([scenario])[0]


def predict_each(scenarios: Sequence[Scenario]) -> list[Prediction]:
    """Predict several scenarios, which differ only in device, measured, slower and interference, from one capture.

    Raises:
        ConfigError: they differ in more, or as `predict`.
        FarSkipError: as `predict`.
    """
    if not scenarios:
        return []
    scenario = scenarios[0]
    for one in scenarios[1:]:
        if replace(one, **{name: getattr(scenario, name) for name in AFTER_CAPTURE}) != scenario:
            raise ConfigError(
                "scenarios that differ in what is captured can't share a capture",
                way_out=f"predict them one by one; only {', '.join(AFTER_CAPTURE)} may differ",
            )
    took: dict[str, float] = {}
    nothing: list[Mapping[ConnectivityName, list[PhaseProgram]]] = [{} for _ in scenarios]
    with fake_ranks(scenario.ranks):
        whole = _capture(scenarios, took)
        cut = _capture(scenarios, took, scenario.pieces).programs if scenario.pieces > 1 else nothing
        halves = _capture(list(map(_half_batch, scenarios)), took).programs if scenario.micro_batches > 1 else nothing
        return [
            _predict(one, whole, each, in_pieces, half, took)
            for one, each, in_pieces, half in zip(scenarios, whole.programs, cut, halves, strict=True)
        ]


def _half_batch(scenario: Scenario) -> Scenario:
    """Return the scenario of one micro-batch of two."""
    return replace(scenario, batch=scenario.batch // 2, micro_batches=1, also=())


@dataclass(frozen=True)
class _Captured:
    """The programs of one captured model."""

    model: RankModel
    nodes: int
    rewired: str
    programs: Sequence[Mapping[ConnectivityName, list[PhaseProgram]]]
    """The programs of each scenario, by connectivity."""


def _capture(scenarios: Sequence[Scenario], took: dict[str, float], pieces: int = 1) -> _Captured:
    """Capture the model, and read the programs of `none`, `full` and, in one piece, `also`."""
    scenario = scenarios[0]
    start = time.perf_counter()
    model = rank_model(scenario, pieces)
    began = time.perf_counter()
    took["model"] = took.get("model", 0.0) + began - start
    standard = FarSkipConfig(connectivity="none", inner="inductor")
    merges = scenario.exchanges == "all-reduce"

    def use(graphs: GraphsOf) -> _Captured:
        found: dict[ConnectivityName, Graphs] = {"none": graphs(standard)}
        others: tuple[ConnectivityName, ...] = scenario.also if pieces == 1 else ()
        for name in ("full", *others):
            merged = merges and name in ("full", "mlp")
            found[name] = graphs(replace(standard, connectivity=name, merge_reductions=merged))
        took["graphs"] = took.get("graphs", 0.0) + time.perf_counter() - began
        report = found["full"].report
        took["passes"] = took.get("passes", 0.0) + sum(report.seconds.values())
        programs = []
        for one in scenarios:
            programs.append({name: read_phases(one, model.imbalance, each) for name, each in found.items()})
        return _Captured(model, report.nodes, report.summary(), programs)

    with model.mode:
        return with_graphs(model.module, (), model.kwargs, use, backward=scenario.trains)


def _predict(
    scenario: Scenario,
    captured: _Captured,
    whole: Mapping[ConnectivityName, list[PhaseProgram]],
    cut: Mapping[ConnectivityName, list[PhaseProgram]],
    halves: Mapping[ConnectivityName, list[PhaseProgram]],
    took: Mapping[str, float],
) -> Prediction:
    begun = time.perf_counter()
    slower = _slower(scenario, _written(whole["none"]))

    def at_pace(programs: list[PhaseProgram]) -> list[PhaseProgram]:
        return [one.times(slower) for one in programs]

    programs = at_pace(whole["none"])
    written, scheduled = _written(programs), _scheduled(programs)
    programs = at_pace(whole["full"])
    published = _step(programs, [one.published() for one in programs])
    farskip = _scheduled(programs, published)
    also = {f"{NAMES_CUT[name]}, {scenario.pieces} pieces": _scheduled(at_pace(each)) for name, each in cut.items()}
    for name, each in halves.items():
        both = [one.in_two_batches() for one in at_pace(each)]
        also[f"{NAMES_CUT[name]}, 2 batches"] = _scheduled(both)
    also |= {name: _scheduled(at_pace(whole[name])) for name in scenario.also}
    return Prediction(
        scenario,
        written,
        scheduled,
        published,
        farskip,
        imbalance=captured.model.imbalance,
        parameters=captured.model.parameters,
        nodes=captured.nodes,
        rewired=captured.rewired,
        slower=slower,
        also=also,
        took={**took, "orders": time.perf_counter() - begun},
    )


def _slower(scenario: Scenario, written: StepResult) -> float:
    """Return the factor by which compute takes longer than the profile says, as given or from the measured step."""
    if scenario.measured is None:
        return scenario.slower or 1.0
    if scenario.measured <= written.exposed:
        raise ConfigError(
            f"{scenario.measured} s were measured, but the collectives alone take {written.exposed:.4g} s by "
            f"{scenario.profile.name}",
            way_out="a profile of the hardware that it was measured on, and seconds of one step",
        )
    return (scenario.measured - written.exposed) / written.compute


def _written(programs: list[PhaseProgram]) -> StepResult:
    return _step(programs, [one.written() for one in programs])


def _scheduled(programs: list[PhaseProgram], rival: StepResult | None = None) -> StepResult:
    """Return the step in the order of our scheduler, with at least as much memory as `rival` takes."""
    orders = []
    for place, one in enumerate(programs):
        limits = LIMITS
        if rival is not None:
            baseline_peak = simulate(one.program, range(len(one.program.tasks))).peak_bytes
            increase = rival.phases[place].timeline.peak_bytes / max(baseline_peak, 1) - 1
            limits = replace(LIMITS, memory_increase=max(LIMITS.memory_increase, increase))
        known = one.known() if rival is None else [rival.phases[place].order]
        orders.append(list_schedule(one.program, limits, begin_with=known).order)
    return _step(programs, orders)


def _step(programs: list[PhaseProgram], orders: list[tuple[int, ...]]) -> StepResult:
    return StepResult(
        tuple(
            PhaseResult(one.name, one.program, order, simulate(one.program, order), flights(one.program, order))
            for one, order in zip(programs, orders, strict=True)
        )
    )
