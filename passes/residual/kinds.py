"""What kind of sub-block computes a term: decided by dataflow alone.

In:    a graph, its `Stream` and the `Region` of each term.
Out:   for each term a `Finding`: kind, evidence (the node that decided), and whether a routed term holds its shared
       expert inside.
Never: reads module names, class names or parameter names.

Algorithm: four facts per node, in one forward walk that stops at residual values:
  weight    data comes from parameters only, or is a row of a parameter picked by an index;
  selected  depends on a selection by value (top-k, argmax, sort);
  scored    elementwise image of a product of two activations that no selection has touched;
  projected has passed a product with a weight.
Then per region, first match wins:
  attention  a fused attention operator, or a softmax of scores;
  mixer      a scan or convolution along tokens, or a product of two unselected activations;
  routed     selected, and expert weights are reached: stacked (3-D) weights, a weight picked by the selection, token
             rows picked by the selection, an unselected product scaled per token by a selected gate, or an all-to-all;
  dense      everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.regions import Region
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.table import Kind


@dataclass(frozen=True)
class Finding:
    """The kind of a term and what shows it."""

    kind: Kind
    evidence: str
    node: fx.Node | None = None
    shared_inside: fx.Node | None = None
    """The sum of routed and shared output that lies inside the term, behind a step that can't be parted."""
    inseparable: fx.Node | None = None
    """The step behind that sum that is neither linear nor a normalisation."""


@dataclass
class Facts:
    """The four facts, as sets of nodes."""

    weight: set[fx.Node]
    selected: set[fx.Node]
    scored: set[fx.Node]
    projected: set[fx.Node]


def gather_facts(stream: Stream, graph: fx.Graph) -> Facts:
    """Walk `graph` forward once and collect the facts."""
    facts = Facts(set(stream.flow.constant), set(), set(), set())
    cut = set(stream.tree) | set(stream.values)
    inner = cut - set(stream.leaves[1:])
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or node in inner:
            continue
        sources = [arg for arg in stream.inputs(node) if arg not in cut]
        name = ops.op_name(node)
        if ops.is_selection(node) or any(arg in facts.selected for arg in sources):
            facts.selected.add(node)
        data = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        picks = name in ops.INDEX_OPS or name in ops.SHAPE_OPS or name in ops.CAST_OPS
        if name == "embedding" and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            data = node.args[1]
        if picks and data is not None and data in facts.weight:
            facts.weight.add(node)
            continue
        if ops.is_matmul(node):
            if _activations(stream, facts, node, unselected=True) >= 2:
                facts.scored.add(node)
            elif any(arg in facts.weight for arg in stream.inputs(node)) and node in stream.depends:
                facts.projected.add(node)
        elif any(arg in facts.scored for arg in sources):
            facts.scored.add(node)
        if any(arg in facts.projected for arg in sources):
            facts.projected.add(node)
    return facts


def classify(stream: Stream, facts: Facts, region: Region) -> Finding:
    """The kind of the term that `region` computes.

    Raises:
        UnsupportedPatternError: tokens are mixed by something other than attention around routed experts.
    """
    if not region.owned:
        return Finding(Kind.EMBEDDING, "reads no residual value")
    mixing = _mixing(stream, facts, region)
    if mixing is not None and mixing.kind is Kind.ATTENTION:
        return mixing
    routing = _routing(stream, facts, region)
    if mixing is not None and routing is not None:
        raise UnsupportedPatternError(
            f"one term of the residual stream holds routed experts ({routing.evidence}) and mixes tokens "
            f"({mixing.evidence}), so it is neither an attention nor a MoE sub-block",
            way_out="leave this layer out with `layers`, or add the two parts to the stream one by one",
            where=ops.where(mixing.node or region.leaf),
        )
    return mixing or routing or Finding(Kind.DENSE, "no token mixing, no selection", region.leaf)


def _activations(stream: Stream, facts: Facts, node: fx.Node, *, unselected: bool) -> int:
    """How many different inputs of `node` are activations."""
    return sum(
        (arg in stream.depends or arg in stream.values)
        and arg not in facts.weight
        and not (unselected and arg in facts.selected)
        and ops.is_floating(arg)
        for arg in node.all_input_nodes
    )


def _mixing(stream: Stream, facts: Facts, region: Region) -> Finding | None:
    other: Finding | None = None
    for node in sorted(region.owned, key=lambda n: stream.order[n]):
        name = ops.op_name(node)
        if ops.is_attention(node):
            return Finding(Kind.ATTENTION, name, node)
        if "softmax" in name and any(arg in facts.scored for arg in node.all_input_nodes):
            return Finding(Kind.ATTENTION, "softmax of a product of two activations", node)
        if other is not None:
            continue
        if ops.is_scan(node):
            other = Finding(Kind.MIXER, f"{name} along tokens", node)
        elif ops.is_matmul(node) and node in facts.scored and _activations(stream, facts, node, unselected=True) >= 2:
            other = Finding(Kind.MIXER, "product of two activations", node)
        elif name == "cumsum" and node not in facts.selected and ops.is_floating(node):
            other = Finding(Kind.MIXER, "cumsum along tokens", node)
    return other


def _routing(stream: Stream, facts: Facts, region: Region) -> Finding | None:
    for node in region.owned:
        if ops.is_all_to_all(node):
            return _with_shared(stream, facts, region, "all-to-all of tokens", node)
    if region.leaf not in facts.selected:
        return None
    for node in sorted(region.owned, key=lambda n: stream.order[n]):
        evidence = _expert_step(stream, facts, node)
        if evidence is not None:
            return _with_shared(stream, facts, region, evidence, node)
    return None


def _expert_step(stream: Stream, facts: Facts, node: fx.Node) -> str | None:
    """Why `node` reaches expert weights, or None."""
    name = ops.op_name(node)
    if ops.is_matmul(node):
        weights = [arg for arg in node.all_input_nodes if arg in facts.weight and ops.tensor(arg) is not None]
        if weights and "grouped" in name:
            return f"top-k selects groups of {name}"
        if any(ops.tensor(arg).dim() >= 3 for arg in weights):  # type: ignore[union-attr]
            return "top-k decides what meets a stacked expert weight"
        return None
    if name in ops.INDEX_OPS:
        indices = [arg for arg in node.all_input_nodes if arg in facts.selected]
        data = node.args[1] if name == "embedding" else node.args[0]
        if not indices or not isinstance(data, fx.Node) or not ops.is_floating(data) or data in indices:
            return None
        if data in facts.weight:
            return "top-k picks the expert weight"
        if data in facts.projected or data in stream.depends:
            return "top-k picks token rows" if name in ("index", "getitem", "index_select") else None
    if name == "mul" and len(node.args) == 2:
        for gate, value in (node.args, node.args[::-1]):
            if not isinstance(gate, fx.Node) or not isinstance(value, fx.Node):
                continue
            unselected_product = value in facts.projected and value not in facts.selected
            if gate in facts.selected and unselected_product and ops.is_per_token(gate):
                return "a selected gate scales an expert's output per token"
    return None


def _with_shared(stream: Stream, facts: Facts, region: Region, evidence: str, node: fx.Node) -> Finding:
    """A routed finding; notes a sum of routed and shared output inside the term, and what stands behind it."""
    path: list[fx.Node] = []
    current, owned = region.leaf, set(region.owned)
    while True:
        if ops.is_sum(current):
            left, right = current.args[0], current.args[1]
            shared = [a for a in (left, right) if a in facts.projected and a not in facts.selected]
            if len(shared) == 1:
                blocking = next((step for step in path if not _normalises(step)), None)
                return Finding(Kind.ROUTED, evidence, node, shared_inside=current, inseparable=blocking)
        behind = [a for a in current.all_input_nodes if a in facts.selected and a in owned and a in facts.projected]
        if ops.is_matmul(current) or not behind:
            return Finding(Kind.ROUTED, evidence, node)
        path.append(current)
        current = min(behind, key=lambda n: stream.order[n])


def _normalises(node: fx.Node) -> bool:
    return ops.is_norm(node) or ops.is_linear_collective(node) or ops.is_wait(node)
