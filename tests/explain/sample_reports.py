"""Reports made by hand: the table of a model of any depth, without capturing one."""

from __future__ import annotations

from farskip_compile.demo.results import Case, Check, Demo
from farskip_compile.passes.residual.kinds import Kind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.report.compile import CompileReport, Outcome, RowReport


def farskip_report(layers: str, rewired: range | None = None) -> CompileReport:
    """Full FarSkip of a model with one letter for each layer: `d` dense, `m` MoE with a shared expert."""
    rewired = range(len(layers)) if rewired is None else rewired
    terms: list[str] = ["e"]
    kinds = [Kind.EMBEDDING]
    rows = []
    for layer, kind in enumerate(layers):
        routed_before = {f"r{layer - 1}"} & set(terms) if layer in rewired else set()
        rows.append(_row(f"attention.{layer}", layer, Kind.ATTENTION, (f"a{layer}",), terms, routed_before))
        terms.append(f"a{layer}")
        kinds.append(Kind.ATTENTION)
        own = (f"r{layer}", f"s{layer}") if kind == "m" else (f"m{layer}",)
        name, of = (f"moe.{layer}", Kind.ROUTED) if kind == "m" else (f"mlp.{layer}", Kind.DENSE)
        rows.append(_row(name, layer, of, own, terms, {f"a{layer}"} if layer in rewired else set()))
        terms.extend(own)
        kinds.extend((Kind.ROUTED, Kind.SHARED) if kind == "m" else (Kind.DENSE,))
    return CompileReport(
        Outcome.REWIRED,
        nodes=100 * len(layers),
        terms=tuple(terms),
        term_kinds=tuple(kinds),
        rows=tuple(rows),
        wiring_before="standard",
        wiring_after="full",
        seconds={"residual": 0.002, "rewire": 0.001},
    )


def _row(name: str, layer: int, kind: Kind, own: tuple[str, ...], terms: list[str], left_out: set[str]) -> RowReport:
    before = TermSet(((0, len(terms)),))
    return RowReport(
        name=name,
        layer=layer,
        kind=kind,
        terms=own,
        evidence=f"evidence of a {kind} <sub-block>",
        where=f"model.py:{layer + 10}",
        collectives=("all_to_all_single",) * 2 if kind is Kind.ROUTED else (),
        reads_before=before.intervals,
        reads_after=(before - TermSet.of(terms.index(term) for term in left_out)).intervals,
        left_out=tuple(left_out),
        skipped_before=(),
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


def demo(*cases: Case) -> Demo:
    """A finished demo."""
    some = cases or (
        Case("one", "about one", ranks=2, report=farskip_report("dmm"), checks=(check(),)),
        Case("two", "about two", problem="something is not installed", skipped=True),
    )
    return Demo(some, seconds=12.0, started="2026-01-01T00:00:00+00:00", versions={"torch": "2.13.0"})
