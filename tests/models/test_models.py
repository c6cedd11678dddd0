# SPDX-License-Identifier: Apache-2.0
"""The plain models on one process, and the hand-written FarSkip forms."""

from __future__ import annotations

import pytest
import torch

from farskip_compile.comm import combine, dispatch
from farskip_compile.errors import ConfigError, LayerRangeError
from farskip_compile.models import MODELS, Decoder, FarSkipForm, ModelConfig, ParallelConfig, build
from farskip_compile.models.moe import MoE
from farskip_compile.models.router import SigmoidGroupRouter

VARIANTS = {
    "two shared experts": ("deepseek_v3", {"shared_experts": 2}),
    "layer norm, scaled residuals": ("qwen3_moe", {"norm": "layer", "residual_scale": 0.5, "shared_experts": 1}),
    "parallel block": ("mixtral", {"parallel_block": True, "shared_experts": 1}),
}
CASES = {**{name: (name, {}) for name in MODELS}, **VARIANTS}


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest) -> Decoder:
    name, overrides = CASES[request.param]
    return build(name, dtype=torch.float64, **overrides)


def ids(batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(0))


def zero_routed(model: Decoder) -> None:
    for module in model.modules():
        if isinstance(module, MoE):
            torch.nn.init.zeros_(module.experts.down)


def test_forward_and_backward_reach_every_weight(model):
    logits = model(ids())
    assert logits.dtype == torch.float64
    assert 0.3 < logits.std() < 3
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_is_causal(model):
    changed = ids()
    changed[:, 4] = (changed[:, 4] + 1) % 128
    difference = (model(changed) - model(ids())).abs().amax((0, 2))
    # Not bit for bit: a row's slot decides where it lies in a matrix product.
    assert difference[:4].max() < 1e-12
    assert difference[4:].min() > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_captures_whole_with_dynamic_shapes(name):
    model = build(name, dtype=torch.float64)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 7), (3, 5)):
            assert torch.equal(compiled(ids(*shape)), model(ids(*shape)))
    torch._dynamo.reset()


def test_room_per_expert_follows_a_dynamic_length():
    model = build("mixtral", layers=("moe",), parallel=ParallelConfig(capacity_factor=1.25))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 7), (3, 11)):
            assert torch.equal(compiled(ids(*shape)), model(ids(*shape)))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_and_autocast(name):
    model = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(ids())
    cast.float().sum().backward()
    half = build(name, dtype=torch.bfloat16)(ids())
    assert cast.dtype == half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_same_seed_same_model():
    one, same, other = (build("llama4", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one(ids()), same(ids()))
    assert not torch.equal(one(ids()), other(ids()))


def test_experts_get_their_own_rows_and_no_more_than_fit():
    rows = torch.arange(12.0).view(6, 2) + 1
    expert_of_row = torch.tensor([1, 0, 1, 1, 2, 0])
    buffer, places = dispatch(rows, expert_of_row, experts=3, slots=2, group=None)
    assert torch.equal(buffer[0], rows[[1, 5]])
    assert torch.equal(buffer[1], rows[[0, 2]])
    assert torch.equal(buffer[2], torch.stack([rows[4], torch.zeros(2)]))
    expected = rows.clone()
    expected[3] = 0  # the third row of expert 1 did not fit
    assert torch.equal(combine(buffer, places), expected)


@pytest.mark.parametrize("name", MODELS)
def test_routed_output_is_the_weighted_sum_over_chosen_experts(name):
    moe = next(m for m in build(name, dtype=torch.float64).modules() if isinstance(m, MoE))
    h = torch.randn(2, 5, 64, dtype=torch.float64)
    experts, weights = moe.router(h.flatten(0, 1))
    expected = torch.zeros(10, 64, dtype=torch.float64)
    for token, row in enumerate(h.flatten(0, 1)):
        for expert, weight in zip(experts[token], weights[token], strict=True):
            if moe.weights_scale_input:
                expected[token] += moe.experts._one(int(expert), (row * weight)[None])[0]
            else:
                expected[token] += moe.experts._one(int(expert), row[None])[0] * weight
    torch.testing.assert_close(moe.routed(h).flatten(0, 1), expected)


def test_room_for_a_balanced_load_drops_tokens():
    exact = build("mixtral", dtype=torch.float64)
    roomy = build("mixtral", dtype=torch.float64, parallel=ParallelConfig(capacity_factor=4.0))
    tight = build("mixtral", dtype=torch.float64, parallel=ParallelConfig(capacity_factor=0.5))
    torch.testing.assert_close(roomy(ids()), exact(ids()))
    assert (tight(ids()) - exact(ids())).abs().max() > 0.01


def test_group_router_stays_in_the_best_groups_and_keeps_the_bias_out_of_the_weights():
    config = MODELS["deepseek_v3"]()
    router = SigmoidGroupRouter(config)
    torch.nn.init.normal_(router.weight)
    h = torch.randn(50, config.hidden_size)
    experts, weights = router(h)
    assert torch.all((experts // 2).sort(-1).values.diff() >= 0)
    torch.testing.assert_close(weights.sum(-1), torch.full((50,), config.routed_scaling_factor))
    router.correction_bias[:2] = 100.0  # group 0 now always wins
    experts, weights = router(h)
    assert torch.equal(experts.sort(-1).values, torch.tensor([0, 1]).expand(50, 2))
    torch.testing.assert_close(weights.sum(-1), torch.full((50,), config.routed_scaling_factor))


def test_none_is_the_plain_model_bit_for_bit(model):
    assert torch.equal(FarSkipForm(model, connectivity="none")(ids()), model(ids()))


def test_the_form_adds_no_weights_and_changes_none(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    form = FarSkipForm(model)
    form(ids()).sum().backward()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [f"decoder.{name}" for name in before] == list(form.state_dict())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_routed_output_there_is_nothing_for_attention_to_miss(model):
    # n = (x + a) + s and x = (x + a) + (0 + s): adding zero is exact, so the streams are equal bit for bit. With two
    # shared experts as well: ((0 + s1) + s2) is s1 + s2.
    zero_routed(model)
    assert torch.equal(FarSkipForm(model, connectivity="attention")(ids()), model(ids()))


@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp"])
def test_each_connectivity_is_another_function(model, connectivity):
    difference = (FarSkipForm(model, connectivity=connectivity)(ids()) - model(ids())).abs().max()
    already_parallel = model.config.parallel_block and connectivity == "mlp"
    assert difference == 0 if already_parallel else difference > 0.01


class Swapped(FarSkipForm):
    def layer(self, index, x, n, rope):
        return super().layer(index, n, x, rope)


def test_swapping_the_streams_changes_the_output(model):
    assert (Swapped(model)(ids()) - FarSkipForm(model)(ids())).abs().max() > 0.01


def test_full_form_spelled_out_for_one_shared_expert():
    model = build("deepseek_v3", dtype=torch.float64)
    x = n = model.token_embedding(ids())
    rope = model.rope(x, ids().shape[1])
    for layer in model.layers:
        a = layer.attention(layer.attention_norm(n), rope)
        h = layer.feed_forward_norm(x)
        if isinstance(layer.feed_forward, MoE):
            r, (s,) = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
            x, n = (x + a) + (r + s), (x + a) + s
        else:
            x = n = (x + a) + layer.feed_forward(h)
    assert torch.equal(model.lm_head(model.final_norm(x)), FarSkipForm(model)(ids()))


def test_layer_range_leaves_earlier_layers_plain_but_its_first_attention_reads_n():
    model = build("qwen3_moe", dtype=torch.float64)
    x = model.token_embedding(ids())
    rope = model.rope(x, ids().shape[1])
    for layer in model.layers[:2]:
        n = x + layer.attention(layer.attention_norm(x), rope)
        x = n + layer.feed_forward(layer.feed_forward_norm(n))
    for layer in model.layers[2:]:
        n_next = x + layer.attention(layer.attention_norm(n), rope)
        x = n_next + layer.feed_forward(layer.feed_forward_norm(x))
        n = n_next
    form = FarSkipForm(model, layers=(2, 3))
    assert torch.equal(form(ids()), model.lm_head(model.final_norm(x)))


def test_range_of_no_effect_on_a_first_moe_layer_with_attention_only():
    # Layer 0 has no layer before it: its attention reads the embeddings in any wiring.
    model = build("qwen3_moe", dtype=torch.float64)
    assert torch.equal(FarSkipForm(model, connectivity="attention", layers=(0, 0))(ids()), model(ids()))


def test_dropout_draws_the_same_numbers_in_plain_and_none_form():
    model = build("deepseek_v3", dropout=0.2)
    torch.manual_seed(0)
    plain = model(ids())
    torch.manual_seed(0)
    assert torch.equal(FarSkipForm(model, connectivity="none")(ids()), plain)
    assert not torch.equal(model(ids()), plain)
    assert torch.equal(model.eval()(ids()), build("deepseek_v3")(ids()))


@pytest.mark.parametrize(
    "overrides",
    [
        {"layers": ()},
        {"layers": ("dense", "sparse")},
        {"experts": 0},
        {"top_k": 9},
        {"heads": 3},
        {"shared_experts": 3},
        {"router": "hash"},
        {"dropout": 1.0},
        {"head_dim": 15},
        {"router": "sigmoid_groups", "router_groups": 3},
        {"router": "sigmoid_groups", "router_groups": 4, "router_top_groups": 1, "top_k": 3},
    ],
)
def test_nonsense_is_refused(overrides):
    with pytest.raises(ConfigError):
        ModelConfig(**overrides)


def test_nonsense_forms_are_refused():
    model = build("mixtral")
    with pytest.raises(ConfigError, match="unknown model"):
        build("gpt2")
    with pytest.raises(ConfigError, match="connectivity"):
        FarSkipForm(model, connectivity="ful")
    with pytest.raises(ConfigError, match="tensor parallelism"):
        FarSkipForm(model, merge_reductions=True)
    with pytest.raises(LayerRangeError):
        FarSkipForm(model, layers=(2, 4))
    with pytest.raises(ConfigError, match="capacity"):
        ParallelConfig(ep_mode="dropless", capacity_factor=1.0)


def test_transformers_form_reads_the_streams_of_the_paper():
    pytest.importorskip("transformers")
    from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3

    model = tiny_deepseek_v3()
    seen = {}

    def note(name, take):
        return lambda module, inputs, output: seen.__setitem__(name, take(inputs, output))

    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(note(f"n{index}", lambda inputs, output: inputs[0]))
        layer.post_attention_layernorm.register_forward_hook(note(f"x{index}", lambda inputs, output: inputs[0]))
        layer.self_attn.register_forward_hook(note(f"a{index}", lambda inputs, output: output[0]))
        if index == 0:
            layer.mlp.register_forward_hook(note("m0", lambda inputs, output: output))
        else:
            layer.mlp.experts.register_forward_hook(note(f"r{index}", lambda inputs, output: output))
            layer.mlp.shared_experts.register_forward_hook(note(f"s{index}", lambda inputs, output: output))
    TransformersFarSkipForm(model)(ids())

    assert torch.equal(seen["n0"], seen["x0"])
    assert torch.equal(seen["n1"], (seen["x0"] + seen["a0"]) + seen["m0"])
    assert torch.equal(seen["n1"], seen["x1"])
    for k in (1, 2):
        x, a, s = seen[f"x{k}"], seen[f"a{k}"], seen[f"s{k}"]
        assert torch.equal(seen[f"n{k + 1}"], (x + a) + s)
        assert torch.equal(seen[f"x{k + 1}"], (x + a) + (seen[f"r{k}"].view_as(s) + s))


def test_transformers_form_without_attention_is_the_plain_model_bit_for_bit():
    pytest.importorskip("transformers")
    from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3

    model = tiny_deepseek_v3()
    form = TransformersFarSkipForm(model)
    assert (form(ids()) - model(ids()).logits).abs().max() > 0.01
    for layer in model.model.layers:  # nothing reads n any more, and x + 0 is x
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    assert torch.equal(form(ids()), model(ids()).logits)
