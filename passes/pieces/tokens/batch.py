# SPDX-License-Identifier: Apache-2.0
"""Before differentiation, on request: the batch in parts through the whole stack, each with collectives of its own.

In:    a Dynamo graph whose exchanges have no drops, or whose sums over ranks are all-reduces; in how many parts.
Out:   the same graph, in which all that handles the batch sequence by sequence is there once for each part, those of
       the first part before those of the second at each place: one part's collectives are on their way while the other
       computes.
Never: cuts a sequence; leaves a product or an attention whole. What else needs the whole batch (a loss, counts for
       statistics, a state that is written) gets it, from the parts.

Algorithm: inputs whose first dimension is the batch are cut along it. An operator is copied if it keeps the sequences
of all its arguments apart (`keeps_batch`), or lies inside of a region of tokens: one with exchanges (`region`), or one
of experts that each rank has a slice of (`sliced`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch import fx

from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.copies import copy_for_pieces
from farskip_compile.passes.pieces.tokens.facts import TokenFacts, Window, deciding, sizes_of
from farskip_compile.passes.pieces.tokens.order import keeps_batch
from farskip_compile.passes.pieces.tokens.region import CopiedRegion, regions_of
from farskip_compile.passes.pieces.tokens.sliced import sliced_regions


def cut_batch(graph: fx.Graph, parts: int) -> int:
    """Cut the batch of `graph` in place; returns how many pairs of exchanges, and all-reduces, each part has.

    Raises:
        NotSeparableError: it can't be cut. The graph may be half done then, and is to be thrown away.
    """
    region = _whole(graph)
    copy_for_pieces(graph, region, parts)
    return region.pairs


def _whole(graph: fx.Graph) -> CopiedRegion:
    exchanges = _exchanges(graph)
    sums = [node for node in ops.calls(graph, comms.is_all_reduce) if ops.is_floating(node)]
    regions, refused = regions_of(graph)
    if refused:
        raise refused[0]
    launches = exchanges or [launch for region in regions for launch in region.launches]
    first = next(iter([*launches, *sums]), None)
    if first is None:
        raise _nothing_to_hide(graph)
    inputs = _inputs(first)
    if not inputs:
        raise NotSeparableError(first, "nothing that it depends on has more than one sequence")
    facts = TokenFacts(graph, inputs)
    pairs = sum(region.pairs for region in regions)
    if not launches:
        regions = sliced_regions(facts)
    gathered = {region.gathered: region.launches[0] for region in regions}
    if len(gathered) > 1:
        raise NotSeparableError(list(gathered.values())[1], "it handles other numbers of tokens than those before it")
    inside = {node for region in regions for node in region.inside}
    around = {node for region in regions for node in region.around} - inside
    own = {*inputs, *inside, *around}
    for node in facts.nodes:
        if node in facts.data and node not in own and _may_copy(node, facts, own):
            around.add(node)
            own.add(node)
        elif node in facts.data and node not in own and (ops.is_matmul(node) or ops.is_attention(node)):
            raise _not_apart(node, facts, own)
    launches += [node for node in sums if node in around]
    if not launches:
        raise _not_apart(first, facts, own)
    pairs += sum(map(comms.is_all_reduce, launches))
    window = Window(facts, 0, len(facts.nodes))
    return CopiedRegion(launches, inside, around, window, pairs, "batch", next(iter(gathered), 0))


def _exchanges(graph: fx.Graph) -> list[fx.Node]:
    """Of tokens, by all-to-all."""
    exchanges = [node for node in ops.calls(graph, comms.is_all_to_all) if ops.is_floating(node)]
    padded = next((launch for launch in exchanges if not sizes_of(launch)), None)
    if padded is not None:
        raise NotSeparableError(padded, "it has room for a fixed number of rows, and parts of a batch drop other ones")
    return exchanges


def _nothing_to_hide(graph: fx.Graph) -> NotSeparableError:
    hidden = next((node for node in graph.nodes if comms.is_redistribution(node)), None)
    if hidden is not None:
        return NotSeparableError(hidden, "what a DTensor sends is seen only after differentiation")
    output = next(node for node in graph.nodes if node.op == "output")
    return NotSeparableError(output, "it has no exchange of tokens and no all-reduce: there is nothing to hide")


def _inputs(launch: fx.Node) -> set[fx.Node]:
    """Of the inputs that decide where tokens go, those whose first dimension is the batch: as long as that of most."""
    values = {node: ops.tensor(node) for node in deciding(launch)}
    lengths = Counter(value.shape[0] for value in values.values() if value is not None and value.dim() > 1)
    batch = next((length for length, _ in lengths.most_common() if isinstance(length, int) and length > 1), None)
    return {node for node, value in values.items() if value is not None and value.dim() and value.shape[0] == batch}


def _not_apart(node: fx.Node, facts: TokenFacts, own: Collection[fx.Node]) -> NotSeparableError:
    """Of a node that is not copied: the first one that is not, of all that it depends on."""
    before = walk_back([node], lambda one: one not in facts.data or one in own)
    first = min(before, key=facts.place.__getitem__)
    return NotSeparableError(first, f"it is not known to keep sequences apart, and {node.name!r} needs it")


def _may_copy(node: fx.Node, facts: TokenFacts, own: Collection[fx.Node]) -> bool:
    data = [arg for arg in node.all_input_nodes if arg in facts.data]
    writes = bool(effects.mutated_args(node)) or node in facts.writers
    does_more = not effects.is_pure(node) and not comms.is_all_reduce(node) and not comms.is_wait(node)
    return not writes and not does_more and keeps_batch(node) and all(arg in own for arg in data)
