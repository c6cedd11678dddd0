"""Proof of the rewiring: read the table off the edited graph again, and compare it with what was asked for.

Contract: runs after every compile. Uses the graph only (never a record of what `rewire` meant to do), compares every
cell of every row and the final hidden state, and changes nothing.

Algorithm: a term is identified by the node below its linear ops, which rewiring keeps. For each term: the set of
terms that its region reads must be the one asked for. The final sum must hold every term exactly once. Whatever reads
the stream and is no sub-block (the final norm, returned hidden states) must read the same terms as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from farskip_compile.errors import FarSkipError, VerificationError, Where
from farskip_compile.passes.regions import reads
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.table import ResidualTable
from farskip_compile.passes.termset import TermSet


@dataclass(frozen=True)
class Snapshot:
    """What rewiring must keep, by node name; taken before it."""

    cores: tuple[str, ...]
    """The node that identifies each term, by term index."""
    outside: Mapping[str, tuple[TermSet, ...]]
    """Terms of each residual value that a reader outside of all sub-blocks reads."""


def snapshot(table: ResidualTable) -> Snapshot:
    """Record what rewiring must keep of the graph of `table`."""
    assert table.handles is not None
    stream = table.handles.stream
    known = {node for region in table.handles.regions for node in region.owned} | set(stream.tree) | set(stream.partial)
    outside: dict[str, tuple[TermSet, ...]] = {}
    for node in stream.order:
        held = tuple(stream.values[arg] for arg in node.all_input_nodes if arg in stream.values)
        if held and node not in known:
            outside[node.name] = held
    return Snapshot(tuple(core.name for core in stream.cores), outside)


def verify(module: fx.GraphModule, wanted: ResidualTable, before: Snapshot) -> ResidualTable:
    """Check that the wiring of `module` is `wanted`.

    Args:
        module: the graph to check.
        wanted: the table that it must have.
        before: what must be as it was, from the graph that `wanted` was made for.

    Returns:
        The table read off `module`, for the report.

    Raises:
        VerificationError: naming the first differing row and the terms in question.
    """
    try:
        found = read_table(module.graph)
    except FarSkipError as error:
        raise VerificationError(
            f"the rewired graph can't be read: {error.reason}", way_out=_REPORT, where=error.where
        ) from error
    if found is None or found.handles is None:
        raise VerificationError("the rewired graph has no residual stack any more", way_out=_REPORT)
    index_of = {name: index for index, name in enumerate(before.cores)}
    after = snapshot(found)
    names = after.cores
    unknown = [name for name in names if name not in index_of]
    if unknown or len(names) != len(before.cores):
        raise VerificationError(
            f"the residual sum holds {len(names)} terms and should hold {len(before.cores)}"
            + (f"; unknown: {unknown[:5]}" if unknown else ""),
            way_out=_REPORT,
        )
    to_wanted = [index_of[name] for name in names]
    identity = to_wanted == list(range(len(to_wanted)))

    def translate(terms: TermSet) -> TermSet:
        return terms if identity else TermSet.of(to_wanted[index] for index in terms)

    expected = {index: row for row in wanted.rows for index in row.terms}
    for index, region in enumerate(found.handles.regions):
        row = expected.get(to_wanted[index])
        is_read = translate(reads(found.handles.stream, region)) if region.owned else TermSet()
        should = row.reads if row is not None else TermSet()
        if is_read != should:
            name = row.name if row is not None else wanted.terms[to_wanted[index]].name
            extra, missing = wanted.names(is_read - should), wanted.names(should - is_read)
            raise VerificationError(
                f"{name} reads {extra or 'nothing'} that it should not, and misses {missing or 'nothing'}",
                way_out=_REPORT,
                where=found.handles.place(index, row.layer if row is not None else None),
            )
    if translate(found.final) != wanted.final:
        missing = wanted.names(wanted.final - translate(found.final))
        raise VerificationError(f"the final hidden state misses {missing}", way_out=_REPORT)
    for name in {**before.outside, **after.outside}:
        reads_now = tuple(map(translate, after.outside.get(name, ())))
        if reads_now != before.outside.get(name, ()):
            raise VerificationError(
                f"{name!r}, which is no part of a sub-block, no longer reads the residual values that it read",
                way_out=_REPORT,
                where=Where(node=name),
            )
    return found


_REPORT = (
    "nothing was compiled; please report this with the output of `farskip explain`. It is a defect of farskip-compile"
)
