# SPDX-License-Identifier: Apache-2.0
"""Strategy: residual networks of any wiring, with sums and casts in every form that models write them in."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from farskip_compile.testing.strategies.network import (
    ADDS,
    EXPERTS,
    IN_PLACE,
    GeneratedNetwork,
    NetworkBlock,
    NetworkValue,
)


@st.composite
def networks(draw: st.DrawFn, max_blocks: int = 6, standard: bool = False) -> GeneratedNetwork:
    """Residual networks whose sub-blocks read the whole stream, an older one, or that and some of what it lacks.

    Args:
        max_blocks: most sub-blocks.
        standard: attention and feed-forward alternate, and each reads the whole stream.
    """
    network = GeneratedNetwork(
        batch=draw(st.integers(1, 2)),
        sequence=draw(st.integers(2, 3)),
        from_ids=draw(st.booleans()),
        attributes=draw(st.booleans()),
        dead_code=draw(st.booleans()),
    )
    network.term_kinds.append("embedding")
    x = network.add(NetworkValue("embedding", (), frozenset({0})))
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


def _position(network: GeneratedNetwork) -> int:
    """A term that reads nothing: position embeddings, or visual features added half-way up."""
    network.term_kinds.append("embedding")
    return network.add(NetworkValue("position", (), frozenset({len(network.term_kinds) - 1})))


def _draw_block(draw: st.DrawFn, network: GeneratedNetwork, index: int, kind: str, standard: bool) -> None:
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
    block = NetworkBlock(
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
    outs = [network.add(NetworkValue("term", (), frozenset({term}), flat=flat)) for term in block.terms]
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


def _draw_read(draw: st.DrawFn, network: GeneratedNetwork) -> int:
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


def _apply(network: GeneratedNetwork, index: int, op: str, style: str = "") -> int:
    value = network.values[index]
    return network.add(NetworkValue(op, (index,), value.terms, style, value.flat ^ (op == "view")))


def _draw_images(draw: st.DrawFn, network: GeneratedNetwork, index: int) -> int:
    """Sometimes a multiplier, a rounding or a no-op cast on top."""
    op = draw(st.sampled_from([None] * 6 + ["number", "vector", "round", "same"]))
    if op is None:
        return index
    styles = {"number": ["", "left", "div", "imul"], "vector": ["", "left"]}
    return _apply(network, index, op, draw(st.sampled_from(styles.get(op, [""]))))


def _draw_sum(draw: st.DrawFn, network: GeneratedNetwork, left: int, right: int) -> int:
    if draw(st.booleans()):
        left, right = right, left
    style = draw(st.sampled_from(list(ADDS)))
    terms = network.values[left].terms | network.values[right].terms
    return network.add(NetworkValue("add", (left, right), terms, style, network.values[left].flat))


def _without_unsafe_writes(network: GeneratedNetwork) -> GeneratedNetwork:
    """Turn an in-place step out of place if what it overwrites is used later: it would change the description."""
    memory: dict[int, int] = {}
    last_use: dict[int, int] = {}
    for position, step in enumerate(network.steps):
        for arg in (step.reads,) if isinstance(step, NetworkBlock) else network.values[step].args:
            last_use[arg] = position
    for kept in (network.chain[-1], network.also_returned):
        if kept is not None:
            last_use[kept] = len(network.steps)
    for position, step in enumerate(network.steps):
        if isinstance(step, NetworkBlock):
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
