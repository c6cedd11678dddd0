"""Checkpoint bodies are opened, tagged, and recompute as before; selective ones are refused."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.checkpoints import open_checkpoints
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


def test_selective_policy_is_refused():
    class Selective(Layer):
        def body(self, x):
            return super().forward(x)

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False, context_fn=SELECTIVE)

    with pytest.raises(UnsupportedPatternError, match="context_fn"):
        dynamo(Stack(lambda: Selective(MoE())), ids(), edit=open_checkpoints)


def test_nothing_to_open():
    module, _ = dynamo(Stack(lambda: Layer(MoE())), ids())
    module.recompile()
    code = module.code
    assert open_checkpoints(module) == 0
    module.recompile()
    assert module.code == code
    assert read_table(module.graph) is not None
