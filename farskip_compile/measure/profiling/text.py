# SPDX-License-Identifier: Apache-2.0
"""The overlap report on a terminal.

Contract: returns a renderable for a `rich` console of any width from 80 columns on; understandable without colours, and
in ASCII on a terminal without Unicode. Times of several ranks are means; `exposed` is the cost.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.measure.profiling.data import (
    CollectiveDevice,
    Hider,
    MeasuredOverlap,
    OverlapReport,
    PartReport,
    RankReport,
    StepTimes,
)
from farskip_compile.text_utils import shortened

WIDE = 110
BAR = 20
FEW_RANKS, FEW_COLLECTIVES = 8, 5
MOST_LETTERS = 32
"""Most letters of a kind of collective or a graph, names that a foreign trace may choose freely."""
TIMES = ("in flight", "exposed", "hidden")
LEGEND = (
    "exposed: in flight while the rank computes nothing; in wait: the part of that which a thread spent waiting; "
    "for late ranks: time in flight before the last rank had joined"
)


def report_text(report: OverlapReport, console: Console, *, everything: bool = False) -> RenderableType:
    """Return the report as a renderable for a terminal.

    Args:
        report: of `overlap` or `record`.
        console: where it will be printed; its width decides the layout.
        everything: show every rank and every collective, not only those that cost most.
    """
    draw = _Draw(console)
    parts: list[RenderableType] = [Text(headline(report), style="bold"), Text(), draw.ranks(report, everything)]
    parts.append(draw.parts("By collective", "collective", report, lambda rank: rank.kinds))
    if any(rank.layers for rank in report.ranks):
        parts.append(draw.parts("By layer", "layer", report, lambda rank: rank.layers))
    parts.append(draw.collectives(report, everything))
    if report.estimates:
        parts.append(draw.estimates(report))
    notes = [Text.assemble(("note: ", "bold yellow"), note) for note in report.notes]
    return Group(*parts, *notes, Text(LEGEND, style="dim"))


def headline(report: OverlapReport) -> str:
    """Return one line: the hidden part of the communication, and the times behind it."""
    ranks = f"{len(report.ranks)} ranks" if len(report.ranks) > 1 else f"rank {report.ranks[0].rank}"
    if report.world_size is not None and report.world_size > len(report.ranks):
        ranks += f" of {report.world_size}"
    place = "GPU" if report.device is CollectiveDevice.GPU else "CPU"
    mean = " a rank" if len(report.ranks) > 1 else ""
    exposed, communication = (
        time_text(time / len(report.ranks)) for time in (report.total.exposed_ns, report.total.communication_ns)
    )
    without = ", waits for late ranks subtracted" if report.peer_wait_subtracted else ""
    where = f"({place}, {ranks}{without})"
    return f"{percent(report.total)} of communication hidden: {exposed} of {communication}{mean} exposed {where}"


def time_text(time_ns: float) -> str:
    """Return a time with three digits: `12.3 ms`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if time_ns >= 0.9995 * size:
            value = time_ns / size
            return f"{value:.0f} {unit}" if value >= 999.5 else f"{value:#.3g}".rstrip(".") + f" {unit}"
    return f"{time_ns:.0f} ns"


def percent(share: MeasuredOverlap) -> str:
    """Return the hidden part of the communication; a dash without communication."""
    if share.fraction is None:
        return "-"
    return f"{100 * share.fraction:.0f}%" if share.fraction in (0, 1) else f"{100 * share.fraction:.1f}%"


def short_name(name: str) -> str:
    """Return a kernel's name without template arguments, parameters and uninformative namespaces."""
    bare = (
        _without_brackets(name).strip().removeprefix("void ").removeprefix("at::native::").removeprefix("aten::")
        or name
    )
    return re.sub(r"^(graph_\d+_)?(cpp|triton_\w+?)_(?=fused_)", "", bare)


def _without_brackets(name: str) -> str:
    """Return `name` without pairs of brackets and their content, in one walk; single brackets stay."""
    kept: list[str] = []
    opened: list[int] = []  # places in `kept` of the brackets that are open
    round_ones = 0
    for piece in re.findall(r"[<>()]|[^<>()]+", name):
        if piece == ")" and round_ones:
            while kept[place := opened.pop()] != "(":  # what is between was no bracket: f(a<b)
                pass
            del kept[place:]
            round_ones -= 1
        elif piece == ">" and opened and kept[opened[-1]] == "<":
            del kept[opened.pop() :]
        else:
            if piece in "(<":
                opened.append(len(kept))
                round_ones += piece == "("
            kept.append(piece)
    return "".join(kept)


def hiders_text(hiders: Iterable[Hider], most: int) -> str:
    """Return the names that hid most, with their shares of the whole."""
    times: Counter[str] = Counter()
    for hider in hiders:
        times[short_name(hider.name)] += hider.time_ns
    whole = times.total()
    shown = [(name, time) for name, time in times.most_common(most) if time >= 0.005 * whole]
    return ", ".join(f"{name} {100 * time / whole:.0f}%" for name, time in shown) if whole else "nothing"


def estimate_texts(times: StepTimes | None, unknown: str = "?") -> list[str]:
    """Return compute, communication, exposed and step, in the order of the table's columns."""
    return [unknown] * 4 if times is None else [time_text(time) for time in astuple(times)]


class _Draw:
    """The tables for one console."""

    def __init__(self, console: Console) -> None:
        self.wide = console.width >= WIDE
        self.unicode = "utf" in (console.encoding or "").lower()

    def ranks(self, report: OverlapReport, everything: bool) -> Table:
        """Return a table with one row per rank: a bar of the hidden part, and the causes of the exposed time."""
        shown = report.ranks
        if not everything and len(shown) > FEW_RANKS:
            shown = tuple(sorted(shown, key=lambda rank: (-rank.exposed_ns, rank.rank))[:FEW_RANKS])
        waiting = any(rank.waiting_ns for rank in shown)
        peers = any(rank.peer_wait_ns for rank in shown) and not report.peer_wait_subtracted
        title = "Ranks" if len(shown) == len(report.ranks) else f"The {FEW_RANKS} ranks with most exposed time"
        further = (("in wait", waiting), ("for late ranks", peers), ("compute", self.wide))
        table = _table(title, "rank", *TIMES)
        table.add_column("")
        _numbers(table, *(name for name, is_there in further if is_there))
        for rank in shown:
            late = "?" if rank.peer_wait_ns is None else time_text(rank.peer_wait_ns)
            fields = [time_text(rank.waiting_ns or 0)] * waiting + [late] * peers
            fields += [time_text(rank.compute_ns)] * self.wide
            table.add_row(str(rank.rank), *_times(rank), self.bar(rank), *fields)
        return table

    def parts(
        self, title: str, column: str, report: OverlapReport, of: Callable[[RankReport], Sequence[PartReport]]
    ) -> Table:
        """Return a table with one row for each kind or layer, as a mean over the ranks that have it."""
        found: dict[str, list[PartReport]] = defaultdict(list)
        for rank in report.ranks:
            for part in of(rank):
                found[part.name].append(part)
        table = _table(title + (", mean of a rank" if len(report.ranks) > 1 else ""))
        table.add_column(column, no_wrap=True, min_width=min(MOST_LETTERS, max(map(len, found))))
        _numbers(table, "count", *TIMES)
        table.add_column("hidden by", overflow="fold")
        for name, parts in found.items():
            mean = MeasuredOverlap(
                communication_ns=sum(part.communication_ns for part in parts) // len(parts),
                exposed_ns=sum(part.exposed_ns for part in parts) // len(parts),
            )
            count = sum(part.count for part in parts) / len(parts)
            hidden = (hider for part in parts for hider in part.hidden_by)
            table.add_row(shortened(name, MOST_LETTERS), f"{count:g}", *_times(mean), self.hiders(hidden))
        return table

    def collectives(self, report: OverlapReport, everything: bool) -> Table:
        """Return a table of the collectives with most exposed time, or of all collectives in order."""
        found = [(rank, one) for rank in report.ranks for one in rank.collectives]
        title = "Every collective"
        if not everything:
            exposed = [pair for pair in found if pair[1].exposed_ns]
            found = sorted(exposed, key=lambda pair: -pair[1].exposed_ns)[:FEW_COLLECTIVES]
            title = "Most exposed" if found else "No collective is exposed"
        several = len(report.ranks) > 1
        layers = any(one.layer is not None for _, one in found)
        groups = self.wide and any(one.group is not None for _, one in found)
        table = _table(title, *["rank"] * several, *["layer"] * layers, "at")
        longest = max((len(one.kind) for _, one in found), default=0)
        table.add_column("collective", no_wrap=True, min_width=min(MOST_LETTERS, longest))
        if groups:
            table.add_column("group", overflow="fold")
        _numbers(table, *TIMES)
        table.add_column("hidden by", overflow="fold")
        for rank, one in found:
            fields = [str(rank.rank)] * several + ["?" if one.layer is None else str(one.layer)] * layers
            fields += [time_text(one.start_ns), shortened(one.kind, MOST_LETTERS), *[one.group or "?"] * groups]
            table.add_row(*fields, *_times(one), self.hiders(one.hidden_by, few=True))
        return table

    def estimates(self, report: OverlapReport) -> Table:
        """Return a table of the estimate and the measurement of each scheduled graph, and of all."""
        several = len(report.ranks) > 1
        profiles = ", ".join(dict.fromkeys(shortened(row.profile, MOST_LETTERS) for row in report.estimates))
        table = _table(f"Estimated ({profiles}) and measured" + (", mean of a rank" if several else ""))
        table.add_column("graph", no_wrap=True)
        table.add_column("", no_wrap=True)
        _numbers(table, "compute", "communication", "exposed", "step")
        for row in report.estimates:
            table.add_row(shortened(row.name, MOST_LETTERS), "estimated", *estimate_texts(row.estimated))
            table.add_row("", "measured", *estimate_texts(row.measured), style="dim" if row.measured is None else "")
        return table

    def bar(self, share: MeasuredOverlap) -> Text:
        """Return a bar of the hidden and the exposed part, to scale."""
        length = BAR if self.wide else BAR // 2
        hidden = round(length * (share.fraction or 0))
        full, empty = ("█", "░") if self.unicode else ("#", ".")
        return Text.assemble((full * hidden, "green"), (empty * (length - hidden), "red"))

    def hiders(self, hiders: Iterable[Hider], *, few: bool = False) -> str:
        """Return the names that hid most, as many as there is room for."""
        return hiders_text(hiders, (3 if few else 4) if self.wide else (1 if few else 2))


def _times(share: MeasuredOverlap) -> list[str | Text]:
    style = "" if share.exposed_ns == 0 else "bold red" if (share.fraction or 0) < 0.5 else "yellow"
    return [time_text(share.communication_ns), Text(time_text(share.exposed_ns), style=style), percent(share)]


def _table(title: str, *numbers: str) -> Table:
    look: dict[str, Any] = {"pad_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left", "title_style": "bold"}
    table = Table(box=box.SIMPLE_HEAD, title=title, **look)
    _numbers(table, *numbers)
    return table


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
