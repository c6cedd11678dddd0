# SPDX-License-Identifier: Apache-2.0
"""Valid captured graphs, made odd: edits that real models make, and some that no model should.

`spoiled()` draws a `Spoiled`: a network and a few edits, each a name in `EDITS` and a number from which the edit takes
its choices. `build` applies them; the result runs, but whether it is a residual network any more, and which, nobody
says. What is demanded of such a graph: `checks.check_spoiled`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import fx

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire.request import ask
from farskip_compile.records.compile import Outcome
from farskip_compile.testing.strategies import networks
from farskip_compile.testing.strategies.network import GeneratedNetwork
from tests.fuzz.demands import Attempt, attempt, demand
from tests.fuzz.edits import EDITS
from tests.fuzz.machine import duplicate, run_nodes, same
from tests.fuzz.meaning import Meaning
from tests.fuzz.sheet import Sheet, Unfit
from tests.fuzz.wishes import Wish, said, wishes


@dataclass(frozen=True)
class Spoiled:
    """A network, and what is done to its graph."""

    network: GeneratedNetwork
    edits: tuple[tuple[str, int], ...]


@st.composite
def spoiled(draw: st.DrawFn) -> Spoiled:
    """Networks of up to four sub-blocks with one to three edits."""
    network = draw(networks(max_blocks=4, standard=draw(st.booleans())))
    one = st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 999))
    return Spoiled(network, tuple(draw(st.lists(one, min_size=1, max_size=3))))


def build(example: Spoiled) -> tuple[Sheet, list[str]]:
    """The spoiled graph (not finished yet) and the names of the edits that found a place in it."""
    sheet = Sheet(example.network)
    applied = []
    for name, number in example.edits:
        sheet.rng = random.Random(number)
        try:
            EDITS[name](sheet)
        except Unfit:
            continue
        applied.append(name)
    return sheet, applied


def check_spoiled(example: Spoiled) -> Counter[str]:
    """Check one spoiled graph: refused, and untouched; or unchanged under `none`, and what its table says.

    Raises:
        Broken: a demand is not met.
    """
    sheet, edits = build(example)
    with torch.no_grad():
        try:
            module = sheet.finish()
        except Exception:  # the edits made no program: nothing can be demanded of it
            return Counter({"no program": 1})
        counts = Counter({f"edit {name}": 1 for name in edits})
        made = attempt(module, "none", kind=fx.GraphModule)
        if made.error is not None:
            return counts + Counter({f"refused {made.said}": 1})
        _demand_same_function(module, made, sheet.arguments)
        if made.report is not None and made.report.outcome in (Outcome.NO_STACK, Outcome.FRAGMENT):
            demand(made.report.outcome is Outcome.NO_STACK or bool(made.report.reason), "a part without a reason")
            return counts + Counter({str(made.report.outcome): 1})
        normal = duplicate(module)
        normalize(normal)
        reading = read_table(normal.graph)
        demand(reading is not None, "a table for the pipeline, and none for the passes")
        counts["accepted"] += 1
        meaning = Meaning(normal, reading, sheet.arguments)
        judged = meaning.unjudged() is None
        if judged:
            complaints = meaning.misread(hidden=sheet.hides)
            demand(not complaints, "the table is not what the graph does: " + "; ".join(complaints[:5]))
            counts["judged"] += 1
        for wish in wishes(meaning.table, len(meaning.table.terms))[1:]:
            made = attempt(module, *wish)
            counts[said(wish[0], made.said)] += 1
            _check_wish(meaning, made, wish, judged)
        return counts


def _demand_same_function(module: fx.GraphModule, made: Attempt, arguments: list[Any]) -> None:
    """As users run it: generated code, and random numbers drawn in the graph's order."""
    results = []
    for one in (module, made.module):
        inputs = [value.clone() for value in arguments]
        torch.manual_seed(0)
        results.append((one(*inputs), *inputs))
    demand(same(*results), "`none` changed the function")


def _check_wish(meaning: Meaning, made: Attempt, wish: Wish, judged: bool) -> None:
    try:
        request = ask(meaning.table, *wish)
    except FarSkipError as error:
        demand(made.said == type(error).__name__, f"{wish}: expected {error!r}, the pipeline: {made.said}")
        return
    if made.error is None and judged and request.left_out:
        got = run_nodes(made.module, meaning.arguments).function()
        demand(same(got, meaning.predicted(request.left_out)), f"{wish}: the graph computes something else")
