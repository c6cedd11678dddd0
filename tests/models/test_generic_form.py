"""The oracle for all families: equal to the forms written by hand, and to the compiled model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.models.test_transformers import compiled, exact, ids

transformers = pytest.importorskip("transformers")

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "use_cache": False,
    "pad_token_id": 0,
}


def granite() -> Any:
    """Residual and embedding multipliers; shared experts beside the routed ones."""
    config = transformers.GraniteMoeSharedConfig(
        **COMMON, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=32, residual_multiplier=0.3,
        embedding_multiplier=2.0,
    )  # fmt: skip
    return transformers.GraniteMoeSharedForCausalLM(config)


def qwen2() -> Any:
    """A gate in front of the shared expert."""
    config = transformers.Qwen2MoeConfig(
        **COMMON, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
        decoder_sparse_step=1,
    )  # fmt: skip
    return transformers.Qwen2MoeForCausalLM(config)


def mixtral() -> Any:
    """No shared experts."""
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**COMMON, num_local_experts=8))


def llama4() -> Any:
    """The routed part is added in place to the shared one; dense layers alternate with MoE layers."""
    config = transformers.Llama4TextConfig(
        **COMMON, num_local_experts=4, intermediate_size_mlp=64, interleave_moe_layer_step=2, head_dim=16,
    )  # fmt: skip
    return transformers.Llama4ForCausalLM(config)


@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp"])
@pytest.mark.parametrize("family", [granite, qwen2, mixtral, llama4])
def test_compiled_models_are_bit_equal_to_it(family: Any, connectivity: Any) -> None:
    torch.manual_seed(0)
    model = family().eval().double()
    if family is not llama4:  # which has experts of its own
        model.set_experts_implementation("batched_mm")  # takes float64
    with torch.no_grad():
        expected = GenericFarSkipForm(model, connectivity)(input_ids=ids()).logits
        assert not torch.equal(expected, model(ids()).logits)
        assert torch.equal(compiled(model, connectivity=connectivity)(ids()).logits, expected)


def test_equal_to_the_form_written_by_hand() -> None:
    model = exact(tiny_deepseek_v3())
    with torch.no_grad():
        assert torch.equal(GenericFarSkipForm(model)(input_ids=ids()).logits, TransformersFarSkipForm(model)(ids()))
        assert torch.equal(GenericFarSkipForm(model, "none")(input_ids=ids()).logits, model(ids()).logits)


def test_a_parallel_block_is_refused() -> None:
    config = transformers.Cohere2MoeConfig(**COMMON, num_experts=8, num_experts_per_tok=2, head_dim=16)
    model = transformers.Cohere2MoeForCausalLM(config).eval()
    with pytest.raises(NotImplementedError, match="share one read"):
        GenericFarSkipForm(model)(input_ids=ids())
