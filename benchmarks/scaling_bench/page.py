"""Sweeps as tables, and as one picture.

Contract: from what was found alone. Below `WORTH` a conversion is called not worth it.
"""

from __future__ import annotations

from pathlib import Path

from farskip_compile.simulate.text import WORTH, duration
from scaling_bench.points import Found
from scaling_bench.sweeps import SWEEPS, Sweep

ROOM = 1.6
"""Height of a panel over its highest speed-up; where much is exposed, the line of the ideal leaves it."""
SECONDS, GIB = 300.0, 20.0
"""Within which DeepSeek-V3 is to be predicted."""
INK, FARSKIP, ALONE, PART, GRID = "#1d2126", "#0b3d91", "#8a929b", "#d9480f", "#e3e6ea"


def tables(found: list[Found]) -> list[str]:
    """A section for each sweep, as Markdown."""
    lines: list[str] = []
    for sweep in SWEEPS:
        rows = [one for one in found if one.sweep == sweep.name]
        if rows:
            lines += [
                f"### {sweep.title}",
                "",
                *(_costs(sweep, rows) if sweep.name == "depth" else _gains(sweep, rows)),
            ]
            lines += ["", *_costs(sweep, rows), ""] if sweep.name == "models" else [""]
    return lines


def _gains(sweep: Sweep, rows: list[Found]) -> list[str]:
    lines = [
        f"| {sweep.axis} | as written | communication | overlapped only | AMD's order | our order | still exposed | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in rows:
        fullest = f" (fullest rank {one.imbalance:.2f} x)" if one.imbalance > 1.005 else ""
        lines.append(
            f"| {one.label}{fullest} | {duration(one.written)} | {one.communication / one.written:.0%} | "
            f"{one.scheduled:.3f} x | {one.published:.3f} x | {one.farskip:.3f} x | {duration(one.exposed)} | "
            f"{'' if one.farskip >= WORTH else 'not worth it'} |"
        )
    return lines


def _costs(sweep: Sweep, rows: list[Found]) -> list[str]:
    lines = [
        f"| {sweep.axis} | parameters of a rank | nodes | capture and more | rewiring | orders | in all | peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in rows:
        took = one.took
        parts = f"{took['graphs'] - took['passes']:.1f} s | {took['passes']:.2f} s | {took['orders']:.1f} s"
        total = took["model"] + took["graphs"] + took["orders"]
        lines.append(
            f"| {one.label} | {one.parameters / 1e9:.1f} B | {one.nodes} | {parts} | {total:.0f} s | "
            f"{one.peak_gib:.1f} GiB |"
        )
    return lines


def targets(found: list[Found]) -> list[tuple[bool, str]]:
    """(met, what) for each target."""
    lines = []
    whole = [one for one in found if one.sweep == "models" and one.label == "deepseek-v3"]
    for one in whole:
        total = one.took["model"] + one.took["graphs"] + one.took["orders"]
        lines.append((total < SECONDS, f"DeepSeek-V3 predicted in {total:.0f} s (at most {SECONDS:g} s)"))
        lines.append((one.peak_gib < GIB, f"within {one.peak_gib:.1f} GiB (at most {GIB:g} GiB)"))
    worst = min(found, key=lambda one: one.farskip - one.published)
    behind = worst.published - worst.farskip
    lines.append((behind <= 1e-9, f"our order is never behind AMD's (worst {-100 * behind:+.2f} points)"))
    return lines


def draw(found: list[Found], path: Path) -> None:
    """Speed-ups of the sweeps that have numbers along their axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [sweep for sweep in SWEEPS if sweep.name in ("ranks-v3", "ranks-qwen3", "bandwidth", "skew")]
    figure, grid = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axes, sweep in zip(grid.flat, shown, strict=True):
        rows = [one for one in found if one.sweep == sweep.name]
        places = range(len(rows))
        axes.plot(places, [one.farskip for one in rows], "o-", color=FARSKIP, label="FarSkip, our order")
        axes.plot(places, [one.published for one in rows], "x--", color=FARSKIP, label="FarSkip, AMD's order")
        axes.plot(places, [one.scheduled for one in rows], "s-", color=ALONE, label="overlapped only")
        best = [one.written / (one.written - one.communication) for one in rows]
        axes.plot(places, best, ":", color=PART, label="if nothing were exposed")
        axes.set_xticks(list(places), [one.label for one in rows])
        axes.set_xlabel(sweep.axis, fontsize=9)
        axes.set_ylabel("speed-up over the model as written", fontsize=9)
        axes.set_title(sweep.title.partition(",")[0] + ": " + sweep.name.partition("-")[0], fontsize=10, loc="left")
        highest = max(one.farskip for one in rows)
        axes.set_ylim(0.98, 1 + ROOM * (highest - 1))
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    grid.flat[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
