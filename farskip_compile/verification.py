"""Proof of the rewiring: read the table off the edited graph again, and compare it with what was asked for.

Contract: runs after every compile. Uses the graph only (never a record of what `rewire` meant to do), compares every
cell of every row and the final hidden state, and changes nothing.

Algorithm: a term is identified by the node below its linear ops, which rewiring keeps. For each term: the set of
terms that its region reads must be the one asked for. The final sum must hold every term exactly once.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.regions import reads
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.table import ResidualTable
from farskip_compile.passes.termset import TermSet


def verify(module: fx.GraphModule, wanted: ResidualTable, cores: list[str]) -> ResidualTable:
    """Check that the wiring of `module` is `wanted`.

    Args:
        module: the graph to check.
        wanted: the table that it must have.
        cores: name of the identifying node of each term of `wanted`, by term index (`core_names`).

    Returns:
        The table read off `module`, for the report.

    Raises:
        VerificationError: naming the first differing row and the terms in question.
    """
    found = read_table(module.graph)
    if found is None or found.handles is None:
        raise VerificationError("the rewired graph has no residual stack any more", way_out=_REPORT)
    index_of = {name: index for index, name in enumerate(cores)}
    names = core_names(found)
    unknown = [name for name in names if name not in index_of]
    if unknown or len(names) != len(cores):
        raise VerificationError(
            f"the residual sum holds {len(names)} terms and should hold {len(cores)}"
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
    return found


def core_names(table: ResidualTable) -> list[str]:
    """Names of the nodes that identify the terms of `table`, by term index."""
    assert table.handles is not None
    return [core.name for core in table.handles.stream.cores]


_REPORT = (
    "nothing was compiled; please report this with the output of `farskip explain`. It is a defect of farskip-compile"
)
