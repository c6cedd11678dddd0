"""Raw FX graphs of residual networks whose connectivity table is known by construction.

`networks()` draws a `Network`: a description of sub-blocks and of the sums between them. From it come, independently:
- `capture`: an FX graph as Dynamo would hand it over (torch IR, fake values, in-place adds without users), which runs;
- `evaluate`: the function of the network when each sub-block leaves some terms out of what it reads, computed from the
  description alone: no graph, no pass of the package.
Both run the same few tensor operations inside the sub-blocks, so equal wiring means equal bits.

Below it, for tests of one behaviour each: small modules to put together, `dynamo` to capture them, `table_of`.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses import FakeTensorMode

from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.table import ResidualTable

WIDTH, VOCABULARY, EXPERTS, TOP_K = 8, 11, 3, 2
IN_PLACE = {"iadd": operator.iadd, "add_": "add_", "imul": operator.imul}
ADDS: dict[str, Any] = {
    "+": operator.add,
    "torch.add": torch.add,
    ".add": "add",
    "aten": torch.ops.aten.add.Tensor,
    "iadd": operator.iadd,
    "add_": "add_",
    "-": operator.sub,
}


@dataclass(frozen=True)
class Value:
    """A node of the description: a term, or a linear image or sum of earlier values."""

    op: str
    """embedding, position, term, add, number, vector, round, same or view (to the other of the two shapes)"""
    args: tuple[int, ...]
    terms: frozenset[int]
    style: str = ""
    flat: bool = False
    """[tokens, width] instead of [batch, sequence, width]"""


@dataclass(frozen=True)
class Block:
    """A sub-block: what it reads, and the terms it makes (in `kinds`, routed ones first)."""

    index: int
    reads: int
    first_term: int
    kinds: tuple[str, ...]
    form: str
    """sdpa, heads or softmax; plain or gated; stacked, picked, rows or unrolled"""
    norm: str
    share_norm: bool = False
    flat: bool = False
    bias: bool = False
    rope: bool = False

    @property
    def kind(self) -> str:
        return self.kinds[0]

    @property
    def terms(self) -> range:
        return range(self.first_term, self.first_term + len(self.kinds))


@dataclass
class Network:
    """A residual network; `steps` holds indices of values and blocks in the order of execution."""

    batch: int
    sequence: int
    values: list[Value] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    steps: list[int | Block] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    term_kinds: list[str] = field(default_factory=list)
    also_returned: int | None = None
    from_ids: bool = True
    attributes: bool = False
    dead_code: bool = False

    def add(self, value: Value) -> int:
        self.values.append(value)
        self.steps.append(len(self.values) - 1)
        return len(self.values) - 1

    def rows(self) -> list[tuple[frozenset[int], frozenset[int], str]]:
        """(terms, reads, kind) of each sub-block: consecutive blocks of one class that read the same are one."""
        rows: list[list[Any]] = []
        latest: dict[bool, list[Any]] = {}
        for block in self.blocks:
            mixes, reads = block.kind == "attention", self.values[block.reads].terms
            row = latest.get(mixes)
            if row is None or row[1] != reads:
                latest[mixes] = row = [set(), reads, block.kind]
                rows.append(row)
            row[0] |= set(block.terms)
            row[2] = "routed" if block.kind == "routed" else row[2]
        return [(frozenset(terms), reads, kind) for terms, reads, kind in rows]

    def kind_of(self, term: int) -> str:
        """What the table must call `term`: a dense one beside a routed one is shared."""
        for terms, _, kind in self.rows():
            if term in terms:
                return "shared" if kind == "routed" and self.term_kinds[term] == "dense" else self.term_kinds[term]
        return "embedding"

    def inputs(self) -> tuple[torch.Tensor, ...]:
        ids = torch.arange(self.batch * self.sequence).mul(7).remainder(VOCABULARY).view(self.batch, self.sequence)
        return (ids,) if self.from_ids else (state("inputs", (self.batch, self.sequence, WIDTH)),)


def state(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The parameter of that name, always the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5


class Eager:
    """Runs what the description says, at once."""

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Any:
        return state(name, shape)

    def mark(self, term: int, value: Any) -> None:
        """Note the last product with a weight on the way to `term`."""


class Recorder(Eager):
    """Writes it down as a graph, with fake values, as Dynamo does."""

    def __init__(self, attributes: bool) -> None:
        self.graph = fx.Graph()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.attributes = attributes
        self.states: dict[str, fx.Node] = {}
        self.last_placeholder: fx.Node | None = None
        self.marks: dict[str, int] = {}
        self.root = nn.Module()

    def placeholder(self, name: str, value: torch.Tensor) -> fx.Node:
        with (
            self.graph.inserting_after(self.last_placeholder)
            if self.last_placeholder
            else self.graph.inserting_before()
        ):
            node = self.graph.placeholder(name)
        self.last_placeholder = node
        node.meta["example_value"] = self.mode.from_tensor(value)
        return node

    def parameter(self, name: str, shape: tuple[int, ...]) -> fx.Node:
        if name not in self.states:
            value = nn.Parameter(state(name, shape), requires_grad=False)
            if self.attributes:
                self.root.register_parameter(name, value)
                node = self.graph.get_attr(name)
                node.meta["example_value"] = self.mode.from_tensor(value)
            else:
                node = self.placeholder(name, value)
            self.states[name] = node
        return self.states[name]

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        with self.mode:
            fakes = fx.map_arg((args, kwargs), lambda node: node.meta["example_value"])
            value = super().call(target, *fakes[0], **fakes[1])
        kind = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = kind(target, args, kwargs)  # type: ignore[arg-type]
        node.meta["example_value"] = value
        return node

    def mark(self, term: int, value: fx.Node) -> None:
        self.marks[value.name] = term


@dataclass
class Captured:
    """A graph and the names in it by which the test recognises terms."""

    module: fx.GraphModule
    marks: dict[str, int]
    """Name of a node that only this term's sub-block computes -> the description's term."""
    states: list[str]

    def run(self, network: Network) -> tuple[torch.Tensor, ...]:
        values = {node.name: node for node in self.module.graph.nodes if node.op == "placeholder"}
        arguments = list(network.inputs())
        for name in list(values)[1:]:
            shape = values[name].meta["example_value"].shape
            arguments.append(state(str(values[name].target), tuple(shape)))
        self.module.recompile()
        return self.module(*arguments)


def capture(network: Network) -> Captured:
    """The graph of `network` with the wiring of its description."""
    api = Recorder(network.attributes)
    x = api.placeholder("ids" if network.from_ids else "inputs", network.inputs()[0])
    outputs = _walk(network, api, x, {})
    api.graph.output(outputs)
    module = fx.GraphModule(api.root, api.graph)
    return Captured(module, api.marks, list(api.states))


def evaluate(network: Network, left_out: Mapping[int, frozenset[int]] | None = None) -> tuple[torch.Tensor, ...]:
    """The outputs of `network` if each block reads its value without the given terms."""
    return _walk(network, Eager(), network.inputs()[0], left_out or {})


def _walk(network: Network, api: Eager, x: Any, left_out: Mapping[int, frozenset[int]]) -> tuple[Any, ...]:
    made: dict[int, Any] = {}
    terms: dict[int, Any] = {}
    norms: dict[tuple[int, str], Any] = {}
    recording = isinstance(api, Recorder)

    def value(index: int, gone: frozenset[int]) -> Any:
        described = network.values[index]
        if index in made and not described.terms & gone:
            return made[index]
        if described.op in ("embedding", "position", "term"):
            (term,) = described.terms
            return None if term in gone else terms[term]
        parts = [value(arg, gone) for arg in described.args]
        return _combine(network, api, index, parts)

    for step in network.steps:
        if isinstance(step, Block):
            read = value(step.reads, left_out.get(step.index, frozenset()))
            shared = (step.reads, step.norm) if step.share_norm and recording else None
            normed = norms.get(shared) if shared else None
            if normed is None:
                normed = _norm(api, step.norm, read, f"norm_{step.reads if step.share_norm else step.index}")
                if shared:
                    norms[shared] = normed
            for term, out in zip(step.terms, _block(network, api, step, normed), strict=True):
                terms[term] = out
            if network.dead_code and recording:
                api.call(operator.add, api.call("mean", read), 1.0)
                api.call(torch.tanh, normed)
            continue
        described = network.values[step]
        if described.op == "embedding":
            term = 0
            terms[term] = (
                api.call(F.embedding, x, api.parameter("table", (VOCABULARY, WIDTH))) if network.from_ids else x
            )
            api.mark(term, terms[term])
        elif described.op == "position":
            (term,) = described.terms
            terms[term] = api.parameter(f"position_{term}", (network.batch, network.sequence, WIDTH))
            api.mark(term, terms[term])
        # an in-place step is recorded where the description has it, and never again
        made[step] = value(step, frozenset())
    final = _norm(api, "rms_norm", made[network.chain[-1]], "norm_final")
    logits = api.call(F.linear, final, api.parameter("head", (VOCABULARY, WIDTH)))
    extra = () if network.also_returned is None else (made[network.also_returned],)
    return (logits, *extra)


def _combine(network: Network, api: Eager, index: int, parts: list[Any]) -> Any:
    """One linear step of the description; None stands for zero."""
    described = network.values[index]
    recording = isinstance(api, Recorder)
    if described.op == "add":
        left, right = parts
        if left is None or right is None:
            rest = right if left is None else left
            return -rest if described.style == "-" and left is None and rest is not None else rest
        style = described.style if recording or described.style == "-" else "+"
        node = api.call(ADDS[style], left, right)
        # Dynamo's `add_` has no users: later nodes go on reading its first argument
        return left if style == "add_" else node
    (part,) = parts
    if part is None:
        return None
    if described.op == "number":
        if described.style == "imul" and recording:
            return api.call(operator.imul, part, 0.75)
        factor = {"left": (0.75, part), "div": (part, 1.25)}.get(described.style, (part, 0.75))
        return api.call(torch.div if described.style == "div" else operator.mul, *factor)
    if described.op == "vector":
        vector = api.parameter(f"vector_{index}", (WIDTH,))
        return api.call(operator.mul, *((vector, part) if described.style == "left" else (part, vector)))
    if described.op == "round":
        return api.call("double", api.call("to", part, torch.float32))
    if described.op == "same":
        return api.call("to", part, torch.float64)
    assert described.op == "view"
    shape = (-1, WIDTH) if described.flat else (network.batch, network.sequence, WIDTH)
    return api.call("reshape" if described.style == "reshape" else "view", part, *shape)


def _norm(api: Eager, style: str, x: Any, name: str) -> Any:
    weight = api.parameter(name, (WIDTH,))
    if style == "rms_norm":
        return api.call(F.rms_norm, x, (WIDTH,), weight)
    if style == "layer_norm":
        return api.call(F.layer_norm, x, (WIDTH,), weight)
    h = api.call("to", x, torch.float64)
    scale = api.call(
        torch.rsqrt, api.call(operator.add, api.call("mean", api.call("pow", h, 2), -1, keepdim=True), 1e-6)
    )
    return api.call(operator.mul, weight, api.call(operator.mul, h, scale))


def _linear(api: Eager, name: str, x: Any, out: int = WIDTH, bias: bool = False) -> Any:
    y = api.call(F.linear, x, api.parameter(f"{name}_weight", (out, WIDTH)))
    return api.call(operator.add, y, api.parameter(f"{name}_bias", (out,))) if bias else y


def _rotate(network: Network, api: Eager, x: Any) -> Any:
    """Rotary embedding as wide as the stream: a sum of two full-width tensors that is no residual sum."""
    cos, sin = (api.parameter(name, (network.sequence, WIDTH)) for name in ("cos", "sin"))
    half = WIDTH // 2
    first, second = (api.call(operator.getitem, x, (..., part)) for part in (slice(None, half), slice(half, None)))
    turned = api.call(torch.cat, [api.call(operator.neg, second), first], -1)
    return api.call(operator.add, api.call(operator.mul, x, cos), api.call(operator.mul, turned, sin))


def _block(network: Network, api: Eager, block: Block, h: Any) -> list[Any]:
    name = f"block_{block.index}"
    if block.kind == "attention":
        out = _attention(network, api, block, name, h)
        api.mark(block.first_term, out)
        return [_linear_bias(api, block, name, out)]
    if block.flat or block.kind == "routed":
        h = api.call("view", h, -1, WIDTH)
    outs = []
    if block.kind == "routed":
        outs = _experts(api, block, name, h)
    for number, term in enumerate(block.terms[len(outs) :]):
        hidden = api.call(F.silu, _linear(api, f"{name}_up_{number}", h))
        if block.form == "gated":
            hidden = api.call(operator.mul, hidden, _linear(api, f"{name}_gate_{number}", h))
        down = _linear(api, f"{name}_down_{number}", hidden)
        api.mark(term, down)
        down = _linear_bias(api, block, f"{name}_{number}", down)
        if block.kind == "routed" and number == 1:
            gate = api.call(torch.sigmoid, _linear(api, f"{name}_shared_gate", h, out=1))
            down = api.call(operator.mul, gate, down)
        outs.append(down)
    if block.flat or block.kind == "dense":
        return outs
    return [api.call("view", out, network.batch, network.sequence, WIDTH) for out in outs]


def _linear_bias(api: Eager, block: Block, name: str, x: Any) -> Any:
    return api.call(operator.add, x, api.parameter(f"{name}_out_bias", (WIDTH,))) if block.bias else x


def _attention(network: Network, api: Eager, block: Block, name: str, h: Any) -> Any:
    q, k, v = (_linear(api, f"{name}_{part}", h, bias=block.bias) for part in "qkv")
    if block.rope:
        q, k = _rotate(network, api, q), _rotate(network, api, k)
    if block.form == "softmax":
        scores = api.call(operator.mul, api.call(torch.matmul, q, api.call("transpose", k, -1, -2)), 0.5)
        mixed = api.call(torch.matmul, api.call(F.softmax, scores, dim=-1), v)
    elif block.form == "heads":
        heads = []
        for part in (q, k, v):
            split = api.call("view", part, network.batch, network.sequence, 2, WIDTH // 2)
            heads.append(api.call("transpose", split, 1, 2))
        mixed = api.call(F.scaled_dot_product_attention, *heads, is_causal=True)
        mixed = api.call("reshape", api.call("transpose", mixed, 1, 2), network.batch, network.sequence, WIDTH)
    else:
        mixed = api.call(F.scaled_dot_product_attention, q, k, v)
    return _linear(api, f"{name}_o", mixed)


def _experts(api: Eager, block: Block, name: str, h: Any) -> list[Any]:
    """Outputs of the routed experts for [tokens, width]: one, or one an expert if they are unrolled."""
    probabilities = api.call(F.softmax, _linear(api, f"{name}_router", h, out=EXPERTS), dim=-1)
    picked = api.call(torch.topk, probabilities, TOP_K, dim=-1)
    weights, ids = api.call(operator.getitem, picked, 0), api.call(operator.getitem, picked, 1)
    term = block.first_term
    if block.form == "unrolled":
        gates = api.call("scatter", api.call(torch.zeros_like, probabilities), 1, ids, weights)
        outs = []
        for expert in range(EXPERTS):
            gate = api.call(operator.getitem, gates, (slice(None), slice(expert, expert + 1)))
            out = _linear(api, f"{name}_expert_{expert}", api.call(F.gelu, h))
            api.mark(term + expert, out)
            outs.append(api.call(operator.mul, *((out, gate) if expert else (gate, out))))
        return outs
    stacked = api.parameter(f"{name}_experts", (EXPERTS, WIDTH, WIDTH))
    if block.form == "stacked":
        gates = api.call("scatter", api.call(torch.zeros_like, probabilities), 1, ids, weights)
        out = api.call(torch.matmul, h, stacked)
        api.mark(term, out)
        scaled = api.call(operator.mul, out, api.call("unsqueeze", api.call("t", gates), -1))
        return [api.call("sum", scaled, 0)]
    if block.form == "picked":
        out = api.call(torch.einsum, "nd,nkde->nke", h, api.call(operator.getitem, stacked, ids))
        api.mark(term, out)
        return [api.call("sum", api.call(operator.mul, out, api.call("unsqueeze", weights, -1)), 1)]
    order = api.call(torch.argsort, api.call("view", ids, -1), stable=True)
    rows = api.call("index_select", h, 0, api.call(operator.floordiv, order, TOP_K))
    experts = api.call(operator.getitem, stacked, api.call(operator.getitem, api.call("view", ids, -1), order))
    out = api.call(torch.bmm, api.call("unsqueeze", rows, 1), experts)
    api.mark(term, out)
    gate = api.call(operator.getitem, api.call("view", weights, -1), order)
    scaled = api.call(operator.mul, api.call("squeeze", out, 1), api.call("unsqueeze", gate, -1))
    back = api.call(operator.getitem, scaled, api.call(torch.argsort, order))
    return [api.call("sum", api.call("view", back, -1, TOP_K, WIDTH), 1)]


@st.composite
def networks(draw: st.DrawFn, max_blocks: int = 6, standard: bool = False) -> Network:
    """Residual networks; with `standard`, attention and feed-forward alternate and each reads the whole stream."""
    network = Network(
        batch=draw(st.integers(1, 2)),
        sequence=draw(st.integers(2, 3)),
        from_ids=draw(st.booleans()),
        attributes=draw(st.booleans()),
        dead_code=draw(st.booleans()),
    )
    network.term_kinds.append("embedding")
    x = network.add(Value("embedding", (), frozenset({0})))
    if draw(st.booleans()):
        x = _draw_sum(draw, network, x, _position(network))
    network.chain.append(x)
    count = draw(st.integers(1, max(1, max_blocks // 2))) * 2 if standard else draw(st.integers(2, max_blocks))
    for index in range(count):
        kinds = ["attention"] if standard and index % 2 == 0 else ["dense", "routed"]
        kind = draw(st.sampled_from(kinds if standard else ["attention", "dense", "routed"]))
        _draw_block(draw, network, index, kind, standard)
        if not standard and draw(st.integers(0, 9)) == 0:
            network.chain.append(_draw_sum(draw, network, network.chain[-1], _position(network)))
    if draw(st.booleans()):
        network.also_returned = draw(st.sampled_from(network.chain))
    return _without_unsafe_writes(network)


def _position(network: Network) -> int:
    """A term that reads nothing: position embeddings, or visual features added half-way up."""
    network.term_kinds.append("embedding")
    return network.add(Value("position", (), frozenset({len(network.term_kinds) - 1})))


def _draw_block(draw: st.DrawFn, network: Network, index: int, kind: str, standard: bool) -> None:
    forms = {
        "attention": ["sdpa", "heads", "softmax"],
        "dense": ["plain", "gated"],
        "routed": ["stacked", "picked", "rows", "unrolled"],
    }
    form = draw(st.sampled_from(forms[kind]))
    routed = EXPERTS if form == "unrolled" else 1
    kinds = (kind,) * routed + ("dense",) * (draw(st.integers(0, 2)) if kind == "routed" else 0)
    flat = kind != "attention" and draw(st.booleans())
    reads = network.chain[-1] if standard else _draw_read(draw, network)
    block = Block(
        index=index,
        reads=reads,
        first_term=len(network.term_kinds),
        kinds=kinds,
        form=form,
        norm=draw(st.sampled_from(["open", "rms_norm", "layer_norm"])),
        share_norm=draw(st.booleans()),
        flat=flat,
        bias=draw(st.booleans()),
        rope=kind == "attention" and draw(st.booleans()),
    )
    network.term_kinds.extend(kinds)
    network.blocks.append(block)
    network.steps.append(block)
    outs = [network.add(Value("term", (), frozenset({term}), flat=flat)) for term in block.terms]
    x = network.chain[-1]
    outs = [outs[i] for i in draw(st.permutations(range(len(outs))))]
    if draw(st.booleans()):  # summed first, as a module that returns one tensor does
        branch = _draw_images(draw, network, outs[0])
        for out in outs[1:]:
            branch = _draw_sum(draw, network, branch, _draw_images(draw, network, out))
        outs = [branch]
    for out in outs:
        out = _draw_images(draw, network, out)
        if network.values[out].flat:
            out = _apply(network, out, "view", draw(st.sampled_from(["view", "reshape"])))
        x = _draw_images(draw, network, _draw_sum(draw, network, x, out))
        network.chain.append(x)


def _draw_read(draw: st.DrawFn, network: Network) -> int:
    """The stream as it is, an older one (parallel, ladder), or an older one plus some of what it lacks (FarSkip)."""
    how = draw(st.sampled_from(["standard", "standard", "older", "partial"]))
    if how == "standard":
        return network.chain[-1]
    x = draw(st.sampled_from(network.chain[-4:]))
    if how == "older":
        return x
    # only whole terms can be added: a term is free until some image of it alone exists in the right shape
    missing = [
        index
        for index, value in enumerate(network.values)
        if value.op in ("term", "position")
        and not value.terms & network.values[x].terms
        and value.terms <= network.values[network.chain[-1]].terms
    ]
    for index in draw(st.lists(st.sampled_from(missing), unique=True, max_size=2)) if missing else []:
        term = _apply(network, index, "view", "view") if network.values[index].flat else index
        x = _draw_sum(draw, network, x, term)
    return x


def _apply(network: Network, index: int, op: str, style: str = "") -> int:
    value = network.values[index]
    return network.add(Value(op, (index,), value.terms, style, value.flat ^ (op == "view")))


def _draw_images(draw: st.DrawFn, network: Network, index: int) -> int:
    """Sometimes a multiplier, a rounding or a no-op cast on top."""
    op = draw(st.sampled_from([None] * 6 + ["number", "vector", "round", "same"]))
    if op is None:
        return index
    styles = {"number": ["", "left", "div", "imul"], "vector": ["", "left"]}
    return _apply(network, index, op, draw(st.sampled_from(styles.get(op, [""]))))


def _draw_sum(draw: st.DrawFn, network: Network, left: int, right: int) -> int:
    if draw(st.booleans()):
        left, right = right, left
    style = draw(st.sampled_from(list(ADDS)))
    terms = network.values[left].terms | network.values[right].terms
    return network.add(Value("add", (left, right), terms, style, network.values[left].flat))


def _without_unsafe_writes(network: Network) -> Network:
    """Turn an in-place step out of place if what it overwrites is used later: it would change the description."""
    memory: dict[int, int] = {}
    last_use: dict[int, int] = {}
    for position, step in enumerate(network.steps):
        for arg in (step.reads,) if isinstance(step, Block) else network.values[step].args:
            last_use[arg] = position
    for kept in (network.chain[-1], network.also_returned):
        if kept is not None:
            last_use[kept] = len(network.steps)
    for position, step in enumerate(network.steps):
        if isinstance(step, Block):
            continue
        value = network.values[step]
        memory[step] = memory[value.args[0]] if value.op in ("same", "view") else step
        if value.style not in IN_PLACE:
            continue
        target = memory[value.args[0]]
        owner = network.values[target]
        is_input = owner.op == "position" or (owner.op == "embedding" and not network.from_ids)
        used = any(last_use.get(other, -1) > position for other in memory if memory[other] == target and other != step)
        if is_input or used:
            network.values[step] = replace(value, style="+" if value.op == "add" else "")
        else:
            memory[step] = target
    return network


def dynamo(
    function: Callable[..., Any],
    *inputs: Any,
    edit: Callable[[fx.GraphModule], Any] | None = None,
    dynamic: bool | None = None,
) -> tuple[fx.GraphModule, Any]:
    """The graph that Dynamo makes of `function`, edited, and what it returns then."""
    seen: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        if edit is not None:
            edit(module)
            module.recompile()
        seen.append(module)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    return seen[0], output


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(h)))


class Experts(nn.Module):
    """The routed experts alone; `scores` gives the router's logits."""

    def __init__(self, experts: int = EXPERTS) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.stacked = nn.Parameter(torch.randn(experts, WIDTH, WIDTH) * 0.4)

    def scores(self, h: torch.Tensor) -> torch.Tensor:
        return self.router(h)

    def forward(self, h: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        shape = h.shape
        logits = self.scores(h) if logits is None else logits
        weights, ids = logits.flatten(0, 1).softmax(-1).topk(TOP_K, dim=-1)
        picked = torch.einsum("nd,nkde->nke", h.reshape(-1, shape[-1]), self.stacked[ids])
        return (picked * weights.unsqueeze(-1)).sum(1).view(shape)


class MoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.routed, self.shared = Experts(), Dense()

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.routed(h) + self.shared(h)


class Layer(nn.Module):
    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), feed_forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Stack(nn.Module):
    """Embedding, layers, norm, head; `Stack(make)` builds two layers with `make`, in float64."""

    def __init__(self, make: Callable[[], nn.Module], layers: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.layers = nn.ModuleList(make() for _ in range(layers))
            self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.double().eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def ids(batch: int = 2, sequence: int = 5) -> torch.Tensor:
    return torch.arange(batch * sequence).mul(3).remainder(VOCABULARY).view(batch, sequence)


def table_of(function: Callable[..., Any], *inputs: Any) -> ResidualTable:
    """The table of the graph that Dynamo makes of `function`."""
    found: list[ResidualTable | None] = []

    def edit(module: fx.GraphModule) -> None:
        normalize(module)
        found.append(read_table(module.graph))

    dynamo(function, *(inputs or (ids(),)), edit=edit)
    assert found[0] is not None
    return found[0]


def reads(table: ResidualTable) -> dict[str, str]:
    """Row name -> names of the terms that it reads, in one string."""
    return {row.name: " ".join(table.names(row.reads)) for row in table.rows}
