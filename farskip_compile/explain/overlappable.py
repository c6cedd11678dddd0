"""What may be computed while a term is in flight: the reason for rewiring at all.

Contract: looks at the table only. A term's communication (dispatch, combine, all-reduce) can run beside every term
that it does not depend on and that does not depend on it. In a standard model that leaves almost nothing; in the
FarSkip form the routed experts of layer k run beside the attentions of layers k and k+1.

Algorithm: dependence is the closure of "reads". Terms are numbered along the stream, so one walk up and one walk down
over the layer before, the layer itself and the layer behind are enough; further away nothing worthwhile is found.
"""

from __future__ import annotations

from collections.abc import Sequence

from farskip_compile.passes.residual.kinds import Kind
from farskip_compile.report.compile import CompileReport, RowReport


def independent(report: CompileReport, row: RowReport, *, after: bool) -> tuple[str, ...]:
    """Names of the terms that can be computed beside the main term of `row`.

    Args:
        report: the table.
        row: one of its rows.
        after: in the rewired model; False: in the model as written.
    """
    near = [other for other in report.rows if abs(other.layer - row.layer) <= 1]
    position = {name: index for index, name in enumerate(report.terms)}
    main = position[_main_term(report, row)]
    reads = {position[name]: _reads(other, after) for other in near for name in other.terms}
    window = sorted(reads)
    needs = _needed_by(main, window, reads)
    needing = _needing(main, window, reads)
    return tuple(report.terms[index] for index in window if index not in needs | needing | {main})


def _main_term(report: CompileReport, row: RowReport) -> str:
    """The routed term of a MoE, else the first one."""
    routed = {name for name, kind in zip(report.terms, report.term_kinds, strict=True) if kind is Kind.ROUTED}
    return next((name for name in row.terms if name in routed), row.terms[0])


def _reads(row: RowReport, after: bool) -> Sequence[tuple[int, int]]:
    return row.reads_after if after else row.reads_before


def _holds(intervals: Sequence[tuple[int, int]], index: int) -> bool:
    return any(low <= index < high for low, high in intervals)


def _needed_by(main: int, window: list[int], reads: dict[int, Sequence[tuple[int, int]]]) -> set[int]:
    needed: set[int] = set()
    for index in reversed(window):
        if index < main and any(_holds(reads[user], index) for user in (main, *needed)):
            needed.add(index)
    return needed


def _needing(main: int, window: list[int], reads: dict[int, Sequence[tuple[int, int]]]) -> set[int]:
    needing: set[int] = set()
    for index in window:
        if index > main and any(_holds(reads[index], used) for used in (main, *needing)):
            needing.add(index)
    return needing
