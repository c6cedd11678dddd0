# SPDX-License-Identifier: Apache-2.0
"""What is to be shown of layers that are compiled one by one:

    a fifth       a cold compile of the deepest model takes at most a fifth of the whole graph's
    flat          a cold compile of the deepest model takes at most 1.25 times that of the shallowest
    gain          what regional gains over plain Inductor layer by layer is at least 95 % of what the whole graph gains
                  over plain Inductor on the whole graph; in one piece and in two. A gain is a speed-up less 1
    memory        a rank holds at most 5 % more under FSDP2 with a shard group for each layer than with plain Inductor
    results       every variant equals its reference
    network       the cell was measured on a network, not on the loopback interface

Contract: for each target that applies to a measurement, whether it is met, with the figures. What has not been
measured is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from common import Target
from overlap_bench.cells import BY_LAYER, FULL, FULL_2, FULL_2_BY_LAYER, FULL_BY_LAYER, PLAIN
from overlap_bench.results import Result

from regional_bench import sharded
from regional_bench.compiled import LAYERS, PHASES, REGIONAL, WHOLE, Compiled
from regional_bench.sharded import Sharded

FIFTH, FLAT, GAIN, MEMORY = 0.2, 1.25, 0.95, 0.05
PAIRS = {FULL_BY_LAYER: FULL, FULL_2_BY_LAYER: FULL_2}
"""Regional, and the same of the whole graph."""
PLAIN_OF = {FULL_BY_LAYER: BY_LAYER, FULL_2_BY_LAYER: BY_LAYER, FULL: PLAIN, FULL_2: PLAIN, BY_LAYER: PLAIN}
"""The plain form that a gain is over; of plain Inductor by layer, that on the whole graph."""


def judge(
    compiles: Mapping[tuple[str, str, int], Compiled],
    cells: Iterable[Result],
    memory: Mapping[tuple[str, bool], Sharded] = MappingProxyType({}),
) -> list[Target]:
    steps = (verdict for cell in cells for verdict in judge_steps(cell))
    return [*judge_compiles(compiles), *steps, *judge_memory(memory)]


def judge_memory(found: Mapping[tuple[str, bool], Sharded]) -> list[Target]:
    verdicts = []
    for (form, checkpointed), ours in found.items():
        plain = found.get((sharded.PLAIN, checkpointed))
        if plain is None or form == sharded.PLAIN:
            continue
        more, step = (one / other - 1 for one, other in ((ours.held, plain.held), (ours.peak, plain.peak)))
        text = f"{100 * more:+.1f} % of {plain.held / 1e6:.1f} MB (at most +{MEMORY:.0%})"
        text += f"; of the step alone {100 * step:+.1f} %"
        missed = "" if more <= MEMORY else f", missed by {100 * (more - MEMORY):.1f} points"
        words = "checkpointed" if checkpointed else "not checkpointed"
        verdicts.append(Target(f"memory, {form}", more <= MEMORY, text + missed, words))
    return verdicts


def judge_compiles(compiles: Mapping[tuple[str, str, int], Compiled]) -> list[Target]:
    least, most = min(LAYERS), max(LAYERS)
    verdicts = []
    for phase in PHASES:
        whole, ours, small = (
            compiles.get((phase, *key)) for key in ((WHOLE, most), (REGIONAL, most), (REGIONAL, least))
        )
        if whole and ours:
            part = ours.cold.seconds / whole.cold.seconds
            text = f"{ours.cold.seconds:.0f} s of {whole.cold.seconds:.0f} s, {part:.3f} (at most {FIFTH:g}); "
            text += f"of the model alone {ours.cold.model / whole.cold.model:.3f}"
            missed = f", missed by {ours.cold.seconds - FIFTH * whole.cold.seconds:.0f} s"
            verdicts.append(Target("a fifth", part <= FIFTH, text + missed * (part > FIFTH), phase))
        if small and ours:
            growth = ours.cold.seconds / small.cold.seconds
            text = f"{ours.cold.seconds:.0f} s at {most} layers, {small.cold.seconds:.0f} s at {least}, "
            text += f"{growth:.2f} x (at most {FLAT:g} x)"
            verdicts.append(Target("flat", growth <= FLAT, text, phase))
    return verdicts


def gain(cell: Result, variant: str) -> float:
    """Speed-up over its plain form, less 1."""
    return cell.times_as_fast(variant, PLAIN_OF[variant]) - 1


def judge_steps(cell: Result) -> list[Target]:
    verdicts = []
    for ours, whole in PAIRS.items():
        if ours in cell.timings and whole in cell.timings:
            found, wanted = gain(cell, ours), gain(cell, whole)
            least = min(wanted, GAIN * wanted)  # where the whole graph loses, to lose no more
            met = found >= least
            text = f"{100 * found:+.1f} % against {100 * wanted:+.1f} % of {whole} (at least {GAIN:.0%} of it)"
            missed = "" if met else f", missed by {100 * (least - found):.1f} points"
            verdicts.append(Target(f"gain, {ours}", met, text + missed, cell.cell))
    apart = [f"{check['one']} and {check['other']} by {check['error']:.1e} of the norm" for check in cell.differs]
    agree = f"{len(cell.checks)} pairs agree"
    verdicts.append(Target("results", not apart, "RESULTS DIFFER: " + "; ".join(apart) if apart else agree, cell.cell))
    if cell.rate is None:
        verdicts.append(Target("network", False, "loopback, not a network", cell.cell))
    return verdicts
