# SPDX-License-Identifier: Apache-2.0
"""A model is told from every other that says something else, and known again when it is made anew."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from farskip_compile import ConfigError
from farskip_compile.healing.causal.identity import checksum
from farskip_compile.healing.distill.teacher_cache import CachedTeacher
from tests.distill.common import small


@dataclass
class Routing:
    top_k: int = 2
    scores: str = "sigmoid"
    groups: list[int] = field(default_factory=lambda: [1, 2])


class Config:
    def __init__(self) -> None:
        self._name_or_path = "here"
        self.routing = Routing()
        self.scale = 2.5
        self.dtype = torch.float32
        self.itself = self


class Router(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.renormalise = True
        self.names = {"b", "a"}
        self.table = torch.arange(3.0)
        self.settings = argparse.Namespace(temperature=1.0)
        self.activation = nn.functional.silu
        self.weight = nn.Parameter(torch.arange(12.0).view(4, 3))
        self.register_buffer("e_score_correction_bias", torch.zeros(4))
        self.register_buffer("frequencies", torch.ones(2), persistent=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = Config()
        self.first, self.second = Router(config), Router(config)


def swapped(model: Model) -> None:
    """Two experts: sums do not see it."""
    model.first.weight.data = model.first.weight.data[[1, 0, 2, 3]]


CHANGES = {
    "a weight": lambda model: model.second.weight.data[0, 0].add_(1e-7 + 1.0),
    "two rows": swapped,
    "its type": lambda model: model.bfloat16(),
    "a buffer": lambda model: model.second.e_score_correction_bias[2].add_(0.125),
    "a buffer that is not saved": lambda model: model.first.frequencies.mul_(2),
    "a tensor": lambda model: model.first.table.mul_(2),
    "an attribute of a module": lambda model: setattr(model.second, "renormalise", False),
    "an attribute of the configuration": lambda model: setattr(model.first.config, "scale", 1.0),
    "routing within the configuration": lambda model: setattr(model.first.config.routing, "top_k", 1),
    "scores": lambda model: setattr(model.first.config.routing, "scores", "softmax"),
    "a list": lambda model: model.first.config.routing.groups.append(3),
    "a namespace": lambda model: setattr(model.first.settings, "temperature", 2.0),
    "a function": lambda model: setattr(model.first, "activation", nn.functional.gelu),
    "the class": lambda model: setattr(model.first, "__class__", type("Other", (Router,), {})),
    "a name": lambda model: model.first.register_buffer("other", torch.zeros(1)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_model(what: str) -> None:
    model = Model()
    with torch.no_grad():
        CHANGES[what](model)
    assert checksum(model) != checksum(Model())


def test_the_same_model() -> None:
    model = Model()
    model.first.config._name_or_path = "elsewhere"
    model.eval().requires_grad_(False)
    assert checksum(model) == checksum(Model())


def test_another_process_gives_the_same() -> None:
    """Built-in models hold process groups and sets: no address and no order of hashes may be in it."""
    program = "from tests.distill.common import small; from farskip_compile.healing.causal.identity import checksum\n"
    program += "from tests.distill.test_identity import Model; print(checksum(small()), checksum(Model()))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [checksum(small()), checksum(Model())]


def deepseek(**more) -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8}
    rotary = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "vocab_size": 32, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM(DeepseekV3Config(**{**sizes, **heads, **rotary, **experts, **more}))


def corrected() -> nn.Module:
    model = deepseek()
    model.model.layers[1].mlp.gate.e_score_correction_bias[0] = 1.0
    return model


@pytest.mark.parametrize(
    "make",
    [
        corrected,
        lambda: deepseek(num_experts_per_tok=3),
        lambda: deepseek(norm_topk_prob=False),
        lambda: deepseek(routed_scaling_factor=1.0),
        lambda: deepseek(topk_group=2),
    ],
    ids=["bias of the router", "top-k", "renormalised", "scale", "groups"],
)
def test_a_cache_is_of_one_routing(make, tmp_path) -> None:
    """The parameters are the same, and the logits are not."""
    pytest.importorskip("transformers")
    model, other = deepseek(), make()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    CachedTeacher(tmp_path, {"model": checksum(model)}, k=2)
    CachedTeacher(tmp_path, {"model": checksum(deepseek())}, k=2)
    with pytest.raises(ConfigError, match="another model"):
        CachedTeacher(tmp_path, {"model": checksum(other)}, k=2)


@dataclass
class Reserved:
    """Refuses to say what differs between layers, as configurations of transformers do."""

    heads: int = 4

    def __getattribute__(self, name):
        if name == "heads":
            raise AttributeError("ask the layers")
        return super().__getattribute__(name)


def test_what_a_configuration_does_not_say_aloud_counts():
    found = []
    for heads in (4, 8):
        model = nn.Linear(2, 2)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        model.config = Reserved(heads)
        found.append(checksum(model))
    assert found[0] != found[1]
