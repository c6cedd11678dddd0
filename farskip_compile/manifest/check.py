"""Hold a graph against the manifest of the checkpoint that it is compiled for.

In:    a manifest, the table of the graph as written, the graph's parameters; later the table that was asked for.
Out:   nothing, or a `ManifestError` about the first sub-block or parameter that differs, with both values.
Never: changes anything; communicates.

Algorithm:
1. Sub-blocks, pairwise and in order: name, kind, layer, terms, what is read in the model as written.
2. Parameters: each one of the graph must be in the manifest, with its shape; each one that the manifest's sub-blocks
   use must be used in the graph. On one of several ranks it may be a shard, whose sizes divide those of the manifest,
   and experts of other ranks may be missing.
3. What each sub-block reads after rewiring.
A manifest without rows or without fingerprint (AMD's keys) says nothing about them, so nothing is compared.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import zip_longest

from farskip_compile._compat.distributed import world_group
from farskip_compile.errors import ManifestError, Where
from farskip_compile.manifest.description import Manifest, ManifestRow, interval_text
from farskip_compile.manifest.fingerprint import Fingerprint, align
from farskip_compile.manifest.graph_parameters import GraphParameters, GraphShape
from farskip_compile.manifest.patterns import Shape
from farskip_compile.passes.residual.table import ResidualTable, SubBlock
from farskip_compile.passes.residual.termset import TermSet

WAY_OUT = (
    "compile the model that the manifest was made for, or make one of this model: farskip_compile.describe(model, ...)"
)


def check_as_written(manifest: Manifest, table: ResidualTable, parameters: GraphParameters) -> None:
    """Compare the graph, before it is rewired.

    Raises:
        ManifestError: it is not the graph of the manifest's model.
    """
    if manifest.rows:
        _check_rows(manifest, table)
    if manifest.fingerprint is not None:
        world = world_group()
        _check_parameters(manifest, manifest.fingerprint, parameters, sharded=world is not None and world.size() > 1)


def check_rewired(manifest: Manifest, wanted: ResidualTable) -> None:
    """Compare what the sub-blocks will read.

    Raises:
        ManifestError: connectivity and layers come to something else than the manifest's rows.
    """
    for theirs, row in zip(manifest.rows, wanted.rows, strict=bool(manifest.rows)):
        if not _same_terms(manifest, theirs.reads, wanted, row.reads):
            made_with = manifest.versions.get("farskip-compile", "another version")
            raise ManifestError(
                f"rewired, {row.name} would read {_written(wanted, row.reads)}; in {manifest} it reads "
                f"{manifest.names(theirs.reads)}",
                way_out=f"{WAY_OUT}. The manifest was made with farskip-compile {made_with}",
                where=Where(layer=row.layer),
            )


def _check_rows(manifest: Manifest, table: ResidualTable) -> None:
    for theirs, row in zip_longest(manifest.rows, table.rows):
        if row is None:
            raise ManifestError(
                f"the model ends behind {len(table.rows)} sub-blocks; {manifest} has {len(manifest.rows)}, the next of "
                f"them {_described(theirs)}",
                way_out=WAY_OUT,
            )
        difference = _row_difference(manifest, theirs, table, row)
        if difference:
            handles = table.handles
            where = handles.place(row.terms[0], row.layer) if handles is not None else Where(layer=row.layer)
            raise ManifestError(difference, way_out=WAY_OUT, where=where)


def _row_difference(manifest: Manifest, theirs: ManifestRow | None, table: ResidualTable, row: SubBlock) -> str:
    """What is different, with both values; empty if nothing is."""
    if theirs is None:
        return f"the model has a sub-block {_described(row)} behind the {len(manifest.rows)} of {manifest}"
    if (theirs.name, theirs.kind, theirs.layer) != (row.name, row.kind, row.layer):
        return f"the model has a sub-block {_described(row)} where {manifest} has {_described(theirs)}"
    adds = [table.terms[index].name for index in row.terms]
    if sorted(adds) != sorted(theirs.terms):
        return f"{row.name} adds {', '.join(adds)} to the stream; in {manifest} it adds {', '.join(theirs.terms)}"
    if not _same_terms(manifest, theirs.reads_before, table, row.reads):
        return (
            f"{row.name} reads {_written(table, row.reads)} in the model as written; in {manifest} it reads "
            f"{manifest.names(theirs.reads_before)} there"
        )
    return ""


def _described(row: SubBlock | ManifestRow) -> str:
    return f"{row.name} ({row.kind}, layer {row.layer})"


def _written(table: ResidualTable, terms: TermSet) -> str:
    return interval_text([term.name for term in table.terms], terms)


def _same_terms(manifest: Manifest, theirs: TermSet, table: ResidualTable, ours: TermSet) -> bool:
    """Equal sets of names. The order of terms is that of the graph, and another kernel may change it."""
    if theirs == ours and all(
        manifest.terms[low:high] == tuple(term.name for term in table.terms[low:high]) for low, high in ours.intervals
    ):
        return True
    return {manifest.terms[index] for index in theirs} == set(table.names(ours))


def _check_parameters(manifest: Manifest, known: Fingerprint, graph: GraphParameters, *, sharded: bool) -> None:
    rename = align(tuple(graph.shapes), known.shapes)
    seen: dict[str, str] = {}
    for name, shape in graph.shapes.items():
        theirs = rename(name)
        if theirs not in known.shapes or theirs in seen:
            raise _unknown(manifest, theirs, shape, known.shapes, seen)
        seen[theirs] = name
        if not _fits(shape, known.shapes[theirs], sharded=sharded):
            may_be = ", or a shard of it" if sharded else ""
            raise ManifestError(
                f"the parameter {theirs!r} has shape {_listed(shape)} in the model; in {manifest} it has shape "
                f"{_listed(known.shapes[theirs])}{may_be}",
                way_out=WAY_OUT,
            )
    used = {rename(name) for name in graph.used}
    missing = next((name for name in known.used if name not in used), None)
    if missing is not None and not sharded:
        raise ManifestError(
            f"no sub-block of the model uses a parameter {missing!r}; those of {manifest} do, and its shape is "
            f"{_listed(known.shapes[missing])} there",
            way_out=WAY_OUT,
        )


def _unknown(
    manifest: Manifest, name: str, shape: GraphShape, known: Mapping[str, Shape], seen: Mapping[str, str]
) -> ManifestError:
    free = [other for other in known if other not in seen]
    close = difflib.get_close_matches(name, free, n=1)
    hint = f"; it has {close[0]!r} of shape {_listed(known[close[0]])}" if close else ""
    return ManifestError(
        f"the model uses a parameter {name!r} of shape {_listed(shape)}, which {manifest} does not have{hint}",
        way_out=WAY_OUT,
    )


def _fits(shape: GraphShape, whole: Shape, *, sharded: bool) -> bool:
    if len(shape) != len(whole):
        return False
    return all(
        size is None or size == full or (sharded and size > 0 and full % size == 0)
        for size, full in zip(shape, whole, strict=True)
    )


def _listed(shape: GraphShape) -> str:
    return str(["?" if size is None else size for size in shape]).replace("'", "")
