# SPDX-License-Identifier: Apache-2.0
"""The result of a healing on one page: in a terminal of 80 columns, in Markdown, and as JSON.

In:    what the steps found, as `main` has put it together: plain data.
Out:   a renderable; a text; both from the same cells.
Never: a figure that is not in the JSON, or in another order.

Rows are original, rewired, folded and healed; there is none for a fold that was not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.healing.distill.main import CHECKPOINT
from farskip_compile.healing.heal.estimate import HealEstimate
from farskip_compile.healing.heal.numbers import count, duration, size
from farskip_compile.text_utils import amount, printable

HealReport = Mapping[str, Any]

COLUMNS = ("", "loss", "perplexity", "bits/byte", "KL", "repaired", "top-1", "loss - original")
LARGE = 1000
MANY_ROWS = 12
"""Rows whose damage is listed, the largest first."""


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Of a loss in nats per target; None: the bytes are not known."""
    return loss / math.log(2) / bytes_per_token if bytes_per_token else None


def cells(report: HealReport) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    for name, row in report["rows"].items():
        bits = bits_per_byte(row["loss"], report["bytes_per_token"])
        first = name == "original"
        yield (
            name,
            f"{row['loss']:.4f}",
            f"{row['perplexity']:.3f}" if row["perplexity"] < LARGE else f"{row['perplexity']:.5g}",
            f"{bits:.4f}" if bits is not None else "-",
            f"{row['kl']:.4f}",
            f"{row['repaired']:.1%}" if row["repaired"] is not None and not first and name != "rewired" else "",
            f"{row['top1']:.1%}",
            "" if first else f"{row['difference']:+.4f} ±{row['error']:.4f}",
        )


def terminal_page(report: HealReport) -> RenderableType:
    """All of it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in cells(report):
        table.add_row(*row, style="bold" if row[0] == "healed" else "")
    return Group(Text(heading(report), style="bold"), Text(), table, Text(), *map(Text, notes(report)))


def markdown(report: HealReport) -> str:
    """The same, with the damage by row."""
    lines = [f"# {heading(report).splitlines()[0]}", "", *heading(report).splitlines()[1:], ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells(report)]
    lines += ["", *(f"- {note}" for note in notes(report)), "", "## Damage by row", ""]
    lines += ["KL to the original when a sub-block is rewired alone, nats per token, before any healing.", ""]
    lines += ["| sub-block | leaves out | KL | rewired |", "|---|---|---:|---|"]
    lines += [
        f"| {one['row']} | {', '.join(one['left_out'])} | {one['kl']:.4f} | "
        f"{'yes' if one['row'] in report['plan']['rows'] else 'no'} |"
        for one in report["damage"]["rows"]
    ]
    return printable("\n".join(lines), lines=True) + "\n"


def heading(report: HealReport) -> str:
    """Two lines."""
    plan, healing = report["plan"], report["healing"]
    return (
        f"{report['checkpoint']} -> {report['out']}/{CHECKPOINT}\n"
        f"{len(plan['rows'])} of {amount(plan['of'], 'sub-block')} rewired; recipe {report['recipe']}, "
        f"{count(healing['tokens'])} tokens in {amount(healing['steps'], 'step')}, "
        f"learning rate {healing['learning_rate']:.3g}"
    )


def notes(report: HealReport) -> Iterator[str]:
    """Sentences: what the figures are of."""
    judged, chosen = report["text"]["judging"], report["text"]["choosing"]
    yield (
        f"On {amount(judged['sequences'], 'held-out sequence')} ({judged['targets']:,} tokens), by which nothing was "
        f"chosen; rows, folds and weights by {chosen['sequences']} others. Parameters in {report['dtype']}."
    )
    yield (
        "KL: from the original, nats per token. repaired: part of the KL of `rewired` that is gone. top-1: both find "
        "the same token most probable. ±: standard error, paired by sequence."
    )
    overlap = report["text"]["overlap"]
    yield (
        "Held-out and training text were not compared (--allow-overlap)."
        if overlap is None
        else f"{overlap['shared']} of {amount(overlap['sequences'], 'held-out sequence')} share text with the training "
        f"text (runs of {overlap['run']} tokens)."
    )
    healing = report["healing"]
    if not healing["best_step"]:
        yield "No step of training was better than what it started from: the weights are those of its start."
    if report["forecast"]["asked"]:
        yield report["forecast"]["words"]
    expected = duration(sum(report["estimate"]["seconds"].values()))
    if report["seconds"] is not None:
        yield f"It took {duration(report['seconds'])}, compiles included; the estimate, without them, was {expected}."


def estimate_page(found: HealEstimate) -> RenderableType:
    """Before the question."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    few = f", {count(found.trained)} of them trained" if found.trained != found.parameters else ""
    table.add_row("parameters", f"{count(found.parameters)}{few}")
    table.add_row("tokens", f"{count(found.tokens)} in {amount(found.steps, 'step')}")
    parts = ", ".join(f"{name} {duration(value)}" for name, value in found.seconds.items())
    table.add_row("time", f"{duration(found.hours * 3600)}: {parts}")
    table.add_row(
        "",
        f"measured on {found.measured} steps of the model as it is written: {found.step_seconds:.3g} s a step; "
        "compiling is not in it",
    )
    parts = ", ".join(f"{name} {size(value)}" for name, value in found.memory.items())
    free = f" of {size(found.device_free)}" if found.device_free is not None else ""
    table.add_row(f"memory, {found.device}", f"{size(sum(found.memory.values()))}{free}: {parts}")
    unknown = "" if "activations" in found.memory else "; activations are not in it"
    parts = ", ".join(f"{name} {size(value)}" for name, value in found.host.items())
    table.add_row("", f"and on the CPU {parts}{unknown}")
    parts = ", ".join(f"{name} {size(value)}" for name, value in found.disk.items())
    table.add_row("disk", f"{size(sum(found.disk.values()))} of {size(found.disk_free)}: {parts}")
    short = found.shortage()
    for text in short:
        table.add_row(Text("too little", "bold red"), Text(text, "bold red"))
    return table


def damage_page(damage: Mapping[str, Any]) -> str:
    """One line: all together, and the worst rows."""
    worst = sorted(damage["rows"], key=lambda one: -one["kl"])[:MANY_ROWS]
    more = len(damage["rows"]) - len(worst)
    rest = f", and {more} more" if more else ""
    return f"KL {damage['together']['kl']:.4f} with all; alone: " + (
        ", ".join(f"{one['row']} {one['kl']:.4f}" for one in worst) + rest
    )
