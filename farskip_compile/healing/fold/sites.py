# SPDX-License-Identifier: Apache-2.0
"""Where a fold can change weights: what changed rows read, and what they add.

In:    twins, and what their placeholders are for one batch.
Out:   a `FoldSite` for each value that a changed row reads before its first product, with the parameters that read it
       linearly; and, if asked, for each term that it adds, with the parameters that write it. What is left alone, with
       the reason.
Never: takes a parameter that is used by anything else, too.

Algorithm, row by row:
1. The nodes of a row are those that compute its terms (`passes/residual/tags`), and what these use.
2. Each of them, in graph order, that no product with a weight stands before, and that none found before carries, is
   tried (`readers`): it is a site if parameters read it linearly. So norms need not be known: what a norm reads has no
   linear readers, what it gives has.
3. Each term of the row is tried (`writers`).
4. Parameters that are tied, used elsewhere, or copied before the value is known are left alone.
5. The same value in the graph as written: from a reader of the same name back along the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.healing.fold.lab import Agree, Lab, is_made_of_floats
from farskip_compile.healing.fold.readers import ParameterReader, ValueReaders, find_readers
from farskip_compile.healing.fold.record import LeftAlone
from farskip_compile.healing.fold.twins import ChannelTwins
from farskip_compile.healing.fold.writers import find_writers
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.table import SubBlock
from farskip_compile.passes.residual.tags import terms_of


@dataclass(frozen=True)
class FoldSite:
    """A value that a changed row reads, with its linear readers; or a term that it adds, with its linear writers."""

    row: str
    value: fx.Node
    """In the rewired graph."""
    original: fx.Node
    """The same in the graph as written."""
    axes: dict[str, int]
    """Of the parameters, by name: the axis that meets, or becomes, the features of the value."""
    here: int
    """Place in the rewired graph up to which it is run before the parameters change."""
    there: int
    """Place in the graph as written up to which it is run with the parameters as they were."""
    outputs: bool = False
    """A term."""


class Search:
    """See the module."""

    def __init__(self, twins: ChannelTwins, given: tuple[object, ...], agree: Agree) -> None:
        self.twins, self.course = twins, twins.student
        self.lab = Lab(twins.student, given, twins.held, agree)
        self.sites: list[FoldSite] = []
        self.alone: dict[LeftAlone, None] = {}
        self._tied = _tied(twins, given)
        self._by_term: dict[str, list[fx.Node]] = {}
        for node in twins.student.nodes:
            for name in terms_of(node):
                self._by_term.setdefault(name, []).append(node)
        self._here = {node.name: node for node in twins.student.nodes}
        self._there = {node.name: node for node in twins.teacher.nodes}

    def run(self, on_row: Callable[[int, int], None], *, outputs: bool) -> tuple[list[FoldSite], list[LeftAlone]]:
        """All sites, in the order in which they are folded; and what is left alone."""
        place = self.course.place
        regions = [(row, self._region(row)) for row in self.twins.table.rows if row.left_out]
        regions.sort(key=lambda one: place[one[1][-1]])
        for done, (row, region) in enumerate(regions):
            on_row(done, len(regions))
            self.lab.advance(place[region[-1]])
            before = len(self.sites)
            self._reads(row, region)
            if len(self.sites) == before:
                self._leave(row, "", "nothing reads it linearly")
            if outputs:
                self._terms(row, region)
            rest = [place[other[0]] for _, other in regions[done + 1 :]]
            self.lab.forget(min(rest, default=len(self.course.nodes)))
        on_row(len(regions), len(regions))
        return sorted(self.sites, key=lambda site: site.here), list(self.alone)

    def _region(self, row: SubBlock) -> list[fx.Node]:
        """Step 1, in graph order."""
        inside = self._inside(row)
        border = [arg for node in inside for arg in node.all_input_nodes if arg.op not in ("placeholder", "get_attr")]
        weights = walk_back(border, lambda node: node not in self.lab.weights or node.op == "placeholder")
        return sorted({*inside, *border, *weights}, key=self.course.place.__getitem__)

    def _inside(self, row: SubBlock) -> set[fx.Node]:
        own = (self._by_term.get(self.twins.table.terms[index].name, ()) for index in row.terms)
        return {node for nodes in own for node in nodes}

    def _parameters(self, row: SubBlock, region: Iterable[fx.Node]) -> list[fx.Node]:
        """The placeholders of the parameters that a row uses."""
        inside = self._inside(row)
        users = (node for node in region if node in inside or node in self.lab.weights)
        used = dict.fromkeys(arg for node in users for arg in node.all_input_nodes)
        return [node for node in used if node in self.twins.names]

    def _reads(self, row: SubBlock, region: list[fx.Node]) -> None:
        """Step 2."""
        past: set[fx.Node] = set()
        for node in region:
            if any(arg in past for arg in node.all_input_nodes) or self._applies_weight(node):
                past.add(node)
            if node in past or node in self.lab.weights or not self._may_be_read(node):
                continue
            found = find_readers(self.lab, node, region, self.twins.names)
            for parameter in found.quantised:
                self._leave(row, self.twins.names[parameter], "it is quantised, or another kind of tensor")
            if not found.readers:
                continue
            past.update(found.carried)
            readers = self._free(row, found)
            for other in found.others:
                self._leave(row, "", f"{_line(other)} is not linear in it")
            if not readers:
                continue
            original = self._same(node, readers[0], found)
            self.sites.append(
                FoldSite(
                    row=row.name,
                    value=node,
                    original=original,
                    axes={self.twins.names[reader.parameter]: reader.axis for reader in readers},
                    here=min(self._first_use(reader.parameter) for reader in readers),
                    there=1 + max(self.twins.teacher.place[self._there[reader.node.name]] for reader in readers),
                )
            )

    def _terms(self, row: SubBlock, region: list[fx.Node]) -> None:
        """Step 3."""
        for index in row.terms:
            term, written = self.twins.table.terms[index], self.twins.table_as_written.terms[index]
            node, original = self._here[term.node], self._there[written.node]
            writers = find_writers(self.lab, node, region, self._parameters(row, region))
            if not writers:
                self._leave(row, "", f"nothing writes {term.name} linearly, or a part of it alone")
                continue
            inside = {one for one in region if self.course.place[one] <= self.course.place[node]}
            reasons = {one.parameter: self._taken(one.parameter, inside) for one in writers}
            if any(reasons.values()):
                for parameter, reason in reasons.items():
                    self._leave(
                        row, self.twins.names[parameter], reason or f"{term.name} has another writer that is kept"
                    )
                continue
            self.sites.append(
                FoldSite(
                    row=row.name,
                    value=node,
                    original=original,
                    axes={self.twins.names[one.parameter]: one.axis for one in writers},
                    here=min(self._first_use(one.parameter) for one in writers),
                    there=self.twins.teacher.place[original] + 1,
                    outputs=True,
                )
            )

    def _free(self, row: SubBlock, found: ValueReaders) -> list[ParameterReader]:
        """Step 4, for readers."""
        nodes, readers = {reader.node for reader in found.readers}, []
        for reader in found.readers:
            axes = {one.axis for one in found.readers if one.parameter is reader.parameter}
            reason = self._taken(reader.parameter, nodes)
            if not reason and len(axes) > 1:
                reason = "it is read along two of its axes"
            if not reason and self._first_use(reader.parameter) <= self.course.place[found.value]:
                reason = "a copy of it is made before the value is known"
            if reason:
                self._leave(row, self.twins.names[reader.parameter], reason)
            else:
                readers.append(reader)
        return readers

    def _taken(self, parameter: fx.Node, users: Iterable[fx.Node]) -> str:
        """Why a parameter that these nodes use can't be changed for them; empty: it can."""
        if parameter in self._tied:
            return "it shares its memory with another parameter"
        known = set(users)
        other = next((node for node in _meets(parameter) if node not in known), None)
        return f"it is used elsewhere, too: {_line(other)}" if other is not None else ""

    def _first_use(self, parameter: fx.Node) -> int:
        """Place of the first node that computes with a parameter, or copies it."""
        own = self.lab.values[parameter]
        places = [self.course.place[node] for node in _meets(parameter)]
        for node in _shapes(parameter):
            value = self.lab.values.get(node)
            if not isinstance(value, torch.Tensor) or not _same_memory(value, own):
                places.append(self.course.place[node])
        return min(places)

    def _same(self, value: fx.Node, reader: ParameterReader, found: ValueReaders) -> fx.Node:
        """Step 5."""
        here, there = reader.node, self._there.get(reader.node.name)
        while here is not value and there is not None:
            at = next(at for at, arg in enumerate(here.all_input_nodes) if arg in found.carried)
            if ops.op_name(here) != ops.op_name(there) or len(here.all_input_nodes) != len(there.all_input_nodes):
                there = None
                break
            here, there = here.all_input_nodes[at], there.all_input_nodes[at]
        if there is None:
            raise VerificationError(
                f"{value.name}, which a rewired sub-block reads, was not found in the graph as written",
                way_out="report it; the model is unchanged",
                where=user_calls.where(value),
            )
        return there

    def _leave(self, row: SubBlock, parameter: str, reason: str) -> None:
        self.alone[LeftAlone(row.name, parameter, reason)] = None

    def _applies_weight(self, node: fx.Node) -> bool:
        return ops.is_matmul(node) and any(arg in self.lab.weights for arg in node.all_input_nodes)

    def _may_be_read(self, node: fx.Node) -> bool:
        value = self.lab.values.get(node)
        return (
            isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() >= 2 and value.shape[-1] > 1
        )


def _meets(parameter: fx.Node) -> Iterator[fx.Node]:
    """The nodes at which a parameter, perhaps in another shape or a part of it, meets other numbers."""
    known = {parameter, *_shapes(parameter)}
    users = {user: None for node in known for user in node.users if user not in known}
    return (user for user in users if user.op == "output" or is_made_of_floats(user) or len(user.all_input_nodes) > 1)


def _shapes(parameter: fx.Node) -> list[fx.Node]:
    """The nodes that are made of nothing but this parameter, and of what picks parts of it."""
    found, waiting = dict.fromkeys([parameter]), [parameter]
    while waiting:
        for user in waiting.pop().users:
            numbers = [arg for arg in user.all_input_nodes if is_made_of_floats(arg)]
            if (
                user not in found
                and user.op != "output"
                and is_made_of_floats(user)
                and all(arg in found for arg in numbers)
            ):
                found[user] = None
                waiting.append(user)
    return [*found][1:]


def _tied(twins: ChannelTwins, given: tuple[object, ...]) -> set[fx.Node]:
    """Placeholders whose memory another one has, too."""
    by_memory: dict[int, list[fx.Node]] = {}
    for node, value in zip(twins.student.nodes, given, strict=False):
        if node in twins.names and isinstance(value, torch.Tensor) and not hasattr(value, "to_local"):
            by_memory.setdefault(value.untyped_storage().data_ptr(), []).append(node)
    return {node for nodes in by_memory.values() if len(nodes) > 1 for node in nodes}


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    if hasattr(other, "to_local"):
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _line(node: fx.Node) -> str:
    source = user_calls.source_line(node)
    return f"{ops.op_name(node) or node.op}" + (f" at {source}" if source else f" ({node.name})")
