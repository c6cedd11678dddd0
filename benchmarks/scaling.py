# SPDX-License-Identifier: Apache-2.0
"""Where FarSkip pays and where it does not, by prediction, and what predicting at full size costs.

Usage: python benchmarks/scaling.py [--sweeps SWEEP ...] [--workers N] [--table]

Sweeps over ranks, networks, skew, batch and pieces (`scaling_bench/sweeps.py`). Each point is a model at full size
that is captured, rewired, ordered and simulated (`farskip_compile.measure.simulate`); ten models are also shown with
the time and memory that predicting them took. Speed-ups are over the model as written. Results go to docs/scaling.json,
and from there into docs/scaling.md between its marks and into docs/scaling.png; `--sweeps` renews some of them. The
last lines are the targets. Exit status: 0 all met, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from common import DOCS, decode, facts, markdown, picture, replace, write_between_marks
from scaling_bench.sweeps import SWEEPS, TOKENS, Found, Sweep, run_sweeps

from farskip_compile.measure.simulate.text import WORTH, duration

JSON, PAGE, PICTURE = DOCS / "scaling.json", DOCS / "scaling.md", DOCS / "scaling.png"
ROOM = 1.6
"""Height of a panel over its highest speed-up; where much is exposed, the ideal line leaves the panel."""
SECONDS, GIB = 300.0, 20.0
"""Limits for predicting DeepSeek-V3."""
FARSKIP, ALONE, IDEAL, GRID = "#0b3d91", "#8a929b", "#d9480f", "#e3e6ea"
DRAWN = {
    "ranks-v3": "ranks, 8 in a node",
    "ranks-qwen3": "ranks, 8 in a node",
    "bandwidth": "bandwidth between nodes, multiples of 400 Gb/s per GPU",
    "skew": "exponent of Zipf's law by which experts are chosen",
}
"""Sweeps with numbers along their axis, and what these are."""
WORK = f"Prefill in bfloat16, one sequence of {TOKENS} tokens on each rank; predicted on the hardware profile h100"
"""What all of them have in common."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = list(SWEEPS)
    parser.add_argument("--sweeps", nargs="+", choices=names, default=names, metavar="SWEEP", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=2, help="predictions at a time")
    parser.add_argument("--table", action="store_true", help="only write the page, from existing results")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    kept = json.loads(JSON.read_text()) if JSON.exists() else {"about": {}, "found": []}
    found, about = decode(list[Found], kept["found"]), kept["about"]
    if not options.table:
        about, start = facts(), time.perf_counter()
        fresh = run_sweeps(options.sweeps, options.workers)
        found = [one for one in found if one.sweep not in options.sweeps] + fresh
        about["took"] = f"{time.perf_counter() - start:.0f} s"
        replace(JSON, json.dumps({"about": about, "found": [asdict(one) for one in found]}, indent=1) + "\n")
    goals = targets(found)
    lines = [*tables(found), "### Targets", ""]
    lines += [f"- {'met' if met else 'MISSED'}: {text}" for met, text in goals]
    lines += ["", f"Last run: {about['machine']}; {about['versions']}; `{about['command']}`; {about['took']}."]
    write_between_marks(PAGE, "benchmarks/scaling.py", lines)
    if SWEEPS.keys() <= {one.sweep for one in found}:
        draw(found, PICTURE)
    print("\n".join(lines))
    return 0 if all(met for met, _ in goals) else 1


# The page


def tables(found: list[Found]) -> list[str]:
    lines: list[str] = []
    for sweep in SWEEPS.values():
        if rows := [one for one in found if one.sweep == sweep.name]:
            lines += [f"### {sweep.title}", ""]
            lines += [] if sweep.name == "depth" else [*_gains(sweep, rows), ""]
            lines += [*_further(sweep, rows), ""] if any(one.also for one in rows) else []
            lines += [*_costs(sweep, rows), ""] if sweep.name in ("models", "depth") else []
    return lines


def _gains(sweep: Sweep, rows: list[Found]) -> list[str]:
    head = f"{sweep.axis} | >as written | >communication | >overlapped only | >AMD's order | >our order"
    lines = []
    for one in rows:
        fullest = f" (fullest rank {one.imbalance:.2f} x)" if one.imbalance > 1.005 else ""
        speedups = [f"{speedup:.3f} x" for speedup in (one.scheduled, one.published, one.farskip)]
        times = [duration(one.written), f"{one.communication / one.written:.0%}", *speedups, duration(one.exposed)]
        lines.append([f"{one.label}{fullest}", *times, "" if one.farskip >= WORTH else "not worth it"])
    return markdown(f"{head} | >still exposed | ", lines)


def _further(sweep: Sweep, rows: list[Found]) -> list[str]:
    """Speed-ups of what else was asked for, and the one if nothing were exposed."""
    names = list(dict.fromkeys(name for one in rows for name in one.also))
    head = " | ".join([sweep.axis, *(f">{name}" for name in names), ">if nothing were exposed"])
    lines = []
    for one in rows:
        best = one.written / max(one.written - one.communication, one.communication)
        speedups = (*(one.also[name] for name in names), best)
        lines.append([one.label, *(f"{speedup:.3f} x" for speedup in speedups)])
    return markdown(head, lines)


def _costs(sweep: Sweep, rows: list[Found]) -> list[str]:
    head = f"{sweep.axis} | >parameters of a rank | >nodes | >capture and more | >rewiring | >orders | >total | >peak"
    lines = []
    for one in rows:
        took = one.took
        parts = [f"{took['graphs'] - took['passes']:.1f} s", f"{took['passes']:.2f} s", f"{took['orders']:.1f} s"]
        sizes = [one.label, f"{one.parameters / 1e9:.1f} B", str(one.nodes)]
        lines.append([*sizes, *parts, f"{one.seconds:.0f} s", f"{one.peak_gib:.1f} GiB"])
    return markdown(head, lines)


def targets(found: list[Found]) -> list[tuple[bool, str]]:
    """(met, what) for each target."""
    lines = []
    for one in found:
        if one.sweep == "models" and one.label == "deepseek-v3":
            lines.append(
                (one.seconds < SECONDS, f"DeepSeek-V3 predicted in {one.seconds:.0f} s (at most {SECONDS:g} s)")
            )
            lines.append((one.peak_gib < GIB, f"within {one.peak_gib:.1f} GiB (at most {GIB:g} GiB)"))
    slower = max(one.published - one.farskip for one in found)
    lines.append((slower <= 1e-9, f"our order is never slower than AMD's (worst {-100 * slower:+.2f} points)"))
    return lines


def draw(found: list[Found], path: Path) -> None:
    """The sweeps in `DRAWN`, as PNG."""
    with picture(path, 2, 2, (10, 7.6), WORK) as (_, grid):
        for axes, (name, axis) in zip(grid.flat, DRAWN.items(), strict=True):
            sweep = SWEEPS[name]
            rows = [one for one in found if one.sweep == sweep.name]
            places = range(len(rows))
            axes.plot(places, [one.farskip for one in rows], "o-", color=FARSKIP, label="FarSkip, our order")
            axes.plot(places, [one.published for one in rows], "x--", color=FARSKIP, label="FarSkip, AMD's order")
            axes.plot(places, [one.scheduled for one in rows], "s-", color=ALONE, label="overlapped only")
            best = [one.written / (one.written - one.communication) for one in rows]
            axes.plot(places, best, ":", color=IDEAL, label="if nothing were exposed")
            axes.set_xticks(list(places), [one.label for one in rows])
            axes.set_xlabel(axis, fontsize=9)
            axes.set_ylabel("speed-up over the model as written", fontsize=9)
            axes.set_title(", ".join(sweep.title.split(", ")[:2]), fontsize=10, loc="left")
            axes.set_ylim(0.98, 1 + ROOM * (max(one.farskip for one in rows) - 1))
            axes.grid(color=GRID, linewidth=0.8)
            axes.tick_params(labelsize=9)
            axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
