# SPDX-License-Identifier: Apache-2.0
"""Linear collectives are split where a request needs it, and nowhere else; other reductions never."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

from farskip_compile._compat import collectives
from farskip_compile.errors import InseparableExpertsError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.merge_reductions import merge_reductions
from farskip_compile.passes.rewire.request import ask
from farskip_compile.verify.rewiring import snapshot, verify
from tests.graphs import WIDTH, Experts, Layer, MoE, Stack, dynamo, ids, reads


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    """A group of one rank: every reduction returns what it is given, so values can be compared."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def world() -> dist.ProcessGroup:
    return dist.group.WORLD


def reduce(value: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    return funcol.all_reduce(value, operation, dist.group.WORLD)


class Tensorparallel(Layer):
    """Attention and MoE end in one reduction each."""

    operation = "sum"
    multiplier = 1.0

    def forward(self, x):
        x = x + reduce(self.attention(self.norm1(x)))
        out = reduce(self.feed_forward(self.norm2(x)), self.operation)
        return x + (out if self.multiplier == 1 else self.multiplier * out)


class ByHand(Stack):
    """Full FarSkip with routed and shared reduced apart."""

    def forward(self, ids):
        x = n = self.embedding(ids)
        for layer in self.layers:
            a = layer.attention(layer.norm1(n))
            h = layer.norm2(x)
            r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
            n = x + a + layer.multiplier * s
            x = x + a + layer.multiplier * (r + s)
        return self.head(self.norm(x))


def rewired(model, connectivity, *, merge=False):
    done = {}

    def edit(module):
        normalize(module)
        reading = read_table(module.graph)
        request = ask(reading.table, connectivity)
        wanted, before = request.wanted(reading.table), snapshot(reading)
        done["split"] = rewire(module, reading, request)
        done["merged"] = merge_reductions(module, connectivity) if merge else 0
        done["table"] = verify(module, wanted, before).table

    module, output = dynamo(model, ids(), edit=edit)
    return module, output, done


def launches(module) -> int:
    return sum(comms.is_collective(node) for node in module.graph.nodes)


@pytest.mark.parametrize("multiplier", [1.0, 0.22])
def test_only_what_a_later_attention_reads_is_split(multiplier):
    class Scaled(Tensorparallel):
        pass

    Scaled.multiplier = multiplier
    model = Stack(lambda: Scaled(MoE()), 3)
    module, output, done = rewired(model, "full")
    # layers 0 and 1 have an attention after them; the last layer's reduction stays whole
    assert done["split"] == 2
    assert launches(module) == 6 + 2
    assert reads(done["table"])["attention.2"].split()[-1] == "s1"
    assert torch.equal(output, ByHand(lambda: Scaled(MoE()), 3)(ids()))


@pytest.mark.parametrize(
    ("connectivity", "feed_forward", "split"),
    [
        ("mlp", MoE, 0),  # the attention is left out whole
        ("full", Experts, 0),  # nothing but the routed experts in the reduction
        ("attention", MoE, 1),
        ({"attention.1": ["s0", "r0"]}, MoE, 0),  # both are left out
        ({"moe.1": ["s0"]}, MoE, 1),
    ],
)
def test_split_only_where_needed(connectivity, feed_forward, split):
    module, _, done = rewired(Stack(lambda: Tensorparallel(feed_forward())), connectivity)
    assert done["split"] == split
    assert launches(module) == 4 + split


def scattered(out, dim):
    return collectives.all_gather(collectives.reduce_scatter(out, "sum", dim, world()), dim, world())


def scattered_in_place(out, dim):
    part, whole = torch.empty_like(out), torch.empty_like(out)
    dist.reduce_scatter_tensor(part, out)
    dist.all_gather_into_tensor(whole, part)
    return whole


def scattered_transposed(out, dim):
    return scattered(out.transpose(0, 1).contiguous(), 0).transpose(0, 1)


@pytest.mark.parametrize(
    ("collectives", "dim"),
    [(scattered, 0), (scattered, 1), (scattered, 2), (scattered_in_place, 0), (scattered_transposed, 1)],
)
def test_reduce_scatter_and_gather_are_linear(collectives, dim):
    """Along any dimension, also where torch can only do it along the first."""

    class Sequence(Layer):
        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + collectives(self.feed_forward(self.norm2(x)), dim)

    Sequence.multiplier = 1.0
    model = Stack(lambda: Sequence(MoE()), 3)
    module, output, done = rewired(model, "full")
    assert done["split"] == 2
    assert launches(module) == 6 + 4
    assert torch.equal(output, ByHand(lambda: Sequence(MoE()), 3)(ids()))


def test_a_bias_in_a_reduction_is_counted_once():
    """It is added to the sum of routed and shared experts, and goes with what is not left out."""

    class Biased(Tensorparallel):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.bias = nn.Parameter(torch.linspace(-1.0, 1.0, WIDTH))

        def forward(self, x):
            x = x + reduce(self.attention(self.norm1(x)))
            return x + reduce(self.feed_forward(self.norm2(x)) + self.bias)

    class ByHandBiased(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a, h = layer.attention(layer.norm1(n)), layer.norm2(x)
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = x + a + (s + layer.bias)
                x = x + a + (r + (s + layer.bias))
            return self.head(self.norm(x))

    _, output, done = rewired(Stack(lambda: Biased(MoE()), 3), "full")
    assert done["split"] == 2
    assert torch.allclose(output, ByHandBiased(lambda: Biased(MoE()), 3)(ids()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", ["max", "product"])
def test_other_reductions_are_never_split(operation):
    """Behind a maximum routed and shared are one term, which is left out whole or not at all."""

    class Nonlinear(Tensorparallel):
        pass

    Nonlinear.operation = operation
    table = []

    def edit(module):
        normalize(module)
        table.append(read_table(module.graph).table)
        collectives = [node for node in module.graph.nodes if comms.is_collective(node)]
        assert [comms.is_linear_collective(node) for node in collectives] == [True, False] * 2

    dynamo(Stack(lambda: Nonlinear(MoE())), ids(), edit=edit)
    assert reads(table[0])["attention.1"] == "e a0 r0"
    with pytest.raises(InseparableExpertsError, match="all_reduce"):
        rewired(Stack(lambda: Nonlinear(MoE())), "full")
    module, _, done = rewired(Stack(lambda: Nonlinear(MoE())), "mlp")
    assert done["split"] == 0
    assert launches(module) == 4


def test_a_gather_after_a_shared_norm_is_made_twice():
    """Sequence parallelism in a parallel block: attention and MoE read one gathered norm, and then two streams."""

    class Parallel(Layer):
        multiplier = 1.0

        def forward(self, x):
            h = gather(self.norm1(x))
            a = scatter(self.attention(h))
            return x + a + scatter(self.feed_forward(h))

    class ByHand(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a = layer.attention(layer.norm1(n))
                h = layer.norm1(x)
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = x + a + s
                x = x + a + (r + s)
            return self.head(self.norm(x))

    module, output, done = rewired(Stack(lambda: Parallel(MoE()), 3), "full")
    # three collectives a layer; two layers have an attention after them, two an attention that reads something else
    assert launches(module) == 9 + done["split"] + 2 == 13
    assert torch.equal(output, ByHand(lambda: Parallel(MoE()), 3)(ids()))


def gather(value: torch.Tensor) -> torch.Tensor:
    return collectives.all_gather(value.flatten(0, 1), 0, dist.group.WORLD).view_as(value)


def test_average_is_linear():
    """Gloo can't average, so only the operator is looked at."""
    graph = torch.fx.Graph()
    value = graph.placeholder("value")
    kinds = {
        name: comms.is_linear_collective(
            graph.call_function(torch.ops._c10d_functional.all_reduce.default, (value, name, "0"))
        )
        for name in ("sum", "avg", "AVG", "max", "min", "product", "band")
    }
    assert [name for name, linear in kinds.items() if linear] == ["sum", "avg", "AVG"]


class TestMerge:
    """Reductions of attention and shared experts become one, on request."""

    def test_one_reduction_for_both(self):
        model = Stack(lambda: Tensorparallel(MoE()), 3)
        module, output, done = rewired(model, "full", merge=True)
        # the last layer's sum of routed and shared is not split, so its attention keeps a reduction of its own
        assert (done["split"], done["merged"]) == (2, 2)
        assert launches(module) == 6
        expected = ByHand(lambda: Tensorparallel(MoE()), 3)(ids())
        assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)

    def test_partial_sums_of_other_shapes(self):
        """Llama 4 sums its experts as [tokens, D], and its attention as [B, T, D]."""

        class Flat(Tensorparallel):
            def forward(self, x):
                x = x + reduce(self.attention(self.norm1(x)))
                return x + reduce(self.feed_forward(self.norm2(x)).flatten(0, 1)).view(x.shape)

        model = Stack(lambda: Flat(SharedFirst()), 3)
        module, output, done = rewired(model, "full", merge=True)
        assert (done["split"], done["merged"]) == (2, 2)
        assert launches(module) == 6
        expected = ByHand(lambda: Tensorparallel(SharedFirst()), 3)(ids())
        assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("feed_forward", [MoE, Experts])
    def test_under_mlp_one_reduction_for_the_layer(self, feed_forward):
        plain = Stack(lambda: Tensorparallel(feed_forward()), 3)
        _, expected, _ = rewired(plain, "mlp")
        module, output, done = rewired(plain, "mlp", merge=True)
        assert (done["split"], done["merged"]) == (0, 3)
        assert launches(module) == 3
        assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)

    def test_it_is_launched_in_front_of_the_routed_experts_one(self):
        """Behind it, in the order of the process group, the next attention would wait for both."""
        module, _, done = rewired(Stack(lambda: Tensorparallel(MoE()), 3), "full", merge=True)
        assert done["merged"] == 2
        chosen = [node for node in module.graph.nodes if ops.is_selection(node)]
        launched = [node for node in module.graph.nodes if comms.is_linear_collective(node) and not comms.is_wait(node)]
        for_routed = [any(depends(one, top) for top in chosen) for one in launched]
        of_first_layers = [
            depends(one.args[0], chosen[layer]) for layer in (0, 1) for one in launched[2 * layer : 2 * layer + 2]
        ]
        assert of_first_layers == [False, True] * 2, for_routed

    def test_not_where_the_stream_between_is_read(self):
        model = Stack(lambda: Tensorparallel(MoE()), 3)
        module, _, done = rewired(model, "attention", merge=True)
        assert done["merged"] == 0
        assert launches(module) == 6 + done["split"]

    def test_nothing_to_merge_without_collectives(self):
        _, output, done = rewired(Stack(lambda: Layer(MoE()), 3), "full", merge=True)
        assert done["merged"] == 0
        assert isinstance(output, torch.Tensor)


def test_the_copy_that_hands_an_all_reduce_back_is_seen_through():
    """transformers reduces in place: functional all_reduce, wait, and a `copy_` without users."""

    class InPlace(Tensorparallel):
        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            out = self.feed_forward(self.norm2(x))
            dist.all_reduce(out)
            return x + out

    model = Stack(lambda: InPlace(MoE()), 3)
    _, output, done = rewired(model, "full")
    assert done["split"] == 2
    assert torch.equal(output, ByHand(lambda: InPlace(MoE()), 3)(ids()))


class SharedFirst(MoE):
    """Hunyuan and Llama 4 add the routed experts to the shared one."""

    def forward(self, h):
        out = self.shared(h)
        out += self.routed(h)
        return out


@pytest.mark.parametrize("how", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize("feed_forward", [MoE, SharedFirst])
def test_what_the_next_attention_waits_for_is_launched_first(feed_forward, how):
    class Either(Tensorparallel):
        def forward(self, x):
            x = x + reduce(self.attention(self.norm1(x)))
            out = self.feed_forward(self.norm2(x))
            return x + (reduce(out) if how == "all_reduce" else scatter(out))

    module, _, done = rewired(Stack(lambda: Either(feed_forward())), "full")
    assert done["split"] == 1
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    chosen = next(node for node in place if ops.is_selection(node))
    [summands] = [pair for node in place if ops.is_sum(node) for pair in [list(map(wait_of, node.args))] if all(pair)]
    routed, shared = summands
    assert depends(launch_of(routed), chosen)
    assert not depends(launch_of(shared), chosen)
    assert place[launch_of(shared)] < place[launch_of(routed)] < min(place[routed], place[shared])
    if feed_forward is SharedFirst:  # its launch does not wait for the routed experts to be computed
        assert place[launch_of(shared)] < place[chosen]


def wait_of(node):
    """The wait that `node` is, or a view of one."""
    while ops.op_name(node) in ops.SHAPE_OPS:
        node = node.args[0]
    return node if comms.is_wait(node) else None


def launch_of(wait):
    return wait.args[0]


def depends(node, earlier):
    return node is earlier or any(depends(arg, earlier) for arg in node.all_input_nodes)


def scatter(value: torch.Tensor) -> torch.Tensor:
    return collectives.reduce_scatter(value.flatten(0, 1), "sum", 0, dist.group.WORLD).view_as(value)


@pytest.mark.parametrize("connectivity", ["full", {"attention.1": ["r0"]}, {"attention.1": ["s0"]}, {"moe.1": ["s0"]}])
def test_terms_are_numbered_anew_after_splitting(connectivity):
    """Splitting changes the order of the terms; what is left out must not."""
    model = Stack(lambda: Tensorparallel(SharedFirst()))
    _, output, done = rewired(model, connectivity)
    assert done["split"] == 1
    if connectivity == "full":
        assert torch.equal(output, ByHand(lambda: Tensorparallel(MoE()))(ids()))


def test_a_bias_after_the_reduction_is_a_shift_of_the_stream():
    """The bias of the experts' output is there before the routed part is, so the next attention reads it."""

    class Biased(Tensorparallel):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.bias = nn.Parameter(torch.linspace(1, 2, 8))

        def forward(self, x):
            x = x + (reduce(self.attention(self.norm1(x))) + self.bias)
            return x + (reduce(self.feed_forward(self.norm2(x))) + self.bias)

    model = Stack(lambda: Biased(MoE()))
    _, output, done = rewired(model, "full")
    assert done["split"] == 1
    assert reads(done["table"])["attention.1"] == "e a0 s0"
    x = n = model.embedding(ids())
    for layer in model.layers:
        a = layer.attention(layer.norm1(n)) + layer.bias
        h = layer.norm2(x)
        r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
        n = x + a + (s + layer.bias)
        x = x + a + ((r + s) + layer.bias)
    assert torch.equal(output, model.head(model.norm(x)))
