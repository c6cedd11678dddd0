# SPDX-License-Identifier: Apache-2.0
"""What `farskip status` prints.

Contract: a renderable for a `Terminal`, which escapes what others have written, of any width from 80 columns on; it is
understandable without colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from farskip_compile.records.living import Life
from farskip_compile.records.process_records import REWIRED, CompiledGraph, ExpectedOverlap, Process, RunningModel
from farskip_compile.records.processes import FolderStatus
from farskip_compile.text_utils import amount, shortened

STYLES = {"rewired": "green", "NOT REWIRED": "bold red", "unknown": "yellow"}
INDENT = 2
MOST = 3
"""Ranks in a row that are named one by one."""
SHOWN = 40
"""Groups of processes, models of one, and files that can't be read: so many are shown."""
LONGEST = 160
"""Characters of what others have written."""


def table(found: FolderStatus) -> RenderableType:
    """Processes in their order, those that are alike together, then what is wrong, then the answer."""
    alike: dict[tuple[Any, ...], list[Process]] = {}
    for one in found.processes:
        alike.setdefault((one.head.job, one.head.ranks, one.life, one.verdict, one.alike), []).append(one)
    parts: list[RenderableType] = []
    for members in list(alike.values())[:SHOWN]:
        parts.append(_head(members))
        parts += [Padding(Text(line), (0, 0, 0, INDENT), expand=False) for line in _lines(members)]
    if len(alike) > SHOWN:
        parts.append(Text(f"and {len(alike) - SHOWN} groups of processes more (--json has all)"))
    errors = [*found.problems, *(f"can't read {shortened(one, 2 * LONGEST)}" for one in found.unreadable)]
    parts += [Text(f"error: {text}", style="bold red") for text in errors[:SHOWN]]
    if len(errors) > SHOWN:
        parts.append(Text(f"and {len(errors) - SHOWN} errors more", style="bold red"))
    parts.append(Text(_last(found), style="bold"))
    return Group(*parts)


def _head(members: Sequence[Process]) -> Text:
    first = members[0].head
    ranks = ""
    if first.ranks > 1:
        which = _ranges([one.head.rank for one in members])
        ranks = f"{'rank' if len(members) == 1 else 'ranks'} {which} of {first.ranks}, "
    hosts = [shortened(one, 60) for one in dict.fromkeys(one.head.host for one in members)]
    where = ", ".join(hosts[:MOST]) + (f" and {len(hosts) - MOST} more" if len(hosts) > MOST else "")
    named = f"process {first.pid}" if len(members) == 1 else f"{len(members)} processes"
    text = Text(f"{ranks}{named} on {where}, {_life(members)}: ")
    verdict = members[0].verdict
    if not members[0].is_alive:
        return text.append(f"was {verdict}")
    return text.append(verdict, style=STYLES[verdict])


def _life(members: Sequence[Process]) -> str:
    life = members[0].life
    silent = [one.silent_seconds for one in members if one.silent_seconds is not None]
    return f"{life} for {_duration(max(silent))}" if life is Life.SILENT and silent else str(life)


def _ranges(numbers: Sequence[int]) -> str:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    texts = [f"{one[0]} to {one[-1]}" if len(one) > MOST else ", ".join(map(str, one)) for one in found]
    return ", ".join(texts[:SHOWN])


def _lines(members: Sequence[Process]) -> Iterator[str]:
    first = members[0]
    if first.head.command:
        yield shortened(first.head.command, 60)
    for number, model in enumerate(first.models[:SHOWN]):
        yield from _model(model, [process.models[number] for process in members])
    if len(first.models) > SHOWN:
        yield f"and {len(first.models) - SHOWN} models more"
    others = len([one for one in first.compiled if not one.counts])
    if others:
        yield f"{amount(others, 'other graph')}: of losses, or of layers"
    yield from (f"graph break: {_line(one.ended_by)}" for one in first.compiled[-SHOWN:] if one.ended_by)
    for failure in first.failures[-SHOWN:]:
        whose = f"{shortened(failure.model, LONGEST)}: " if failure.model else ""
        yield f"{whose}{shortened(failure.error, 60)}: {_line(failure.reason)}"


def _model(model: RunningModel, same: Sequence[RunningModel]) -> Iterator[str]:
    one = model.shown
    yield f"{shortened(model.name, LONGEST) or 'a model'}: {_outcome(one)}"
    if one.rows_missing:
        yield f"  not as asked: {_line(', '.join(one.rows_missing))}"
    yield from (f"  {_line(phrase)}" for phrase in one.left_out[:SHOWN])
    if one.overlap:
        profile = shortened(one.overlap[0].profile, 60)
        yield f"  expected overlap: {', '.join(map(_hidden, one.overlap[:SHOWN]))} ({profile})"
    manifest = f"manifest {one.manifest[:12]} checked" if one.manifest else "no manifest"
    yield f"  {_times([other.shown for other in same])}; {manifest}"


def _hidden(one: ExpectedOverlap) -> str:
    phase = shortened(one.phase, 20)
    if one.hidden is None:
        return f"no communication in the {phase} graph"
    return f"{min(max(one.hidden, 0.0), 1.0):.0%} of the {phase} communication".replace("%", " %")


def _outcome(one: CompiledGraph) -> str:
    in_part = one.outcome in REWIRED and not one.is_complete
    outcome = "rewired in part" if in_part else shortened(one.outcome, LONGEST)
    why = f": {_line(one.reason)}" if one.reason else ""
    if not one.rows_asked:
        return f"{outcome}, {amount(one.rows, 'row')}{why}" if one.rows else f"{outcome}{why}"
    return f"{outcome}, {one.rows_rewired} of {amount(one.rows_asked, 'row')} asked for ({one.rows} in all){why}"


def _line(text: str) -> str:
    """The first line of what others have written."""
    return shortened(text.partition("\n")[0], LONGEST)


def _times(same: Sequence[CompiledGraph]) -> str:
    """`same`: the graph of one model in processes that are alike."""
    first = same[0]
    if first.kind == "layers":
        return "compiled layer by layer"
    if first.ran is None:
        return "its steps are not watched"
    compiled = _seconds([one.compile_seconds for one in same])
    runs = _seconds([one.first_run_seconds for one in same])
    return f"compiled in {compiled}, {f'first step {runs}' if runs else 'has not run yet'}"


def _seconds(values: Sequence[float | None]) -> str:
    """The least and the most."""
    known = [f"{one:.2g}" for one in sorted(one for one in values if one is not None)]
    if not known:
        return ""
    return f"{known[0]} s" if known[0] == known[-1] else f"{known[0]} to {known[-1]} s"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return amount(int(seconds // size), unit)
    return amount(int(seconds), "second")


def _last(found: FolderStatus) -> str:
    if not found.processes:
        return "No process has written anything there: none has compiled with farskip."
    alive = found.alive
    earlier = f" {amount(found.earlier, 'file')} of earlier processes left out." if found.earlier else ""
    if not alive:
        return f"Nothing is known to run there.{earlier}"
    rewired = sum(one.verdict == "rewired" for one in alive)
    return f"Rewired: {rewired} of {len(alive)}.{earlier}"
