# SPDX-License-Identifier: Apache-2.0
"""Checkpoint bodies are opened, tagged, and recompute as before; selective ones are closed again."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from farskip_compile._compat import CHECKPOINT, POLICY
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.checkpoints import open_checkpoints
from farskip_compile.passes.normalize.closing import SELECTIVE as SELECTIVE_KEY
from farskip_compile.passes.normalize.closing import close_checkpoints
from farskip_compile.passes.residual import read_table
from tests.graphs import Layer, MoE, Stack, dynamo, ids, reads, table_of


class Checkpointed(Layer):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class NestedInside(Layer):
    """A checkpoint in a checkpoint, with a keyword argument and a value that both need."""

    def inner(self, x, *, scale):
        return x + self.feed_forward(self.norm2(x)) * scale

    def outer(self, x, scale):
        x = x + self.attention(self.norm1(x))
        return checkpoint(self.inner, x, use_reentrant=False, scale=scale), scale

    def forward(self, x):
        x, scale = checkpoint(self.outer, x, x.new_ones(()), use_reentrant=False)
        return x * scale


@pytest.mark.parametrize(("layer", "opened"), [(Checkpointed, 2), (NestedInside, 4)])
def test_bodies_are_opened(layer, opened):
    model = Stack(lambda: layer(MoE()))
    found = []
    module, output = dynamo(model, ids(), edit=lambda module: found.append(open_checkpoints(module)))
    assert found == [opened]
    assert not any(ops.op_name(node).startswith("higher_order::") for node in module.graph.nodes)
    assert torch.equal(output, model(ids()))
    module.graph.lint()


def test_table_is_that_of_the_open_model():
    assert reads(table_of(Stack(lambda: Checkpointed(MoE())))) == reads(table_of(Stack(lambda: Layer(MoE()))))


def test_tags_tell_regions_apart():
    module, _ = dynamo(Stack(lambda: Checkpointed(MoE())), ids(), edit=open_checkpoints)
    tagged = [node for node in module.graph.nodes if "recompute" in node.meta]
    assert {node.meta["recompute"] for node in tagged} == {CheckpointPolicy.PREFER_RECOMPUTE}
    assert {node.meta["ac_graph_id"] for node in tagged} == {1, 2}
    attention = [node for node in tagged if ops.is_attention(node)]
    assert [node.meta["ac_graph_id"] for node in attention] == [1, 2]
    # the embedding and the head stand outside
    assert not any("recompute" in node.meta for node in module.graph.nodes if ops.op_name(node) == "embedding")


def test_writes_inside_a_body_are_seen():
    class Writes(Layer):
        def forward(self, x):
            def body(x):
                x = x + self.attention(self.norm1(x))
                out = self.feed_forward.shared(self.norm2(x))
                out.add_(self.feed_forward.routed(self.norm2(x)))
                return x + out

            return checkpoint(body, x, use_reentrant=False)

    model = Stack(lambda: Writes(MoE()))
    _, output = dynamo(model, ids(), edit=normalize)
    assert torch.equal(output, model(ids()))
    assert reads(table_of(model))["moe.1"] == "e a0 s0 r0 a1"


def recompute_all(ctx, op, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, recompute_all)


class Selective(Layer):
    def body(self, x):
        return super().forward(x)

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False, context_fn=SELECTIVE)


def closed(module):
    assert open_checkpoints(module) == 2
    assert not module.graph.find_nodes(op="call_function", target=CHECKPOINT)
    assert close_checkpoints(module) == 2


def test_a_selective_policy_is_closed_again():
    module, output = dynamo(Stack(lambda: Selective(MoE())), ids(), edit=closed)
    calls = module.graph.find_nodes(op="call_function", target=CHECKPOINT)
    assert len(calls) == 2
    for call in calls:
        body = getattr(module, call.args[0].target)
        assert body.meta[POLICY].args == SELECTIVE.args
        assert "scaled_dot_product_attention" in body.code
    assert torch.equal(output, Stack(lambda: Layer(MoE()))(ids()))


def test_what_stands_among_its_nodes_is_put_beside_them():
    def edit(module):
        open_checkpoints(module)
        first = next(node for node in module.graph.nodes if SELECTIVE_KEY in node.meta and node.op.startswith("call"))
        second = first.next.next
        with module.graph.inserting_after(second):  # what needs it, and what it needs not
            late = module.graph.call_method("clone", (first,))
        late.meta = {"example_value": first.meta["example_value"]}
        close_checkpoints(module)
        assert list(module.graph.nodes).index(late) > 0

    _, output = dynamo(Stack(lambda: Selective(MoE())), ids(), edit=edit)
    assert torch.equal(output, Stack(lambda: Layer(MoE()))(ids()))


def test_what_has_an_effect_among_its_nodes_is_refused():
    def edit(module):
        open_checkpoints(module)
        first = next(node for node in module.graph.nodes if SELECTIVE_KEY in node.meta and node.op.startswith("call"))
        with module.graph.inserting_after(first.next):
            drawn = module.graph.call_function(torch.rand_like, (first,))
        drawn.meta = {"example_value": first.meta["example_value"]}
        close_checkpoints(module)

    with pytest.raises(UnsupportedPatternError, match="does more than compute a value"):
        dynamo(Stack(lambda: Selective(MoE())), ids(), edit=edit)


def test_nothing_to_open():
    module, _ = dynamo(Stack(lambda: Layer(MoE())), ids())
    module.recompile()
    code = module.code
    assert open_checkpoints(module) == 0
    module.recompile()
    assert module.code == code
    assert read_table(module.graph) is not None
