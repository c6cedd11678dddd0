"""Third pass, the only one that changes the function of the model: edit the graph to match a requested table.

In:    a normalised graph, its table, and a `Request`.
Out:   the same graph, in which each row of the request reads its residual values without the terms left out.
Never: touches a residual sum of the model (every term still reaches the final hidden state), adds a read, moves a
       node, or changes what a row outside the request reads.

Algorithm:
1. Where a collective hides a sum of terms of which only some are left out, part it (`split_collectives`).
2. For each row and each residual value v that it reads: build v without the terms (`substitute`).
3. Point the row's own nodes at the new value. Nodes that another row reads too, such as the one norm of a parallel
   block, are copied for the row that changes. Whatever else uses such a node (the caller, if it is returned; a
   later sub-block, beside the stream) goes on seeing what the row sees that owns it.
   Also an all-gather behind a norm (sequence parallelism): its copy is one more collective, on every rank alike.
4. Erase what has become dead, collectives included, and lint.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.residual.table import GraphHandles, ResidualTable, SubBlock
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Request
from farskip_compile.passes.rewire.split_collectives import split_sums
from farskip_compile.passes.rewire.substitute import Substitution


def rewire(module: fx.GraphModule, table: ResidualTable, request: Request) -> int:
    """Edit `module` in place so that its table becomes `request.wanted(table)`.

    Returns:
        How many collectives had to be parted.

    Raises:
        UnsupportedPatternError: a node that would have to be copied draws random numbers or writes memory.
    """
    if not request.left_out:
        return 0
    used_before = used_nodes(module.graph)
    before = table
    table, parted = split_sums(module, table, request)
    left_out = _renumbered(request.left_out, before, table) if parted else request.left_out
    assert table.handles is not None
    handles, graph = table.handles, module.graph
    owner = {node: row.name for row in table.rows for index in row.terms for node in handles.regions[index].owned}
    visitors = _visitors(table, handles, owner)
    substitution = Substitution(handles.stream, graph)
    for row in table.rows:
        dropped = left_out.get(row.name)
        if dropped:
            _rewire_row(graph, handles, row, dropped, left_out, owner, visitors, substitution)
    erase_dead(graph, used_before)
    graph.lint()
    return parted


def _renumbered(left_out: Mapping[str, TermSet], before: ResidualTable, after: ResidualTable) -> dict[str, TermSet]:
    """The same terms by their indices in the table read after parting: C(s + r) becomes C(r) + C(s)."""
    assert before.handles is not None
    assert after.handles is not None
    index_of = {core: index for index, core in enumerate(after.handles.stream.cores)}
    cores = before.handles.stream.cores
    return {name: TermSet.of(index_of[cores[index]] for index in terms) for name, terms in left_out.items()}


def erase_dead(graph: fx.Graph, used_before: Set[fx.Node]) -> None:
    """Erase nodes that had users before the edit and have none now: also collectives, on every rank alike."""
    for node in reversed(list(graph.nodes)):
        communicates = ops.is_collective(node) or ops.is_wait(node)
        if not node.users and node in used_before and (communicates or effects.is_pure(node)):
            graph.erase_node(node)


def used_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes with at least one user."""
    return {node for node in graph.nodes if node.users}


def _visitors(
    table: ResidualTable, handles: GraphHandles, owner: Mapping[fx.Node, str]
) -> dict[fx.Node, dict[str, None]]:
    """For each node that a row other than its owner uses to reach what it reads: those rows."""
    visitors: dict[fx.Node, dict[str, None]] = {}
    for row in table.rows:
        stack = [node for index in row.terms for node in handles.regions[index].met]
        seen: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in seen or node in handles.stream.values or node not in owner or owner[node] == row.name:
                continue
            seen.add(node)
            visitors.setdefault(node, {})[row.name] = None
            stack.extend(handles.stream.inputs(node))
    return visitors


def _rewire_row(
    graph: fx.Graph,
    handles: GraphHandles,
    row: SubBlock,
    dropped: TermSet,
    left_out: Mapping[str, TermSet],
    owner: dict[fx.Node, str],
    visitors: Mapping[fx.Node, Mapping[str, None]],
    substitution: Substitution,
) -> None:
    stream = handles.stream
    replacement: dict[fx.Node, fx.Node] = {}
    for index in row.terms:
        if uses := handles.regions[index].direct & dropped:
            term = handles.leaf(next(iter(uses)))
            raise UnsupportedPatternError(
                f"{row.name} uses what another sub-block adds ({term.name!r}) as it is, not through the stream",
                way_out="it can't be left out without another model; leave this sub-block as it is",
                where=ops.where(term, row.layer),
            )
        for value in handles.regions[index].read_values:
            new = substitution.without(value, dropped)
            if new is None:
                raise UnsupportedPatternError(
                    f"{row.name} would read nothing through {value.name!r}", where=ops.where(value, row.layer)
                )
            if new is not value:
                replacement[value] = new
    own = [node for index in row.terms for node in handles.regions[index].owned]
    visited = [node for node, rows in visitors.items() if row.name in rows]
    for node in sorted({*own, *visited}, key=lambda n: stream.order[n]):
        changed = [arg for arg in node.all_input_nodes if arg in replacement]
        if not changed:
            continue
        readers = {owner[node], *visitors.get(node, ())}
        if all(left_out.get(reader) == dropped for reader in readers):
            for arg in changed:
                node.replace_input_with(arg, replacement[arg])
        else:
            copy = replacement[node] = _copy(graph, node, replacement, row)
            readers = {row.name, *visitors.get(node, ())}
            for user in list(node.users) if owner[node] == row.name else ():
                if owner.get(user) not in readers:
                    user.replace_input_with(node, copy)
            owner[copy] = row.name


def _is_functional_collective(node: fx.Node) -> bool:
    """A launch that writes none of its inputs, or a wait: every rank makes the same edit, so all of them make two."""
    return ops.is_wait(node) or (ops.is_collective(node) and not ops.op_name(node).endswith("_"))


def _copy(graph: fx.Graph, node: fx.Node, replacement: Mapping[fx.Node, fx.Node], row: SubBlock) -> fx.Node:
    if not effects.is_pure(node) and not _is_functional_collective(node):
        raise UnsupportedPatternError(
            f"{row.name} shares {ops.op_name(node)!r} with a sub-block that keeps what it reads, and it can't be "
            "computed twice",
            way_out="give each sub-block its own copy of this step in the model",
            where=ops.where(node, row.layer),
        )
    with graph.inserting_after(node):
        copy = graph.node_copy(node, lambda arg: replacement.get(arg, arg))
    value = ops.tensor(node)
    if value is not None:
        copy.meta["example_value"] = fresh_like(value)
    return copy
