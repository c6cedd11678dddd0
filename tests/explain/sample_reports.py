# SPDX-License-Identifier: Apache-2.0
"""Reports made by hand: the table of a model of any depth, without capturing one."""

from __future__ import annotations

from farskip_compile.demo.results import Check, Demo, DemoCase
from farskip_compile.errors import Where
from farskip_compile.passes.residual.table import SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.records.compile import CompileReport, Outcome


def farskip_report(layers: str, rewired: range | None = None) -> CompileReport:
    """Full FarSkip of a model with one letter for each layer: `d` dense, `m` MoE with a shared expert."""
    rewired = range(len(layers)) if rewired is None else rewired
    terms = [Term(0, "e", TermKind.EMBEDDING, 0)]
    rows: list[SubBlock] = []

    def add(name: str, layer: int, kind: TermKind, own: dict[str, TermKind], left_out: set[str]) -> None:
        gone = TermSet.of(term.index for term in terms if term.name in left_out and layer in rewired)
        indices = range(len(terms), len(terms) + len(own))
        before = TermSet(((0, len(terms)),))
        rows.append(SubBlock(name, kind, layer, tuple(indices), before - gone, gone))
        for index, (term, of) in zip(indices, own.items(), strict=True):
            terms.append(
                Term(
                    index,
                    term,
                    of,
                    layer,
                    evidence=f"evidence of a {of} <sub-block>",
                    where=Where(source=f"model.py:{layer + 10}"),
                    collectives=("all_to_all_single",) * 2 if of is TermKind.ROUTED else (),
                )
            )

    for layer, letter in enumerate(layers):
        attention, dense = TermKind.ATTENTION, TermKind.DENSE
        add(f"attention.{layer}", layer, attention, {f"a{layer}": attention}, {f"r{layer - 1}"})
        if letter == "m":
            own = {f"r{layer}": TermKind.ROUTED, f"s{layer}": TermKind.SHARED}
            add(f"moe.{layer}", layer, TermKind.ROUTED, own, {f"a{layer}"})
        else:
            add(f"mlp.{layer}", layer, dense, {f"m{layer}": dense}, {f"a{layer}"})
    return CompileReport(
        Outcome.REWIRED,
        nodes=100 * len(layers),
        table=Table(tuple(terms), tuple(rows)),
        wiring_before="standard",
        wiring_after="full",
        seconds={"residual": 0.002, "rewire": 0.001},
    )


def check(**changes: object) -> Check:
    """A check that passes, with changes."""
    fields: dict[str, object] = {
        "phase": "training step",
        "inner": "eager",
        "dtype": "float64",
        "output_difference": 0.0,
        "outputs_equal": True,
        "gradient_difference": 0.0,
        "gradients_equal": True,
        "plain_difference": 0.5,
        "output_tolerance": 0.0,
        "gradient_tolerance": 1e-12,
        "seconds": 1.0,
    }
    return Check(**{**fields, **changes})  # type: ignore[arg-type]


def demo(*cases: DemoCase) -> Demo:
    """A finished demo."""
    some = cases or (
        DemoCase("one", "about one", ranks=2, report=farskip_report("dmm"), checks=(check(),)),
        DemoCase("two", "about two", problem="something is not installed", skipped=True),
    )
    return Demo(some, seconds=12.0, started="2026-01-01T00:00:00+00:00", versions={"torch": "2.13.0"})
