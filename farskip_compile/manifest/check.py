# SPDX-License-Identifier: Apache-2.0
"""Hold a graph against the manifest of the checkpoint that it is compiled for.

In:    a manifest, the table of the graph as written, the graph's parameters; later the table that was asked for.
Out:   nothing, or a `ManifestError` about the first sub-block or parameter that differs, with both values.
Never: changes anything; communicates.

Algorithm:
1. Sub-blocks, pairwise and in order: name, kind, layer, terms, what is read in the model as written.
2. Parameters: each one of the graph must be in the manifest, with its shape; each one that the manifest's sub-blocks
   use must be used in the graph. On one of several ranks it may be a shard, whose sizes divide those of the manifest,
   and experts of other ranks may be missing. What an adapter adds in the place of a module is not looked at. None that
   a sub-block uses may be one that the checkpoint did not have (`lost`).
   Of a model that holds several parameters in one (`Manifest.fused`), those with a name in the manifest are compared,
   and there must be some. Such a model may have more rows in a matrix that no sub-block uses (the table of the
   embedding): padding up to the next multiple of `Manifest.rows_multiple`.
3. What each sub-block reads after rewiring.
A manifest without rows or without fingerprint (AMD's keys) says nothing about them, so nothing is compared.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from itertools import islice, zip_longest

from farskip_compile._compat.distributed import world_group
from farskip_compile.errors import ManifestError, Where
from farskip_compile.manifest.adapters import COPIES, without_adapters
from farskip_compile.manifest.fingerprint import ParameterFingerprint, align
from farskip_compile.manifest.graph_parameters import GraphParameters, GraphShape
from farskip_compile.manifest.lost import refuse_lost
from farskip_compile.manifest.patterns import ParameterShape
from farskip_compile.manifest.record import Manifest
from farskip_compile.passes.residual.table import SubBlock, Table
from farskip_compile.passes.residual.termset import TermSet

WAY_OUT = (
    "compile the model that the manifest was made for, or make one of this model: farskip_compile.describe(model, ...)"
)

_NUMBER = re.compile(r"\d+")

MOST_COMPARED = 2000
"""Names of parameters that an error looks for a close one among."""


def check_as_written(manifest: Manifest, table: Table, parameters: GraphParameters) -> None:
    """Compare the graph, before it is rewired.

    Raises:
        ManifestError: it is not the graph of the manifest's model.
    """
    if manifest.table.rows:
        _check_rows(manifest, table)
    if manifest.fingerprint is not None:
        world = world_group()
        if manifest.fused:
            parameters = _of_one_name(manifest, manifest.fingerprint, parameters)
        _check_parameters(manifest, manifest.fingerprint, parameters, ranks=world.size() if world is not None else 1)


def check_whole(manifest: Manifest, shapes: Mapping[str, ParameterShape]) -> None:
    """Compare the parameters of a whole model, which no graph shows yet.

    Parameters of the model that the manifest does not have are allowed if they look like none of its sub-blocks' (a
    head, a vision tower): the manifest may be that of a part.

    Raises:
        ManifestError: the manifest is that of another model.
    """
    known = manifest.fingerprint
    if known is None:
        return
    aligned = align(tuple(shapes), known.shapes)
    numbered = {_NUMBER.sub("#", name) for name in known.used}
    kept = {
        name: shape
        for name, shape in shapes.items()
        if aligned(name) in known.shapes or _NUMBER.sub("#", aligned(name)) in numbered
    }
    if known.used and not kept:
        raise _nothing_in_common(manifest, shapes)
    _check_parameters(manifest, known, GraphParameters(kept, tuple(kept)), ranks=1, whole=True)


def check_rewired(manifest: Manifest, wanted: Table) -> None:
    """Compare what the sub-blocks will read.

    Raises:
        ManifestError: connectivity and layers come to something else than the manifest's table.
    """
    known = manifest.table
    for theirs, row in zip(known.rows, wanted.rows, strict=bool(known.rows)):
        if not _same_terms(known, theirs.reads, wanted, row.reads):
            made_with = manifest.versions.get("farskip-compile", "another version")
            raise ManifestError(
                f"rewired, {row.name} would read {wanted.text(row.reads)}; in {manifest} it reads "
                f"{known.text(theirs.reads)}",
                way_out=f"{WAY_OUT}. The manifest was made with farskip-compile {made_with}",
                where=Where(layer=row.layer),
            )


def _check_rows(manifest: Manifest, table: Table) -> None:
    for theirs, row in zip_longest(manifest.table.rows, table.rows):
        if row is None:
            raise ManifestError(
                f"the model ends after {len(table.rows)} sub-blocks; {manifest} has {len(manifest.table.rows)}, the "
                f"next of them {_described(theirs)}",
                way_out=WAY_OUT,
            )
        difference = _row_difference(manifest, theirs, table, row)
        if difference:
            raise ManifestError(difference, way_out=WAY_OUT, where=table.terms[row.terms[0]].where)


def _row_difference(manifest: Manifest, theirs: SubBlock | None, table: Table, row: SubBlock) -> str:
    """Return the first difference between two rows, with both values; empty if they are equal."""
    known = manifest.table
    if theirs is None:
        return f"the model has a sub-block {_described(row)} after the {len(known.rows)} of {manifest}"
    if (theirs.name, theirs.kind, theirs.layer) != (row.name, row.kind, row.layer):
        return f"the model has a sub-block {_described(row)} where {manifest} has {_described(theirs)}"
    ours, added = table.names(row.terms), known.names(theirs.terms)
    if sorted(ours) != sorted(added):
        return f"{row.name} adds {', '.join(ours)} to the stream; in {manifest} it adds {', '.join(added)}"
    if not _same_terms(known, theirs.reads_as_written, table, row.reads):
        return (
            f"{row.name} reads {table.text(row.reads)} in the model as written; in {manifest} it reads "
            f"{known.text(theirs.reads_as_written)} there"
        )
    return ""


def _described(row: SubBlock) -> str:
    return f"{row.name} ({row.kind}, layer {row.layer})"


def _same_terms(known: Table, theirs: TermSet, table: Table, ours: TermSet) -> bool:
    """Return whether two sets have the same names.

    The order of terms is that of the graph, and another kernel may change it.
    """
    if theirs == ours and all(known.terms[low:high] == table.terms[low:high] for low, high in ours.intervals):
        return True
    return set(known.names(theirs)) == set(table.names(ours))


def _of_one_name(manifest: Manifest, known: ParameterFingerprint, graph: GraphParameters) -> GraphParameters:
    """Return the parameters of `graph` whose names are in the manifest."""
    aligned = align(tuple(graph.shapes), known.shapes)
    shapes = {name: shape for name, shape in graph.shapes.items() if aligned(name) in known.shapes}
    if not shapes:
        raise _nothing_in_common(manifest, graph.shapes)
    return GraphParameters(shapes, graph.used, graph.new)


def _nothing_in_common(manifest: Manifest, names: Iterable[str]) -> ManifestError:
    return ManifestError(
        f"no parameter of the model has a name in {manifest}: the model has {', '.join(islice(names, 3)) or 'none'}",
        way_out=WAY_OUT,
    )


def _check_parameters(
    manifest: Manifest, known: ParameterFingerprint, graph: GraphParameters, *, ranks: int, whole: bool = False
) -> None:
    sharded = ranks > 1
    aligned = align(tuple(graph.shapes), known.shapes)
    adapted = without_adapters(map(aligned, graph.shapes), known.shapes)

    def seen_as(name: str) -> str | None:
        return adapted.get(aligned(name), aligned(name))

    seen: dict[str, str] = {}
    for name, shape in graph.shapes.items():
        theirs = seen_as(name)
        if theirs is None:
            continue
        if theirs not in known.shapes or theirs in seen:
            raise _unknown(manifest, theirs, shape, known.shapes, seen)
        seen[theirs] = name
        multiple = manifest.rows_multiple if theirs in known.others else 1
        if not _fits(shape, known.shapes[theirs], ranks, multiple):
            may_be = ", or a shard of it" if sharded else ""
            raise ManifestError(
                f"the parameter {theirs!r} has shape {_listed(shape)} in the model; in {manifest} it has shape "
                f"{_listed(known.shapes[theirs])}{may_be}",
                way_out=WAY_OUT,
            )
    used = {seen_as(name) for name in graph.used}
    lost = {theirs for name in graph.new if (theirs := seen_as(name)) in known.used and COPIES not in name.split(".")}
    if lost:
        refuse_lost(sorted(map(str, lost)), "the checkpoint that the model was loaded from")
    missing = next((name for name in known.used if name not in used), None)
    if missing is not None and not sharded and (whole or not manifest.fused):
        raise ManifestError(
            f"no sub-block of the model uses a parameter {missing!r}; those of {manifest} do, and its shape is "
            f"{_listed(known.shapes[missing])} there",
            way_out=WAY_OUT,
        )


def _unknown(
    manifest: Manifest, name: str, shape: GraphShape, known: Mapping[str, ParameterShape], seen: Mapping[str, str]
) -> ManifestError:
    last = name.rpartition(".")[2]  # of the same kind, and not too many: each comparison takes its time
    alike = (other for other in known if other not in seen and other.rpartition(".")[2] == last)
    free = [*islice(alike, MOST_COMPARED)] or [*islice((other for other in known if other not in seen), MOST_COMPARED)]
    close = difflib.get_close_matches(name, free, n=1)
    hint = f"; it has {close[0]!r} of shape {_listed(known[close[0]])}" if close else ""
    return ManifestError(
        f"the model uses a parameter {name!r} of shape {_listed(shape)}, which {manifest} does not have{hint}",
        way_out=WAY_OUT,
    )


def _fits(shape: GraphShape, whole: ParameterShape, ranks: int, multiple: int) -> bool:
    """Return whether a parameter of shape `whole` may have `shape` on one of `ranks`.

    It may be a shard, and a matrix whose rows are padded to a multiple.
    """
    if len(shape) != len(whole):
        return False
    sizes = list(zip(shape, whole, strict=True))
    if multiple > 1 and len(whole) > 1 and (rows := shape[0]) is not None and rows > 0:
        padded = -(-whole[0] // multiple) * multiple
        if padded % rows == 0 and ranks % (padded // rows) == 0:
            sizes = sizes[1:]
    return all(size is None or size == full or (ranks > 1 and size > 0 and full % size == 0) for size, full in sizes)


def _listed(shape: GraphShape) -> str:
    return str(["?" if size is None else size for size in shape]).replace("'", "")
