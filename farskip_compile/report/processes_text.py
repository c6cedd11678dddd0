# SPDX-License-Identifier: Apache-2.0
"""What `farskip status` prints.

Contract: a renderable for a `Terminal`, which escapes what others have written, of any width from 80 columns on; it is
understandable without colours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from farskip_compile.report.processes import Compiled, Found, Hidden, Process
from farskip_compile.text_utils import amount, shortened

STYLES = {"rewired": "green", "NOT REWIRED": "bold red", "unknown": "yellow"}
INDENT = 2
MOST = 3
"""Ranks in a row that are named one by one."""


def table(found: Found) -> RenderableType:
    """Processes in their order, those that are alike together, then what is wrong, then the answer."""
    alike: dict[tuple[Any, ...], list[Process]] = {}
    for one in found.processes:
        alike.setdefault((one.job, one.ranks, one.alive, one.answer, one.alike), []).append(one)
    parts: list[RenderableType] = []
    for members in alike.values():
        parts.append(_head(members))
        parts += [Padding(Text(line), (0, 0, 0, INDENT), expand=False) for line in _lines(members)]
    parts += [Text(f"error: {problem}", style="bold red") for problem in found.problems]
    parts.append(Text(_last(found), style="bold"))
    return Group(*parts)


def _head(members: Sequence[Process]) -> Text:
    first = members[0]
    ranks = ""
    if first.ranks > 1:
        which = _ranges([one.rank for one in members])
        ranks = f"{'rank' if len(members) == 1 else 'ranks'} {which} of {first.ranks}, "
    hosts = ", ".join(dict.fromkeys(one.host for one in members))
    named = f"process {first.pid}" if len(members) == 1 else f"{len(members)} processes"
    life = {True: "alive", False: "ended", None: "on another host"}[first.alive]
    text = Text(f"{ranks}{named} on {hosts}, {life}: ")
    return text.append(first.answer, style=STYLES[first.answer])


def _ranges(numbers: Sequence[int]) -> str:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    texts = (f"{one[0]} to {one[-1]}" if len(one) > MOST else ", ".join(map(str, one)) for one in found)
    return ", ".join(texts)


def _lines(members: Sequence[Process]) -> Iterator[str]:
    first = members[0]
    command = f"{shortened(first.command, 60)}, " if first.command else ""
    yield f"{command}wrote {_ago(max(one.written for one in members))}"
    for number, one in enumerate(first.models):
        yield f"{one.model or 'a model'}: {_outcome(one)}"
        yield from (f"  {phrase}" for phrase in one.left_out)
        if one.overlap:
            yield f"  expected overlap: {', '.join(map(_hidden, one.overlap))} ({one.overlap[0].profile})"
        manifest = f"manifest {one.manifest[:12]} checked" if one.manifest else "no manifest"
        yield f"  {_times([process.models[number] for process in members])}; {manifest}"
    others = len([one for one in first.compiled if not one.counts])
    if others:
        yield f"{amount(others, 'other graph')}: of losses, or of layers"
    yield from (f"graph break: {one.ended_by}" for one in first.compiled if one.ended_by)
    yield from (f"{error.error}: {error.reason.splitlines()[0]}" for error in first.errors)


def _hidden(one: Hidden) -> str:
    if one.hidden is None:
        return f"no communication in the {one.phase} graph"
    return f"{one.hidden:.0%} of the {one.phase} communication".replace("%", " %")


def _outcome(one: Compiled) -> str:
    why = f": {one.reason.splitlines()[0]}" if one.reason else ""
    if not one.rows_asked:
        return f"{one.outcome}, {amount(one.rows, 'row')}{why}" if one.rows else f"{one.outcome}{why}"
    return f"{one.outcome}, {one.rows_rewired} of {amount(one.rows_asked, 'row')} asked for ({one.rows} in all){why}"


def _times(same: Sequence[Compiled]) -> str:
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


def _ago(when: float) -> str:
    seconds = max(0, int(time.time() - when))
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{amount(seconds // size, unit)} ago"
    return f"{amount(seconds, 'second')} ago"


def _last(found: Found) -> str:
    if not found.processes:
        return "No process has written anything there: none has compiled with farskip."
    rewired = sum(one.answer == "rewired" for one in found.processes)
    earlier = f" {amount(found.earlier, 'file')} of earlier processes left out." if found.earlier else ""
    return f"Rewired: {rewired} of {len(found.processes)}.{earlier}"
