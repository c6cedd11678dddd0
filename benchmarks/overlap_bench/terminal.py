# SPDX-License-Identifier: Apache-2.0
"""What the command prints for a cell, and the figures as text, also for the page.

Contract: fits into 80 columns; a terminal of 112 shows more.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import columns

from overlap_bench.cells import COMMUNICATION, COMPUTE, ORDER, OURS, PLAIN, REGIONAL, TIMED, TRAINING
from overlap_bench.results import TOLERANCE, Result, peak_growth

WIDE = 112
MOST_OTHERS = 0.2
"""Cores that other processes may keep busy before a warning."""


def cell_text(result: Result, width: int) -> str:
    """Title, table and checks of one cell."""
    quiet = f"other processes kept {result.others:.2f} cores busy"
    quiet += ": TOO MANY TO TRUST THESE FIGURES" * (result.others > MOST_OTHERS)
    table = columns(_table(result, wide=width >= WIDE), indent="  ")
    below = [
        f"bound: max(compute, communication) + {ms(result.unhideable)} that no schedule can hide, by the model; it "
        f"ignores that collectives slow compute by {ms(result.slowing)}"
    ]
    below += [acted for name in ORDER if (acted := acted_text(result, name)) is not None]
    below += [
        f"{name}, estimated: {estimate(graphs)}" + (f", {over:.3f} x the least makespan" if over is not None else "")
        for name, graphs in result.estimates.items()
        for over in [result.over_least(name)]
    ]
    below += [f"{name} is missing: {why}" for name, why in result.missing.items()]
    for part in ("forward", "backward"):
        shares = [
            f"{name} {percent(share)}"
            for name in (*OURS, *REGIONAL)
            if name in result.exposed and (share := result.hidden(name, part)) is not None
        ]
        below += [f"hidden in {part}: {', '.join(shares)}"] if shares else []
    below.append(checks_text(result))
    lines = [f"{result.cell}: communication / compute = {result.ratio:.2f}"]
    lines += _wrapped([f"{result.network}; {result.cores}", shares_text(result), quiet], width)
    lines += [*table.splitlines(), *_wrapped(below, width)]
    return "\n".join(line.rstrip() for line in lines)


def shares_text(result: Result) -> str:
    """Of compute, and of memory."""
    shares = ", ".join(f"{part} {share:.2f}" for part, share in result.shares.items())
    text = f"layers with experts compute: {shares}"
    if not result.largest_exchange:
        return text
    sent = percent(result.largest_exchange / result.resident_bytes)
    return f"{text}; the largest exchange sends {sent} of weights and caches"


def checks_text(result: Result) -> str:
    if not result.differs:
        most = max((check["error"] for check in result.checks), default=0.0)
        pairs = ", ".join(f"{check['one']} = {check['other']}" for check in result.checks)
        return f"results agree to {most:.1e} of the norm: {pairs}"
    apart = (
        f"{c['one']} = {c['other']}: NO, apart by {c['error']:.1e} of the norm ({c['worst']})" for c in result.differs
    )
    return f"RESULTS DIFFER by more than {TOLERANCE:g}: {'; '.join(apart)}"


def texts(result: Result, name: str) -> dict[str, str]:
    """All figures of one variant, by column."""
    code = result.code.get(name)
    return {
        "variant": name,
        "median": ms(result.timings[name].median),
        "spread": ms(result.timings[name].spread),
        "speed-up": f"{result.speed_up(name):.2f}",
        "hidden": percent(result.hidden(name)),
        "/ bound": f"{result.over_bound(name):.2f}",
        "exposed": ms(result.exposed[name]["exposed"]),
        "of": ms(result.exposed[name]["communication"]),
        "in fwd": percent(result.hidden(name, "forward")),
        "in bwd": percent(result.hidden(name, "backward")),
        "covered": f"{code['covered']}/{code['collectives']}" if code and code["collectives"] else "-",
        "peak MB": f"{result.peak_bytes[name] / 1e6:.3g}",
        "first run": f"{result.compile_seconds[name]:.0f} s",
    }


def _table(result: Result, *, wide: bool) -> list[list[str]]:
    head = ["variant", "median", "spread", "speed-up", "hidden", "/ bound"]
    apart = ["in fwd", "in bwd"] if result.at.group.phase == TRAINING else ["of"]
    head += ["exposed", *apart, "covered", "peak MB", "first run"] * wide
    rows = [head]
    for name in TIMED:
        if name in result.exposed:
            found = texts(result, name)
            rows.append([found[column] + " x" * (column in ("speed-up", "/ bound")) for column in head])
    for name in (COMPUTE, COMMUNICATION):
        timing = result.timings[name]
        rows.append([f"{name} alone", ms(timing.median), ms(timing.spread)])
    rows.append(["bound", ms(result.bound), "", f"{result.timings[PLAIN].median / result.bound:.2f} x"])
    return [row + [""] * (len(head) - len(row)) for row in rows]


def acted_text(result: Result, name: str) -> str | None:
    """Whether Inductor's own overlap moved anything, by its generated code; None: another variant."""
    acted = result.acted(name)
    if acted is None:
        return None
    plain, code = result.code[PLAIN], result.code[name]
    before = f"{plain['heavy']} -> {code['heavy']}"
    covered = f"{plain['covered']} -> {code['covered']} of {code['collectives']}"
    word = "acted" if acted else "DID NOT ACT"
    return f"{name} {word}: heavy kernels between launch and wait {before}, collectives covered {covered}"


def estimate(graphs: Sequence[Mapping[str, Any]]) -> str:
    """What our scheduler expected of all graphs of one variant together, with the largest growth of the peak."""
    scheduled = [graph for graph in graphs if graph["before"] and graph["after"]]
    if not scheduled:
        return "nothing was scheduled"
    # what the graph was like is not known where only its kernels are ordered
    first = [graph["unscheduled"] or graph["before"] for graph in scheduled]
    before = sum(timeline["exposed_seconds"] for timeline in first)
    after = sum(graph["after"]["exposed_seconds"] for graph in scheduled)
    in_flight = sum(graph["after"]["communication_seconds"] for graph in scheduled)
    return f"exposed {ms(before)} -> {ms(after)} of {ms(in_flight)}, peak {100 * peak_growth(scheduled):+.1f} %"


def facts_text(facts: Mapping[str, str], width: int) -> str:
    lines = (
        textwrap.fill(text, min(width, 120), initial_indent=f"{name + ':':10}", subsequent_indent=" " * 10)
        for name, text in facts.items()
    )
    return "\n".join(lines)


def _wrapped(texts: Iterable[str], width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(min(width, 120), initial_indent="  ", subsequent_indent="    ")
    return [line for text in texts for line in wrapper.wrap(text)]


def ms(seconds: float) -> str:
    """Milliseconds, with a tenth below 100: decode steps are short."""
    value = 1e3 * seconds
    return f"{value:.1f} ms" if abs(value) < 99.95 else f"{value:.0f} ms"


def percent(fraction: float | None) -> str:
    """With a tenth, which matters near 100."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
