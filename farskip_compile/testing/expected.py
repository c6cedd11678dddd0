# SPDX-License-Identifier: Apache-2.0
"""What each sub-block has to read, worked out from the kinds and layers of the rows, as the paper states it.

Contract: in come a report (which rows there are, in which layer, of which kind, and what they read as written) and a
request; out comes what each row must read. Nothing here knows how the compiler turns a request into an edit
(`passes/rewire/request.py`): it is what the compiler is held against.

Rules (arXiv 2511.11505, section 3; x_k is the stream before layer k, a attention, s shared, r routed experts):
  attention of layer k        reads n_k, which is x_k without r of layer k - 1        full, attention
  MoE or dense MLP of layer k reads x_k, which is without a of layer k                full, mlp
  MoE of layer k              reads n_k, too; everything else as in full              lag2
  attention of layer k        reads x_k without all that follows a of layer k - 1;
                              everything else as in full (arXiv 2501.06589)           ladder
  layers outside of the range are as they were. A shortcut MoE (arXiv 2404.05019) has nothing to be rewired.
"""

from __future__ import annotations

from farskip_compile.passes.residual.table import SubBlock, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport
from farskip_compile.testing.failure import failure, some


def reads_as_written(report: CompileReport) -> dict[str, TermSet]:
    """What each row reads in the model as it is written."""
    return {row.name: row.reads_as_written for row in report.rows}


def reads_in_standard_wiring(report: CompileReport) -> dict[str, TermSet]:
    """What each row would read in a model without any skipping: all that was added before it, of an attention all that
    was added before its layer."""
    layer_of = {index: row.layer for row in report.rows for index in row.terms}
    found = {}
    for row in report.rows:
        first = min(row.terms)
        same_layer = (index for index in range(first) if layer_of.get(index) == row.layer)
        beside = TermSet.of(same_layer) if row.kind.mixes_tokens else TermSet()
        found[row.name] = TermSet(((0, first),)) - beside
    return found


def expected_reads(
    report: CompileReport, base: dict[str, TermSet], connectivity: Connectivity, layers: LayerRange = None
) -> dict[str, TermSet]:
    """What each row must read if `base` (`reads_as_written` or `reads_in_standard_wiring`) is without FarSkip.

    Raises:
        AssertionError: the request is about rows, terms or layers that the model does not have, or about nothing.
    """
    gone = _by_name(report, connectivity, layers) if isinstance(connectivity, str) else _by_table(report, connectivity)
    if connectivity != "none" and not any(gone.get(row.name) for row in report.rows):
        raise failure(
            f"connectivity {connectivity!r} takes nothing away from any sub-block"
            + (f" in layers {layers[0]} to {layers[1]}" if layers else "")
            + ", so that asserting it would prove nothing",
            way_out="widen `layers`, or assert connectivity 'none'",
        )
    return {name: reads - gone.get(name, TermSet()) for name, reads in base.items()}


def _by_name(report: CompileReport, connectivity: str, layers: LayerRange) -> dict[str, TermSet]:
    last = max(row.layer for row in report.rows)
    if layers is not None and not 0 <= layers[0] <= layers[1] <= last:
        raise failure(
            f"layers {layers[0]} to {layers[1]} are asked for, but the model has layers 0 to {last}",
            way_out="(first, last), both inclusive; a layer begins at each attention or other token mixer",
        )
    if connectivity == "none":
        return {}
    routed = [row for row in report.rows if row.kind is TermKind.ROUTED]
    if not routed and connectivity != "ladder":
        raise failure(
            "no sub-block of the model has routed experts, so that there is nothing to rewire for",
            way_out="`farskip explain` shows what each sub-block was taken for",
        )
    if routed and all(_is_shortcut(report, row) for row in routed):
        return {row.name: TermSet.of(_skipped(row)) for row in routed}  # it leaves them out as it is
    mixed: dict[int, set[int]] = {}
    from_experts: dict[int, set[int]] = {}
    after_mixer: dict[int, set[int]] = {}
    for row in report.rows:
        for index in row.terms:
            (mixed if row.kind.mixes_tokens else after_mixer).setdefault(row.layer, set()).add(index)
            if report.table.terms[index].kind is TermKind.ROUTED:
                from_experts.setdefault(row.layer, set()).add(index)
    late = after_mixer if connectivity == "ladder" else from_experts
    gone = {}
    for row in report.rows:
        if layers is not None and not layers[0] <= row.layer <= layers[1]:
            continue
        if row.kind.mixes_tokens and connectivity != "mlp":
            gone[row.name] = TermSet.of(late.get(row.layer - 1, ()))
        elif not row.kind.mixes_tokens and connectivity != "attention":
            lags = connectivity == "lag2" and row.kind is TermKind.ROUTED
            lagging = from_experts.get(row.layer - 1, ()) if lags else ()
            gone[row.name] = TermSet.of({*mixed.get(row.layer, ()), *lagging})
    return gone


def _by_table(report: CompileReport, table: Connectivity) -> dict[str, TermSet]:
    assert not isinstance(table, str)
    rows, terms = [row.name for row in report.rows], [term.name for term in report.table.terms]
    for row, names in table.items():
        if row not in rows:
            raise failure(f"the model has no sub-block {row!r}, only {some(rows, 12)}")
        if unknown := [name for name in names if name not in terms]:
            raise failure(f"the model has no term {unknown[0]!r}, only {some(terms, 12)}")
    return {row: TermSet.of(map(terms.index, names)) for row, names in table.items()}


def _skipped(row: SubBlock) -> list[int]:
    """Terms that were added before a row's own and that it does not read, in the model as written."""
    return [index for index in range(min(row.terms)) if index not in row.reads_as_written]


def _is_shortcut(report: CompileReport, row: SubBlock) -> bool:
    """It stands beside a whole layer, an attention and a dense block, both of which it does not read."""
    kinds = {report.table.terms[index].kind for index in _skipped(row)}
    return TermKind.DENSE in kinds and any(kind.mixes_tokens for kind in kinds)
