# SPDX-License-Identifier: Apache-2.0
"""A comparison as a table: a line for each metric, under the name of its task.

Contract: fits 80 columns. The verdict is there if there is a limit: `ok`, `FAIL`, or either with a question mark where
the standard error is larger than the limit. What a mark means is said below the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from farskip_compile.healing.evaluation.difference import Comparison, MetricLine
from farskip_compile.text_utils import amount

UNPAIRED = "*"
UNSURE = "?"


def comparison_table(found: Comparison) -> Group:
    """The table, and what its marks mean."""
    limited = any(line.limit is not None for line in found.lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("task, metric", overflow="fold", ratio=1)
    for name in ("original", "healed", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    if limited:
        table.add_column("limit", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    task = ""
    for line in found.lines:
        if line.task != task:
            task = line.task
            table.add_row(task, *[""] * (len(table.columns) - 1))
        table.add_row(f"  {line.metric}", *_cells(line, limited=limited))
    return Group(table, "", *_notes(found))


def _cells(line: MetricLine, *, limited: bool) -> Iterable[Any]:
    style = _style(max(abs(line.original.value), abs(line.healed.value)))
    for one in (line.original, line.healed):
        yield _value(one.value, one.error, style)
    yield _value(line.difference, line.error, style, sign="+") + ("" if line.paired else UNPAIRED)
    if limited:
        yield _limit(line)
        yield _verdict(line)


def _value(value: float, error: float | None, style: str, sign: str = "") -> str:
    return f"{value:{sign}{style}} ±{f'{error:{style}}' if error is not None else '-'}"


def _style(value: float) -> str:
    """About four digits that count."""
    places = {10: ".4f", 100: ".3f", 1000: ".2f", 10_000: ".1f"}
    return next((style for limit, style in places.items() if value < limit), ".2g")


def _limit(line: MetricLine) -> str:
    if line.limit is None or line.higher_is_better is None:
        return "-"
    return f"{line.limit:g}" if line.higher_is_better else f"{line.limit:.3g}x"


def _verdict(line: MetricLine) -> Text:
    if line.limit is None or line.drop is None:
        return Text("")
    unsure = "" if line.can_tell else UNSURE
    return Text(f"FAIL{unsure}", "bold red") if line.exceeds else Text(f"ok{unsure}", "green")


def _notes(found: Comparison) -> Iterable[str]:
    yield "±: standard error; of the difference: paired by sample"
    if any(not line.paired for line in found.lines):
        yield f"{UNPAIRED} not paired, the metric has no value for a sample: the error is too large"
    if any(line.limit is not None and line.higher_is_better is False for line in found.lines):
        yield "x: less is better; the limit is a share of the original's value"
    if any(line.limit is not None and line.drop is None for line in found.lines):
        yield "-: the task does not say whether more is better, so no limit is held against it"
    if any(line.can_tell is False for line in found.lines):
        yield f"{UNSURE} the standard error is larger than the limit: more samples are needed to tell"
    for name, how in (("original", found.original), ("healed", found.healed)):
        if how is None:
            yield f"{name}: as it is written"
        else:
            rows = amount(len(how["left_out"]), "sub-block")
            graphs = f"{'each of ' if how['graphs'] > 1 else ''}{amount(how['graphs'], 'graph')}"
            batches = ", ".join(f"{count} of {phase}" for phase, count in how["batches"].items())
            yield f"{name}: rewired, {rows} in {graphs}; batches: {batches}"
