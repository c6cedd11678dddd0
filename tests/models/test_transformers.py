# SPDX-License-Identifier: Apache-2.0
"""Unmodified `transformers` models: capture, rewiring, training, checkpointing, caches.

The oracles here are eager loops over the model's own sub-modules, and use nothing of the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.compare import assert_gradients_close, relative_difference, run_with_gradients

transformers = pytest.importorskip("transformers")

LAYERS = 4


def ids(batch: int = 2, length: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def compiled(function: Any, **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="farskip", fullgraph=True, options={"inner": "eager", **options})


def exact(model: nn.Module) -> nn.Module:
    """In float64. The default expert kernel, `grouped_mm`, has none in eager mode: `batched_mm` takes its place.

    Norms, routers and rotations of transformers compute in float32 in any case.
    """
    if hasattr(model.config, "num_local_experts") and model.config.model_type != "llama4_text":
        model.set_experts_implementation("batched_mm")
    return model.double()


def logits_of(function: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda input_ids: function(input_ids).logits


def only_report() -> farskip_compile.CompileReport:
    (report,) = farskip_compile.reports().compiles
    assert report.outcome is Outcome.REWIRED
    assert (report.wiring_before, report.wiring_after) == ("standard", "full")
    return report


def left_out(report: farskip_compile.CompileReport) -> dict[str, tuple[str, ...]]:
    return report.left_out


# DeepSeek-V3


@pytest.fixture
def deepseek() -> nn.Module:
    return tiny_deepseek_v3(LAYERS)


DEEPSEEK_LEFT_OUT = {
    "mlp.0": ("a0",),
    "moe.1": ("a1",),
    "attention.2": ("r1",),
    "moe.2": ("a2",),
    "attention.3": ("r2",),
    "moe.3": ("a3",),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deepseek_logits_are_bit_equal(deepseek: nn.Module, dtype: torch.dtype) -> None:
    deepseek.to(dtype)
    with torch.no_grad():
        logits = compiled(deepseek)(ids()).logits
        assert torch.equal(logits, TransformersFarSkipForm(deepseek)(ids()))
        assert not torch.equal(logits, deepseek(ids()).logits)  # FarSkip is another model
    assert left_out(only_report()) == DEEPSEEK_LEFT_OUT


def test_deepseek_gradients_with_the_default_experts(deepseek: nn.Module) -> None:
    """`grouped_mm`, in float32; a gradient that sums in another order rounds otherwise."""
    expected, expected_gradients = run_with_gradients(TransformersFarSkipForm(deepseek), deepseek, ids())
    logits, gradients = run_with_gradients(logits_of(compiled(deepseek)), deepseek, ids())
    assert torch.equal(logits, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-5)


def test_deepseek_gradients(deepseek: nn.Module) -> None:
    exact(deepseek)
    expected, expected_gradients = run_with_gradients(TransformersFarSkipForm(deepseek), deepseek, ids())
    logits, gradients = run_with_gradients(logits_of(compiled(deepseek)), deepseek, ids())
    assert torch.equal(logits, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-12)
    assert len(gradients) == len(list(deepseek.parameters()))


def shifted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def gradients_of(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def test_deepseek_loss_inside_the_graph(deepseek: nn.Module) -> None:
    """`labels=`: the loss (in fp32 inside transformers, hence the tolerances) is a sum too, and no stream."""
    exact(deepseek)
    labels = ids()
    labels[:, 3] = -100
    expected = shifted_loss(TransformersFarSkipForm(deepseek)(ids()).float(), labels)
    expected_gradients = gradients_of(deepseek, expected)
    output = compiled(deepseek)(ids(), labels=labels)
    assert torch.equal(output.logits, TransformersFarSkipForm(deepseek)(ids()))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_gradients_close(gradients_of(deepseek, output.loss), expected_gradients, 1e-12)
    assert left_out(only_report()) == DEEPSEEK_LEFT_OUT


def enable_checkpointing(model: Any) -> None:
    """Under its name before or after transformers renamed it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_deepseek_gradient_checkpointing(deepseek: nn.Module, inner: str) -> None:
    exact(deepseek).train()
    expected, expected_gradients = run_with_gradients(logits_of(compiled(deepseek)), deepseek, ids())
    assert torch.equal(expected, TransformersFarSkipForm(deepseek)(ids()))
    assert only_report().checkpoints_opened == 0
    farskip_compile.reports().clear()
    torch.compiler.reset()
    enable_checkpointing(deepseek)
    logits, gradients = run_with_gradients(logits_of(compiled(deepseek, inner=inner)), deepseek, ids())
    assert relative_difference(logits, expected) <= (0.0 if inner == "eager" else 1e-12)
    assert_gradients_close(gradients, expected_gradients, 1e-12)
    assert only_report().checkpoints_opened == LAYERS
    assert left_out(only_report()) == DEEPSEEK_LEFT_OUT


# Caches


def decode_with_static_cache(model: nn.Module, tokens: torch.Tensor, prefill: int) -> torch.Tensor:
    """Logits [B, T, vocabulary] of a prefill and single-token steps through one compiled forward."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=16)
    forward = compiled(model.forward)
    steps = [tokens[:, :prefill], *tokens[:, prefill:].split(1, dim=1)]
    done = 0
    logits = []
    for step in steps:
        positions = torch.arange(done, done + step.shape[1]).unsqueeze(0)
        logits.append(forward(step, position_ids=positions, use_cache=True, **{CACHE: cache}).logits)
        done += step.shape[1]
    return torch.cat(logits, dim=1)


def cache_keyword() -> str:
    """`past_key_values`, or its newer name."""
    import inspect

    parameters = inspect.signature(transformers.DeepseekV3ForCausalLM.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


CACHE = cache_keyword()


def assert_decoding_follows(model: nn.Module, oracle: nn.Module, tolerance: float) -> None:
    tokens = ids()
    with torch.no_grad():
        logits = decode_with_static_cache(model, tokens, prefill=6)
        expected = oracle(tokens)
    assert relative_difference(logits, expected) < tolerance
    reports = farskip_compile.reports().compiles
    assert len(reports) >= 2  # a graph of the prefill and one of the decode steps
    assert {report.outcome for report in reports} == {Outcome.REWIRED}
    assert len({str(left_out(report)) for report in reports}) == 1


def test_deepseek_static_cache(deepseek: nn.Module) -> None:
    """Sums over the padded cache are grouped otherwise than over the whole sequence, hence not bit for bit.

    A last bit in float64 may flip one in the float32 norms, hence 1e-6; seen are 5e-16.
    """
    assert_decoding_follows(exact(deepseek), TransformersFarSkipForm(deepseek), 1e-6)
    assert left_out(farskip_compile.reports().compiles[-1]) == DEEPSEEK_LEFT_OUT


# Other families: models, and one oracle for all that have no shared experts


def seeded(model_class: Any, config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).eval().to(dtype)


COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def qwen3_moe() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **COMMON, moe_intermediate_size=32, num_experts=8, mlp_only_layers=[1], norm_topk_prob=True
    )
    return seeded(transformers.Qwen3MoeForCausalLM, config)


def mixtral() -> nn.Module:
    return seeded(transformers.MixtralForCausalLM, transformers.MixtralConfig(**COMMON, num_local_experts=8))


def llama4() -> nn.Module:
    """Dense and routed layers in turn, layers with and without rotation, chunked and full attention."""
    config = transformers.Llama4TextConfig(
        **(COMMON | {"num_experts_per_tok": 1}),
        intermediate_size_mlp=96,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
        no_rope_layers=[1, 1, 1, 0],
        attn_temperature_tuning=True,
        floor_scale=4,
    )
    return seeded(transformers.Llama4ForCausalLM, config)


class EagerForm(nn.Module):
    """The full FarSkip form of a pre-norm decoder, with the layers' own modules and without a cache.

    x is everything, n leaves out the routed output of the layer before.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        decoder = self.model.model
        x = decoder.embed_tokens(input_ids)  # [B, T, D]
        positions = torch.arange(x.shape[1]).unsqueeze(0)  # [1, T]
        rope = decoder.rotary_emb(x, positions)
        n = x
        for index, layer in enumerate(decoder.layers):
            a, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(n),
                position_embeddings=rope,
                attention_mask=self.mask(index, x, positions),
            )
            x, n = self.feed_forward(layer, x + a, layer.post_attention_layernorm(x))
        return self.model.lm_head(decoder.norm(x))

    def mask(self, index: int, x: torch.Tensor, positions: torch.Tensor) -> Any:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        create = (
            create_sliding_window_causal_mask if getattr(self.config, "sliding_window", None) else create_causal_mask
        )
        return create(self.config, x, None, None, position_ids=positions)

    @property
    def config(self) -> Any:
        return self.model.config

    def feed_forward(
        self, layer: nn.Module, x_and_a: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new x and n. Without shared experts, n is the stream before the routed output."""
        x = x_and_a + layer.mlp(h)
        return x, x_and_a if hasattr(layer.mlp, "experts") else x


class EagerLlama4(EagerForm):
    """`Llama4TextMoe` adds the routed output to the shared expert's in place; here both are apart."""

    def mask(self, index: int, x: torch.Tensor, positions: torch.Tensor) -> Any:
        from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask

        chunked = self.config.layer_types[index] == "chunked_attention"
        return (create_chunked_causal_mask if chunked else create_causal_mask)(
            self.config, x, None, None, position_ids=positions
        )

    def feed_forward(
        self, layer: nn.Module, x_and_a: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not layer.is_moe_layer:
            x = x_and_a + layer.feed_forward(h)
            return x, x
        moe = layer.feed_forward
        tokens = h.reshape(-1, h.shape[-1])  # [B*T, D]
        scores, _ = moe.router(tokens)  # [B*T, E], zero where an expert is not chosen
        scaled = tokens.repeat(scores.shape[1], 1) * scores.transpose(0, 1).reshape(-1, 1)  # [E*B*T, D]
        routed = moe.experts(scaled).reshape(scores.shape[1], -1, h.shape[-1]).sum(dim=0)  # [B*T, D]
        shared = moe.shared_expert(tokens)  # [B*T, D]
        return x_and_a + (shared + routed).view(h.shape), x_and_a + shared.view(h.shape)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], type[EagerForm], dict[str, tuple[str, ...]]]] = {
    "qwen3_moe": (
        qwen3_moe,
        EagerForm,
        {
            "moe.0": ("a0",),
            "attention.1": ("r0",),
            "mlp.1": ("a1",),
            "moe.2": ("a2",),
            "attention.3": ("r2",),
            "moe.3": ("a3",),
        },
    ),
    "mixtral": (
        mixtral,
        EagerForm,
        {
            "moe.0": ("a0",),
            "attention.1": ("r0",),
            "moe.1": ("a1",),
            "attention.2": ("r1",),
            "moe.2": ("a2",),
            "attention.3": ("r2",),
            "moe.3": ("a3",),
        },
    ),
    "llama4": (
        llama4,
        EagerLlama4,
        {
            "mlp.0": ("a0",),
            "moe.1": ("a1",),
            "attention.2": ("r1",),
            "mlp.2": ("a2",),
            "moe.3": ("a3",),
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_bit_equal_to_its_eager_form(family: str) -> None:
    build, form, expected_left_out = FAMILIES[family]
    model = build()
    with torch.no_grad():
        logits = compiled(model)(ids()).logits
        assert torch.equal(logits, form(model)(ids()))
        assert not torch.equal(logits, model(ids()).logits)
    report = only_report()
    assert left_out(report) == expected_left_out
    shared = [name for name in report.terms if name.startswith("s")]
    assert shared == (["s1", "s3"] if family == "llama4" else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_family_gradients(family: str) -> None:
    build, form, _ = FAMILIES[family]
    model = exact(build())
    expected, expected_gradients = run_with_gradients(form(model), model, ids())
    logits, gradients = run_with_gradients(logits_of(compiled(model)), model, ids())
    assert torch.equal(logits, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_static_cache(family: str) -> None:
    build, form, _ = FAMILIES[family]
    model = exact(build())
    assert_decoding_follows(model, form(model), 1e-6)
