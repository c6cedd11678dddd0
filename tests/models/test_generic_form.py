# SPDX-License-Identifier: Apache-2.0
"""The oracle for all families: equal to the forms written by hand, and to the compiled model."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.models.generic_form import GenericFarSkipForm, installed
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.compare import assert_gradients_close, run_with_gradients
from tests.compile_each import compile_each
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


def cohere() -> Any:
    """Attention and experts side by side: they share one norm, of which only the attention's reading changes."""
    config = transformers.Cohere2MoeConfig(**COMMON, num_experts=8, num_experts_per_tok=2, head_dim=16)
    return transformers.Cohere2MoeForCausalLM(config)


@pytest.mark.parametrize("family", [granite, qwen2, mixtral, llama4, cohere])
def test_compiled_models_are_bit_equal_to_it(family: Any) -> None:
    names: tuple[Any, ...] = get_args(ConnectivityName)[:-1]
    torch.manual_seed(0)
    model = family().eval().double()
    if family is not llama4:  # which has experts of its own
        model.set_experts_implementation("batched_mm")  # takes float64
    with torch.no_grad():
        runs = compile_each(model, [{"inner": "eager", "connectivity": name} for name in names])
        for name, run in zip(names, runs, strict=True):
            expected = GenericFarSkipForm(model, name)(input_ids=ids()).logits
            unchanged = family is cohere and name == "mlp"  # whose experts don't read the attention beside them
            assert torch.equal(expected, model(ids()).logits) == unchanged
            assert torch.equal(run(ids()).logits, expected), name


def test_equal_to_the_form_written_by_hand() -> None:
    model = exact(tiny_deepseek_v3())
    with torch.no_grad():
        assert torch.equal(GenericFarSkipForm(model)(input_ids=ids()).logits, TransformersFarSkipForm(model)(ids()))
        assert torch.equal(GenericFarSkipForm(model, "none")(input_ids=ids()).logits, model(ids()).logits)


def test_layer_range() -> None:
    model = exact(tiny_deepseek_v3())
    with torch.no_grad():
        expected = GenericFarSkipForm(model, "full", (2, 2))(ids()).logits
        assert torch.equal(compiled(model, connectivity="full", layers=(2, 2))(ids()).logits, expected)
        assert not torch.equal(expected, GenericFarSkipForm(model)(ids()).logits)


def test_gradients() -> None:
    model = exact(tiny_deepseek_v3())
    expected = run_with_gradients(TransformersFarSkipForm(model), model, ids())
    form = GenericFarSkipForm(model)
    output = run_with_gradients(lambda tokens: form(tokens).logits, model, ids())
    assert torch.equal(output[0], expected[0])
    assert_gradients_close(output[1], expected[1], 1e-12)


def test_installed_with_a_cache() -> None:
    """Prefill and decode steps through the model's own `generate`, against the whole sequence at once."""
    model = exact(tiny_deepseek_v3())
    prompt = ids()[:, :5]
    with torch.no_grad(), installed(model):
        tokens = model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=True)
        whole = prompt
        for _ in range(4):
            whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(tokens, whole)
    assert model.forward.__func__ is type(model).forward
    plainly = model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=True)
    assert not torch.equal(plainly, tokens)
