# SPDX-License-Identifier: Apache-2.0
"""The output head is found by what it does; what is not of its form is told, and refused only where it is too large."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farskip_compile import ConfigError
from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.head import find_head
from farskip_compile.healing.distill import self_distill
from tests.distill.common import EAGER, VOCABULARY, batches, small

CPU = torch.device("cpu")
BATCH = as_batch(batches(1, length=20)[0], CPU)


class Causal(nn.Module):
    """Running means in place of attention; `end` makes logits of what the norm gives."""

    def __init__(self, end) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(VOCABULARY, 8), nn.LayerNorm(8)
        self.head, self.end = nn.Linear(8, VOCABULARY), end
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.double()

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None])
        return self.end(self, x)


def in_place(model, x):
    logits = model.head(x)
    logits.mul_(0.5).tanh_()
    return logits * 30.0


def branded(model, x):
    logits = model.head(x)
    logits[..., 3] = -7.0
    return logits


ENDS = {
    "plain": lambda model, x: model.head(x),
    "soft cap": lambda model, x: 5.0 * torch.tanh(model.head(x) / 5.0),
    "in place": in_place,
    "sliced and cast": lambda model, x: model.head(x[:, slice(0, None), :])[:, :].float(),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_head_gives_the_logits(end):
    model = Causal(ENDS[end])
    head = find_head(model, BATCH)
    assert head.module is model.head
    assert head.names == {"weight": "head.weight", "bias": "head.bias"}
    asking = Asking(model, BATCH)
    answer, logits = asking.of(model)(BATCH), model(BATCH.inputs["input_ids"])
    assert "forward" not in vars(model.head)
    assert answer.logits.shape == (2, 1, VOCABULARY)
    assert torch.allclose(answer.logits, logits[:, -1:], rtol=1e-12)
    assert torch.allclose(answer.hidden.logits(answer.hidden.states), logits, rtol=1e-12)


NONE = {
    "a parameter scales them": (lambda model, x: model.head(x) * model.scale, "not what one module makes"),
    "the sum of two": (lambda model, x: model.head(x) + x.sum(-1, keepdim=True), "not what one module makes"),
    "no module": (lambda model, x: x @ model.head.weight.T, "not what one module makes"),
    "it runs twice": (lambda model, x: model.head(x) + 0 * model.head(x[:, :1]).sum().item(), "runs 2 times"),
    "one of them is replaced": (branded, "something else of single positions"),
}


@pytest.mark.parametrize("end", NONE)
def test_what_is_not_of_this_form_is_told(end):
    model = Causal(NONE[end][0])
    assert NONE[end][1] in find_head(model, BATCH)
    logits = model(BATCH.inputs["input_ids"])
    answer = Asking(model, BATCH, memory=2 * 20 * VOCABULARY * 8).of(model)(BATCH)
    assert answer.hidden is None
    assert torch.equal(answer.said, logits)
    with pytest.raises(ConfigError, match=f"more than logits_memory=.*{NONE[end][1]}"):
        Asking(model, BATCH, memory=2 * 20 * VOCABULARY * 8 - 1).of(model)(BATCH)


class Mixing(nn.Module):
    """Makes logits of hidden states, but of all positions together."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, 8, dtype=torch.float64))

    def forward(self, x):
        return x.cumsum(-2) @ self.weight.T


def test_a_module_that_mixes_positions_is_not_a_head():
    model = Causal(lambda model, x: model.head(x))
    model.head = Mixing()
    assert "something else of single positions" in find_head(model, BATCH)


def test_a_tied_head_has_the_name_of_the_embedding():
    model = Causal(lambda model, x: model.head(x))
    model.head = nn.Linear(8, VOCABULARY, bias=False, dtype=torch.float64)
    model.head.weight = model.embed.weight
    assert find_head(model, BATCH).names["weight"] == "embed.weight"
    known = {name: value + 1 for name, value in model.named_parameters()}
    assert torch.equal(find_head(model, BATCH).values(known)["weight"], model.embed.weight + 1)


def test_a_forward_that_failed_is_put_back():
    model = Causal(lambda model, x: model.head(x))
    asking = Asking(model, BATCH)
    model.end = lambda model, x: model.head(x).view(1)
    with pytest.raises(RuntimeError):
        asking.of(model)(BATCH)
    assert "forward" not in vars(model.head)


def test_a_run_says_why_its_logits_are_too_large():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.scale = small(), nn.Parameter(torch.ones(VOCABULARY, dtype=torch.float64))

        def forward(self, ids):
            return self.model(ids) * self.scale

    with pytest.raises(ConfigError, match="not what one module makes"):
        self_distill(Scaled(), batches(2), held_out=batches(1), steps=1, options=EAGER, logits_memory=100)


TINY = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model", "more"),
    [
        (
            "Qwen3MoeConfig",
            "Qwen3MoeForCausalLM",
            {"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2},
        ),
        ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 3.0, "tie_word_embeddings": True}),
        ("CohereConfig", "CohereForCausalLM", {}),
        ("Gemma2Config", "Gemma2ForCausalLM", {"final_logit_softcapping": 2.0}),
    ],
)
def test_models_of_transformers(config, model, more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**TINY, **more)).eval()
    assert find_head(made, BATCH).module is made.lm_head
    answer = Asking(made, BATCH).of(made)(BATCH)
    logits = made(BATCH.inputs["input_ids"]).logits
    assert torch.allclose(answer.hidden.logits(answer.hidden.states), logits, rtol=1e-4, atol=1e-5)
