# SPDX-License-Identifier: Apache-2.0
"""`assert_equivalent` and `assert_unchanged`: what is compared, what is kept, and what a failure says."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from farskip_compile import ConfigError
from farskip_compile.models import FarSkipForm, build
from farskip_compile.passes.graph import ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.testing import assert_equivalent, assert_unchanged, equivalence
from farskip_compile.testing.strategies import cases
from farskip_compile.testing.strategies.architectures import GeneratedCase
from tests import sample_models
from tests.graphs import Dense, Layer, MoE, Stack, ids
from tests.testing.texts import failure_of

IDS = torch.arange(10).view(2, 5)


def small(layers=("dense", "moe", "moe"), **more):
    return build("deepseek_v3", layers=layers, vocab_size=32, hidden_size=32, dtype=torch.float64, **more)


def compiled(model, **options):
    return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})


def stack():
    return Stack(lambda: Layer(MoE()))


def unverified():
    """The check in each compile sees such a fault first, and says so."""
    return mock.patch("farskip_compile.compiler.pipeline.verify_normalized")


def state_of(model):
    return [
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
    ]


def test_a_rewired_model_is_its_form_written_by_hand():
    model = small()
    assert_equivalent(compiled(model), FarSkipForm(model), IDS)
    assert_equivalent(compiled(model, inner="aot_eager"), FarSkipForm(model), IDS, tolerance=1e-10)
    text = failure_of(assert_equivalent, compiled(model), model, IDS, tolerance=1e-3)
    assert "output differs by" in text
    assert "gradient of layers." in text


def test_state_stays_as_it_was():
    model = small(dropout=0.3).train()
    model.layers[0].eval()
    model(IDS).sum().backward()
    next(model.parameters()).grad = None
    before = state_of(model)
    assert_equivalent(model, model, IDS)
    failure_of(assert_equivalent, model, FarSkipForm(model), IDS)
    assert_unchanged(model, IDS)
    for then, now in zip(before, state_of(model), strict=True):
        assert len(then) == len(now)
        for a, b in zip(then, now, strict=True):
            assert a is b or (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)


def test_both_runs_draw_the_same_random_numbers():
    class Noisy(nn.Module):
        def forward(self, x):
            return x * torch.rand(3) * random.random()

    assert_equivalent(Noisy(), Noisy(), torch.ones(3))


class Detached(Stack):
    """Computes what `Stack` computes; in the gradient the attention of the last layer is missing."""

    def forward(self, ids):
        x = self.layers[0](self.embedding(ids))
        layer = self.layers[1]
        x = x + layer.attention(layer.norm1(x)).detach()
        return self.head(self.norm(x + layer.feed_forward(layer.norm2(x))))


def test_a_gradient_that_lacks_one_term_is_seen():
    model, wrong = stack(), Detached(lambda: Layer(MoE()))
    wrong.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_equivalent(wrong, model, ids())
    text = failure_of(assert_equivalent, wrong, model, ids(), tolerance=1e-6)
    assert "output" not in text
    assert "gradient of layers.1.attention.q.weight differs by 1 of the largest entry" in " ".join(text.split())


@pytest.mark.parametrize("name", ["layers.1.attention.o.weight", "embedding.weight", "norm.weight"])
def test_the_gradient_that_differs_most_comes_first(name: str):
    """A hook scales the gradient of one parameter, and nothing else."""
    model, other = stack(), stack()
    dict(other.named_parameters())[name].register_hook(lambda gradient: 1.25 * gradient)
    lines = failure_of(assert_equivalent, model, other, ids(), tolerance=1e-6).splitlines()
    assert lines[0].startswith("1 of ")
    assert lines[1].startswith(f"  gradient of {name} differs by 0.2 of the largest entry")


def test_gradients_of_inputs_count():
    class Scale(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, *, bias):
            return x.detach() * self.factor + x * (3.0 - self.factor) + bias, x.detach().long()

    x, bias = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True) * 2
    assert_equivalent(Scale(1.0), Scale(1.0), x, bias=bias)
    text = failure_of(assert_equivalent, Scale(1.0), Scale(2.0), x, bias=bias)
    assert "gradient of input args[0] differs by 0.5" in text
    assert "bias" not in text
    assert x.grad is None


def outputs(kind: str, value: torch.Tensor):
    if kind == "transformers":
        return CausalLMOutputWithPast(loss=value.sum(), logits=value, hidden_states=(value, value + 1))
    if kind == "nested":
        return {"a": [value, (3, "x", None)], "b": value.long()}
    return (value, value.isnan(), 1.5)


@pytest.mark.parametrize("kind", ["transformers", "nested", "plain"])
def test_nested_outputs(kind: str):
    value = torch.tensor([1.0, float("nan"), float("inf"), 4.0])

    def model(x):
        return outputs(kind, x)

    assert_equivalent(model, lambda x: outputs(kind, x.clone()), value)
    text = failure_of(assert_equivalent, model, lambda x: outputs(kind, x + torch.tensor([0.0, 0, 0, 2])), value)
    assert "differs" in text


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "1 of 2 entries, at (1,) 2 against 3"),
        (torch.tensor([True]), torch.tensor([False]), "True against False"),
        (torch.tensor([1.0]), torch.tensor([float("nan")]), "1.0 against nan"),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")]), "inf against -inf"),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), "float32 [1] against float64 [1]"),
        (torch.ones(2), torch.ones(2, 1), "float32 [2] against float32 [2, 1]"),
        (1, 2, "1 against 2"),
        (1, 1.0, "int against float"),
        (None, torch.ones(1), "NoneType against Tensor"),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), "only the reference has it"),
        ({"a": 1}, {"b": 1}, "only the model has it"),
        (object.__new__(nn.Module), object.__new__(nn.Module), "can't be compared"),
    ],
)
def test_what_no_tolerance_allows(one, other, words):
    text = failure_of(assert_equivalent, lambda: one, lambda: other, tolerance=1e9)
    assert words in " ".join(text.split())


def test_a_gradient_of_rounding_only_is_measured_by_the_largest_gradient():
    model = nn.ParameterDict({"weight": nn.Parameter(torch.ones(2)), "key": nn.Parameter(torch.ones(2))}).double()

    def with_gradient(by):
        return lambda: (30.0 * model["weight"] + by * model["key"]).sum()

    with mock.patch.object(equivalence, "named_parameters", return_value=dict(model.named_parameters())):
        assert_equivalent(with_gradient(1e-16), with_gradient(-4e-16), tolerance=1e-12)
        text = failure_of(assert_equivalent, with_gradient(1e-9), with_gradient(-4e-16), tolerance=1e-12)
        assert "gradient of key" in text
        assert "gradient of key" in failure_of(assert_equivalent, with_gradient(1e-16), with_gradient(-4e-16))


def test_tolerance_is_relative_to_the_largest_entry():
    one, other = torch.tensor([1e-3, 100.0]), torch.tensor([2e-3, 100.0])
    assert_equivalent(lambda: one, lambda: other, tolerance=2e-5)
    text = failure_of(assert_equivalent, lambda: one, lambda: other, tolerance=5e-6)
    assert "by 1e-05 of the largest entry" in text
    failure_of(assert_equivalent, lambda: one, lambda: other)
    with pytest.raises(ConfigError):
        assert_equivalent(lambda: one, lambda: other, tolerance=-1.0)


def test_what_is_written_to_inputs_and_buffers_counts():
    class Writes(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.step = step
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x, cache):
            self.calls += self.step
            cache["keys"][0] += self.step
            return x + self.calls

    cache = {"keys": torch.zeros(3)}
    assert_equivalent(Writes(1), Writes(1), torch.ones(2), cache)
    text = failure_of(assert_equivalent, Writes(1), Writes(2), torch.ones(2), cache)
    assert "input args[1]['keys'] afterwards" in text
    assert "buffer calls afterwards" in text
    assert cache["keys"].sum() == 0


def test_a_cache_of_the_model_is_not_filled_and_compared():
    model = small()
    cache = model.new_cache(2, 8)
    before = [t.clone() for t in vars(cache).values() if isinstance(t, torch.Tensor)]
    with torch.no_grad():
        assert_equivalent(compiled(model), FarSkipForm(model), IDS, cache)
        text = failure_of(assert_equivalent, model, FarSkipForm(model), IDS, cache)
    assert "input args[1]" in text
    assert all(torch.equal(a, b) for a, b in zip(before, [
        t for t in vars(cache).values() if isinstance(t, torch.Tensor)
    ], strict=True))  # fmt: skip


def test_parameters_of_two_models_must_belong_together():
    text = failure_of(assert_equivalent, stack(), nn.Sequential(stack()), ids())
    assert "parameters belong to one of the two models only" in text
    model = stack()
    assert_equivalent(model, lambda i: model(i), ids())
    assert_equivalent(lambda i: model(i), model, ids())


def test_without_a_gradient_on_one_side():
    text = failure_of(assert_equivalent, stack(), torch.no_grad()(stack().forward), ids())
    assert "only what the model returns has a gradient" in text


@settings(max_examples=10)
@given(case=cases(max_layers=3))
def test_generated_models_are_unchanged_under_none(case: GeneratedCase):
    assert_unchanged(case.model(), case.ids())
    assert_unchanged(compiled(case.model(), connectivity="none"), case.ids())


def test_a_compiled_model_is_compared_with_what_it_was():
    """Whatever it is compiled for: under none it is the model as it is written."""
    for model in (compiled(small()), torch.compile(small(), backend="eager")):
        assert_unchanged(model, IDS)
    in_place = small()
    in_place.compile(backend="farskip", options={"inner": "eager"})
    assert_unchanged(in_place, IDS)
    assert_unchanged(lambda i: in_place(i), IDS)


def test_a_pass_that_changes_a_bit_is_seen():
    """Normalising must change nothing: here it loses the order of a sum."""

    def reorders(module):
        found = normalize(module)
        for node in module.graph.nodes:
            if ops.is_sum(node) and ops.is_sum(node.args[0]) and len(node.args[0].users) == 1:
                inner = node.args[0]
                with module.graph.inserting_before(node):
                    right = module.graph.call_function(torch.add, (inner.args[1], node.args[1]))
                right.meta = dict(inner.meta)
                node.args = (inner.args[0], right)
        module.graph.lint()
        return found

    model = small(layers=("moe", "moe"), shared_experts=2)
    assert_unchanged(model, IDS)
    with mock.patch("farskip_compile.compiler.pipeline.normalize", reorders):
        assert "VerificationError: bringing the graph" in failure_of(assert_unchanged, model, IDS)
        with unverified():
            text = failure_of(assert_unchanged, model, IDS)
    assert "not equal bit for bit" in text


def test_a_gradient_that_is_lost_is_seen():
    def detaches(module):
        found = normalize(module)
        node = next(node for node in module.graph.nodes if ops.is_attention(node))
        users = list(node.users)
        with module.graph.inserting_after(node):
            detached = module.graph.call_method("detach", (node,))
        detached.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, detached)
        return found

    with mock.patch("farskip_compile.compiler.pipeline.normalize", detaches), unverified():
        text = failure_of(assert_unchanged, small(), IDS)
        assert "gradient of " in text
        assert "output" not in text
        with torch.no_grad():
            assert_unchanged(small(), IDS)


def test_what_can_not_be_captured_or_read_fails():
    assert "graph_break" in failure_of(assert_unchanged, sample_models.Breaks(), IDS)
    assert "NoResidualStackError" in failure_of(assert_unchanged, nn.Linear(4, 4), torch.zeros(2, 4))
    assert_unchanged(Stack(lambda: Layer(Dense())), ids())
