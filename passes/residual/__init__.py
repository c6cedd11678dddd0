# SPDX-License-Identifier: Apache-2.0
"""An analysis: read the connectivity table off a graph.

In:    a normalised graph.
Out:   a `Reading`: the connectivity `Table` and what it was read off; None if the graph has no residual stack (a
       loss, a sampler).
Never: changes the graph.

Algorithm:
1. `stack`: the residual sum, its terms, what computes each of them and what that reads.
2. `kinds`: attention, mixer, dense or routed, by dataflow.
3. Terms of the same class with the same reads form a sub-block; a dense term beside a routed one is shared.
4. A layer begins at each token-mixing sub-block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import fx

from farskip_compile.errors import NotASumError
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.graph.hidden_collectives import collectives_of
from farskip_compile.passes.residual.kinds import Finding, classify
from farskip_compile.passes.residual.regions import Region, reads
from farskip_compile.passes.residual.stack import Stack, read_stack
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.table import LETTERS, ROW_NAMES, OperatorStep, SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet


@dataclass(frozen=True)
class Reading(Stack):
    """A table, and the graph that it was read off: valid until the graph is edited."""

    table: Table
    findings: list[Finding]
    """What shows the kind of each term, by term index."""


@dataclass
class _Group:
    """Terms that will become one sub-block."""

    reads: TermSet
    mixes: bool
    terms: list[int] = field(default_factory=list)
    layer: int = 0


def read_table(graph: fx.Graph) -> Reading | None:
    """Read the connectivity table off `graph`.

    Raises:
        NotASumError: a value is added twice, or a term reads no residual value although an earlier one does.
        UnsupportedPatternError: a pattern that has no sound rewiring.
    """
    stack = read_stack(graph)
    if stack is None:
        return None
    stream, regions = stack.stream, stack.regions
    findings = [classify(stream, stack.facts, region) for region in regions]
    _refuse_readless(stream, regions, findings)
    groups = _parallel_in_order(_group(stream, regions, findings))
    _assign_layers(groups)
    kinds = _with_shared(groups, findings)
    terms = _name_terms(stream, regions, findings, groups, kinds)
    rows = _name_rows(groups, kinds)
    return Reading(stream, regions, Table(terms, rows), findings)


def _refuse_readless(stream: Stream, regions: list[Region], findings: list[Finding]) -> None:
    for region, finding in zip(regions, findings, strict=True):
        here = finding.kind is not TermKind.EMBEDDING and finding.carried is None
        if here and not region.read_values:
            raise NotASumError(
                "a term of the residual sum reads no residual value: the stream is normalised, mixed or cut before it",
                way_out="compile the whole model with fullgraph=True; streams that are not a sum are not supported",
                where=user_calls.where(region.leaf),
            )


def _group(stream: Stream, regions: list[Region], findings: list[Finding]) -> list[_Group]:
    """Sub-blocks in stream order: terms of one class that read the same."""

    def key(index: int) -> tuple[int, bool, int]:
        return stream.joins[index], not findings[index].kind.mixes_tokens, stream.order[stream.leaves[index]]

    groups: list[_Group] = []
    latest: dict[bool, _Group] = {}
    for index in sorted(range(len(regions)), key=key):
        if findings[index].kind is TermKind.EMBEDDING or findings[index].carried is not None:
            continue
        mixes = findings[index].kind.mixes_tokens
        terms_read = reads(stream, regions[index])
        group = latest.get(mixes)
        if group is None or group.reads != terms_read:
            group = latest[mixes] = _Group(terms_read, mixes)
            groups.append(group)
        group.terms.append(index)
    return groups


def _parallel_in_order(groups: list[_Group]) -> list[_Group]:
    """Put the mixer first in a parallel block whose feed-forward part is added first.

    A feed-forward block and the mixer after it that read the same are such a block if no mixer stands right before
    them; otherwise they are the feed-forward block of one layer and the mixer of the next (ladder wiring).
    """
    ordered: list[_Group] = []
    for group in groups:
        before = ordered[-1] if ordered else None
        parallel = group.mixes and before is not None and not before.mixes and before.reads == group.reads
        if parallel and (len(ordered) < 2 or not ordered[-2].mixes):
            ordered.insert(-1, group)
        else:
            ordered.append(group)
    return ordered


def _assign_layers(groups: list[_Group]) -> None:
    layer = 0
    for position, group in enumerate(groups):
        if group.mixes and position > 0:
            layer += 1
        group.layer = layer


def _with_shared(groups: list[_Group], findings: list[Finding]) -> list[TermKind]:
    kinds = [finding.kind for finding in findings]
    for group in groups:
        if any(kinds[index] is TermKind.ROUTED for index in group.terms):
            for index in group.terms:
                kinds[index] = TermKind.SHARED if kinds[index] is TermKind.DENSE else kinds[index]
    return kinds


def _name_terms(
    stream: Stream, regions: list[Region], findings: list[Finding], groups: list[_Group], kinds: list[TermKind]
) -> tuple[Term, ...]:
    layer_of = {index: group.layer for group in groups for index in group.terms}
    last = -1 if not groups or groups[0].mixes else 0  # the layer that an earlier graph has begun last
    taken: Counter[str] = Counter()
    terms = []
    for index, (region, finding, kind) in enumerate(zip(regions, findings, kinds, strict=True)):
        known = finding.carried
        layer = layer_of.get(index, 0) if known is None else last - known.age
        stem = LETTERS[kind] if kind is TermKind.EMBEDDING else f"{LETTERS[kind]}{layer}"
        name = f"{stem}.{taken[stem]}" if taken[stem] else stem
        taken[stem] += 1
        terms.append(
            Term(
                index=index,
                name=name,
                kind=kind,
                layer=layer,
                node=region.leaf.name,
                evidence=finding.evidence,
                where=user_calls.where(finding.node or region.leaf, layer),
                collectives=_collectives(stream, region),
                shared_inside=finding.shared_inside is not None,
                inseparable=_step(finding.inseparable, layer),
                carried=known.places if known is not None else (),
            )
        )
    return tuple(terms)


def _step(node: fx.Node | None, layer: int) -> OperatorStep | None:
    return OperatorStep(user_calls.shown(node), user_calls.where(node, layer)) if node is not None else None


def _collectives(stream: Stream, region: Region) -> tuple[str, ...]:
    """Collectives in the region and on the way from the term to the main chain."""
    nodes = list(region.owned)
    node = region.leaf
    while (parent := stream.parents.get(node)) is not None and parent not in stream.values:
        node = parent
        nodes.append(node)
    return tuple(name for node in sorted(nodes, key=lambda n: stream.order[n]) for name in collectives_of(node))


def _name_rows(groups: list[_Group], kinds: list[TermKind]) -> tuple[SubBlock, ...]:
    taken: Counter[str] = Counter()
    rows = []
    for group in groups:
        members = [kinds[index] for index in group.terms]
        kind = next((k for k in (TermKind.ATTENTION, TermKind.ROUTED, TermKind.MIXER) if k in members), TermKind.DENSE)
        stem = f"{ROW_NAMES[kind]}.{group.layer}"
        name = f"{stem}.{taken[stem]}" if taken[stem] else stem
        taken[stem] += 1
        rows.append(SubBlock(name, kind, group.layer, tuple(group.terms), group.reads))
    return tuple(rows)
