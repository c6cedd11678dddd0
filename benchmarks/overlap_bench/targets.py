# SPDX-License-Identifier: Apache-2.0
"""What this benchmark is to show, whether a cell shows it, and by how much it misses.

Under expert parallelism, with pieces="auto", on two hosts, models of real proportions:
    hidden            `full, pieces`: 91 % of the communication in prefill at a ratio of communication to compute of 1,
                      97 % at 0.5; 88 % of a training step's at 1. The last combine, which has nothing after it, counts
    over the floor    `full, pieces`: at most 1.08 times the larger of compute and communication in prefill at 1
    unchanged model   `none, pieces`: at least 1.42 times as fast as plain Inductor in prefill at 1, 1.25 in training
Under tensor parallelism, on two hosts, at a ratio of 0.5 to 1:
    hidden            `full`: 98 % in prefill; 95 % in a training step, 93 % in its backward pass
In any cell:
    over the bound    `full`: at most 1.05 times what its graph allows uncut in prefill, 1.10 times in training; on two
                      hosts, at 0.5 to 1
    fastest           ours beats every baseline wherever communication is more than 10 % of plain Inductor's step
    order             the order of ours takes at most 5 % more than the least makespan of its own kernels, in the
                      scheduler's model of the machine, whatever that holds in memory
    auto              "auto" is within 2 % of the best of one piece and two
    not slower        none of ours is more than 2 % slower than plain Inductor
    memory            measured peaks at most 5 % over those of the same function by plain Inductor, relative to all
                      memory with parameters: our backend's default limit, `memory_increase`
    results           every variant equals its reference

Contract: `judge` reports for each target that applies to a cell whether it is met, with the figures. Where one is
missed it also reports what no schedule could have hidden, by the model of the machine; that excuses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from common import Target

from overlap_bench.cells import (
    BASELINES,
    COMMUNICATION,
    FULL,
    FULL_2,
    FULL_CUT,
    HAND,
    LONG,
    NONE,
    NONE_2,
    NONE_CUT,
    OURS,
    PLAIN,
    PREFILL,
    TRAINING,
)
from overlap_bench.results import Result

CUT_HIDDEN = {(PREFILL, 1.0): 0.91, (PREFILL, 0.5): 0.97, (TRAINING, 1.0): 0.88}
OVER_FLOOR = {(PREFILL, 1.0): 1.08}
UNCHANGED = {(PREFILL, 1.0): 1.42, (TRAINING, 1.0): 1.25}
HIDDEN = {(PREFILL, None): 0.98, (TRAINING, None): 0.95, (TRAINING, "backward"): 0.93}
OVER_BOUND = {PREFILL: 1.05, TRAINING: 1.10}
RATIOS, HOSTS = (0.5, 1.0), 2
OVER_LEAST = 1.05
WEIGHT = 0.10
SLOWER = 0.02
MEMORY = {FULL: HAND, FULL_CUT: HAND, NONE: PLAIN, NONE_CUT: PLAIN}
"""The baseline of a variant's peak: the same function, compiled by plain Inductor."""
MEMORY_INCREASE = 0.05


def judge(result: Result) -> list[Target]:
    cell = result.at
    verdicts: list[Target] = []

    def say(target: str, met: bool, text: str) -> None:
        verdicts.append(Target(target, met, text, result.cell))

    in_pieces = FULL_CUT in result.timings
    at = (cell.group.phase, cell.ratio)
    if cell.group.hosts == HOSTS and in_pieces and cell.group.model != LONG:
        hidden = result.hidden(FULL_CUT)
        if (wanted := CUT_HIDDEN.get(at)) is not None and hidden is not None:
            say("hidden, in pieces", hidden >= wanted, _hidden(result, FULL_CUT, None, hidden, wanted))
        if (most := OVER_FLOOR.get(at)) is not None:
            over = result.timings[FULL_CUT].median / result.floor
            missed = "" if over <= most else f", missed by {_ms((over - most) * result.floor)}"
            say("over the floor", over <= most, f"{over:.3f} x (at most {most:.2f} x){missed}")
        if (least := UNCHANGED.get(at)) is not None:
            gain = result.speed_up(NONE_CUT)
            missed = "" if gain >= least else f", missed by {least - gain:.2f}"
            expected = result.expected_speed_up(NONE_CUT)
            model = "" if expected is None else f"; by the model {expected:.2f} x"
            say("unchanged model", gain >= least, f"{gain:.2f} x plain (at least {least:.2f} x){missed}{model}")
    if cell.group.hosts == HOSTS and RATIOS[0] <= cell.ratio <= RATIOS[1]:
        for (phase, part), wanted in HIDDEN.items() if not in_pieces else ():
            share = result.hidden(FULL, part) if phase == cell.group.phase else None
            if share is not None:
                where = "hidden" if part is None else f"hidden in {part}"
                say(where, share >= wanted, _hidden(result, FULL, part, share, wanted))
        wanted_over = OVER_BOUND.get(cell.group.phase)
        if wanted_over is not None:
            over = result.over_bound(FULL)
            missed = f", missed by {_ms((over - wanted_over) * result.bound)}; by the model, collectives slow compute "
            missed = "" if over <= wanted_over else f"{missed}by {_ms(result.slowing)} in any schedule"
            say("over the bound", over <= wanted_over, f"{over:.3f} x (at most {wanted_over:.2f} x){missed}")
    if result.weight > WEIGHT:
        best = FULL_CUT if in_pieces else FULL
        faster = {name: result.times_as_fast(best, name) - 1 for name in BASELINES if name in result.timings}
        name, gain = min(faster.items(), key=lambda item: item[1])
        missed = "" if gain > 0 else ", must be faster"
        say("fastest", gain > 0, f"{100 * gain:+.1f} % against the best baseline, {name}{missed}")
    for name in OURS:
        over = result.over_least(name)
        if over is not None:
            say(f"order, {name}", over <= OVER_LEAST, f"{over:.3f} x the least makespan (at most {OVER_LEAST:.2f} x)")
    for auto, fixed in ((NONE_CUT, (NONE, NONE_2)), (FULL_CUT, (FULL, FULL_2))) if in_pieces else ():
        slower, name = max((result.times_as_fast(one, auto) - 1, one) for one in fixed if one in result.timings)
        say(f"auto, {auto}", slower <= SLOWER, f"{100 * slower:+.1f} % against {name} (at most +2 %)")
    for name in (one for one in OURS if one in result.timings):
        slower = 1 / result.times_as_fast(name, PLAIN) - 1
        missed = "" if slower <= SLOWER else f", missed by {100 * (slower - SLOWER):.1f} points"
        say(f"not slower, {name}", slower <= SLOWER, f"{100 * slower:+.1f} % against plain (at most +2 %){missed}")
    for name, other in MEMORY.items():
        if name in result.peak_bytes:
            say(f"memory, {name}", *_memory(result, name, other))
    apart = [f"{c['one']} and {c['other']} by {c['error']:.1e} of the norm ({c['worst']})" for c in result.differs]
    say("results", not apart, "RESULTS DIFFER: " + "; ".join(apart) if apart else f"{len(result.checks)} pairs agree")
    return verdicts


def _memory(result: Result, name: str, other: str) -> tuple[bool, str]:
    peak, base = (result.resident_bytes + result.peak_bytes[one] for one in (name, other))
    more = peak / base - 1
    expected = result.memory_growth(name)
    estimate = "" if expected is None else f"; by our estimate {100 * expected:+.1f} %"
    missed = f", missed by {(peak - (1 + MEMORY_INCREASE) * base) / 1e6:.3g} MB{estimate}"
    missed = "" if more <= MEMORY_INCREASE else missed
    most = f"at most {100 * MEMORY_INCREASE:+.0f} %"
    return more <= MEMORY_INCREASE, f"{100 * more:+.1f} % against {other}'s {base / 1e6:.3g} MB ({most}){missed}"


def _hidden(result: Result, name: str, part: str | None, hidden: float, wanted: float) -> str:
    if hidden >= wanted:
        return f"{100 * hidden:.1f} % (at least {100 * wanted:.0f} %)"
    shown = min(100 * hidden, 100 * wanted - 0.1)  # a target that is missed does not look met
    text = f"{shown:.1f} % (at least {100 * wanted:.0f} %)"
    never = result.unhideable / result.timings[COMMUNICATION].median
    waiting = result.waiting(name, part)
    waits = "" if waiting is None else f"{100 * waiting:.1f} % is waiting for another rank to launch, "
    missed = f"missed by {100 * wanted - shown:.1f} points"
    bound = f"no schedule can hide {100 * never:.1f} % of a step's communication" + " uncut" * (name != FULL)
    return f"{text}, {missed}; {waits}{bound}"


def summary(verdicts: Iterable[Target]) -> list[tuple[str, int, int]]:
    """By target: cells that meet it, and cells that it applies to."""
    found: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.target].append(verdict.met)
    return [(target, sum(met), len(met)) for target, met in found.items()]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"
