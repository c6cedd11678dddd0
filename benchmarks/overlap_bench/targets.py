"""What this benchmark is to show, whether a cell shows it, and by how much it misses.

    hidden            98 % of the communication in prefill; 95 % in a training step, 93 % in its backward pass
    over the bound    at most 1.05 times the bound in prefill, 1.10 times in training
    both on two hosts, at a ratio of communication to compute of 0.5 to 1
    fastest           `full` beats every baseline wherever communication is more than 10 % of plain Inductor's step
    not slower        `none` and `full` at most 2 % slower than plain Inductor, in any cell
    memory            measured peak of `full` at most 5 % over the hand-written form's, of `none` over plain's, in any
                      cell: our backend's default limit, `memory_increase`, relative to all memory with parameters
    results           every variant equals its reference, in any cell

Contract: `judge` reports for each target that applies to a cell whether it is met, with the figures. Where one is
missed it also reports what no schedule could have hidden, by the model of the machine; that excuses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from common import Target

from overlap_bench.cells import BASELINES, COMMUNICATION, FULL, HAND, NONE, OURS, PLAIN, PREFILL, TRAINING
from overlap_bench.results import Result

HIDDEN = {(PREFILL, None): 0.98, (TRAINING, None): 0.95, (TRAINING, "backward"): 0.93}
OVER_BOUND = {PREFILL: 1.05, TRAINING: 1.10}
RATIOS, HOSTS = (0.5, 1.0), 2
WEIGHT = 0.10
SLOWER = 0.02
MEMORY = {FULL: HAND, NONE: PLAIN}
"""The baseline of a variant's peak: the same function, compiled by plain Inductor."""
MEMORY_INCREASE = 0.05


def judge(result: Result) -> list[Target]:
    cell = result.at
    verdicts: list[Target] = []

    def say(target: str, met: bool, text: str) -> None:
        verdicts.append(Target(target, met, text, result.cell))

    if cell.group.hosts == HOSTS and RATIOS[0] <= cell.ratio <= RATIOS[1]:
        for (phase, part), wanted in HIDDEN.items():
            hidden = result.hidden(FULL, part) if phase == cell.group.phase else None
            if hidden is not None:
                where = "hidden" if part is None else f"hidden in {part}"
                say(where, hidden >= wanted, _hidden(result, part, hidden, wanted))
        wanted_over = OVER_BOUND.get(cell.group.phase)
        if wanted_over is not None:
            over = result.over_bound(FULL)
            missed = f", missed by {_ms((over - wanted_over) * result.bound)}; by the model, collectives slow compute "
            missed = "" if over <= wanted_over else f"{missed}by {_ms(result.slowing)} in any schedule"
            say("over the bound", over <= wanted_over, f"{over:.3f} x (at most {wanted_over:.2f} x){missed}")
    if result.weight > WEIGHT:
        faster = {name: result.times_as_fast(FULL, name) - 1 for name in BASELINES if name in result.timings}
        name, gain = min(faster.items(), key=lambda item: item[1])
        missed = "" if gain > 0 else ", must be faster"
        say("fastest", gain > 0, f"{100 * gain:+.1f} % against the best baseline, {name}{missed}")
    for name in (one for one in OURS if one in result.timings):
        slower = 1 / result.times_as_fast(name, PLAIN) - 1
        missed = "" if slower <= SLOWER else f", missed by {100 * (slower - SLOWER):.1f} points"
        say(f"not slower, {name}", slower <= SLOWER, f"{100 * slower:+.1f} % against plain (at most +2 %){missed}")
    for name, other in MEMORY.items():
        peak, base = (result.resident_bytes + result.peak_bytes[one] for one in (name, other))
        more = peak / base - 1
        expected = result.memory_growth(name)
        estimate = "" if expected is None else f"; by our estimate {100 * expected:+.1f} %"
        missed = f", missed by {(peak - (1 + MEMORY_INCREASE) * base) / 1e6:.3g} MB{estimate}"
        missed = "" if more <= MEMORY_INCREASE else missed
        most = f"at most {100 * MEMORY_INCREASE:+.0f} %"
        text = f"{100 * more:+.1f} % against {other}'s {base / 1e6:.3g} MB ({most}){missed}"
        say(f"memory, {name}", more <= MEMORY_INCREASE, text)
    apart = [f"{c['one']} and {c['other']} by {c['error']:.1e} of the norm ({c['worst']})" for c in result.differs]
    say("results", not apart, "RESULTS DIFFER: " + "; ".join(apart) if apart else f"{len(result.checks)} pairs agree")
    return verdicts


def _hidden(result: Result, part: str | None, hidden: float, wanted: float) -> str:
    text = f"{100 * hidden:.1f} % (at least {100 * wanted:.0f} %)"
    if hidden >= wanted:
        return text
    never = result.unhideable / result.timings[COMMUNICATION].median
    waiting = result.waiting(FULL, part)
    waits = "" if waiting is None else f"{100 * waiting:.1f} % is waiting for another rank to launch, "
    missed = f"missed by {100 * (wanted - hidden):.1f} points"
    return f"{text}, {missed}; {waits}no schedule can hide {100 * never:.1f} % of a step's communication"


def summary(verdicts: Iterable[Target]) -> list[tuple[str, int, int]]:
    """By target: cells that meet it, and cells that it applies to."""
    found: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.target].append(verdict.met)
    return [(target, sum(met), len(met)) for target, met in found.items()]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"
