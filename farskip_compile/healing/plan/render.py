# SPDX-License-Identifier: Apache-2.0
"""The front as a table in the terminal, and as a picture.

Contract: from a `Front` alone, and what was measured of its sets, if anything was. The table has a line for each set:
what it hides, what it frees of what all rows free, its damage, and which rows came and went since the line before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from farskip_compile.base.extras import need
from farskip_compile.healing.plan.choose import Front, Point

INK, LINE, SUM, CHOSEN = "#1d2126", "#8a929b", "#0b3d91", "#d9480f"


def front_table(
    front: Front, chosen: Point | None = None, measured: Mapping[tuple[str, ...], float] | None = None
) -> Table:
    """The front as a table for a terminal, a line for each set.

    Args:
        front: of `find_front`.
        chosen: the set that is marked; None: none.
        measured: KL of sets rewired together, nats per token, by their rows.
    """
    table = Table("", box=None, pad_edge=False)
    for name in ("hidden", "freed", "damage", *(["measured"] if measured else [])):
        table.add_column(name, justify="right")
    table.add_column("rows", overflow="fold")
    before: frozenset[str] = frozenset()
    for point in front.points:
        kl = (measured or {}).get(point.rows)
        table.add_row(
            ">" if point == chosen else "",
            f"{point.exposure.hidden:.1%}",
            f"{front.freed(point):.0%}",
            f"{point.damage:.3f}",
            *([f"{kl:.3f}" if kl is not None else "-"] if measured else []),
            _changes(point, before),
        )
        before = frozenset(point.rows)
    return table


def _changes(point: Point, before: frozenset[str]) -> str:
    came = [f"+{row}" for row in point.rows if row not in before]
    went = [f"-{row}" for row in sorted(before - {*point.rows})]
    return " ".join((*came, *went)) or "none"


def draw_front(
    front: Front,
    path: Path,
    *,
    title: str,
    chosen: Point | None = None,
    measured: Mapping[tuple[str, ...], float] | None = None,
) -> None:
    """Hidden communication over damage, as PNG.

    Args:
        front: the sets.
        path: the file.
        title: what the estimate is of, which a front does not know: model, ranks, device, phase and batch.
        chosen: a set to mark.
        measured: KL of sets rewired together, nats per token.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    need("a picture", "matplotlib")
    from matplotlib.figure import Figure  # without pyplot, whose backend is a notebook's own

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    hidden = [100 * point.exposure.hidden for point in front.points]
    damage = [point.damage for point in front.points]
    axes.step(damage, hidden, where="post", color=SUM, marker="o", label="sum of the rows' damages")
    points = zip(front.points, hidden, strict=True)
    if measured and (known := [(measured[point.rows], part) for point, part in points if point.rows in measured]):
        axes.plot(*zip(*known, strict=True), color=LINE, marker="s", linestyle="--", label="measured together")
    if chosen is not None:
        label = f"{len(chosen.rows)} of {len(front.whole.rows)} rows"
        place = ([chosen.damage], [100 * chosen.exposure.hidden])
        axes.plot(*place, "*", color=CHOSEN, markersize=17, label=label, zorder=5)
    most = 100 * front.whole.exposure.hidden
    axes.axhline(most, color=LINE, linewidth=1, linestyle=":")
    axes.annotate("all rows", (0, most), xytext=(3, -11), textcoords="offset points", color=INK, fontsize=9)
    axes.set_xlabel("damage before healing: KL to the original, nats per token")
    axes.set_ylabel("communication hidden, % (estimate)")
    axes.set_ylim(0, 104)
    axes.set_xlim(left=0)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)  # a `$` is a `$`
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
