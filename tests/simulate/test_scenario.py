# SPDX-License-Identifier: Apache-2.0
"""What can't be is refused before anything is built, in words that help."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from farskip_compile.costs import load_profile
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate import Scenario
from farskip_compile.measure.simulate.scenario import KNOWN, architecture

pytest.importorskip("transformers")


def made(**options: Any) -> Scenario:
    return Scenario(**{"model": "deepseek-v3", "device": "mi300x", "batch": 64, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "deepsek-v3"}, "did you mean 'deepseek-v3'"),
        ({"model": "/no/such/folder"}, "folder with a config.json"),
        ({"device": "mi300"}, "no hardware profile is called 'mi300'"),
        ({"ep": 0}, "ep=0"),
        ({"tp": True}, "tp=True"),
        ({"batch": 2.0}, "batch=2.0"),
        ({"layers": 0}, "layers=0"),
        ({"ep": 8, "tp": 3}, "neither divides the other"),
        ({"ep": 8, "batch": 12}, "12 sequences can't be divided among 8 data-parallel groups"),
        ({"ep": 16, "tp": 8, "exchange": "all-reduce"}, "all tokens on all ranks"),
        ({"ep": 4, "tp": 8}, "ranks without experts"),
        ({"ep": 4, "tp": 8, "exchange": "all-gather"}, "ranks without experts"),
        ({"tp": 8, "phase": "train"}, "data-parallel attention only"),
        ({"phase": "prefil"}, "phase='prefil'"),
        ({"products": "int4"}, "products='int4'"),
        ({"device": "cpu-gloo", "products": "float8"}, "no unit for 8-bit"),
        ({"exchange": "gather"}, "exchange='gather'"),
        ({"skew": -1.0}, "skew=-1.0"),
        ({"skew": 1.0, "loads": (1.0, 2.0)}, "twice"),
        ({"loads": (0.0, 0.0)}, "not all of them 0"),
        ({"interference": -0.1}, "interference=-0.1"),
        ({"measured": 0.0}, "measured=0.0"),
        ({"slower": 0.0}, "slower=0.0"),
        ({"slower": 2.0, "measured": 1.0}, "both say how long compute takes"),
        ({"ep": 8, "tp": 8, "exchange": "all-to-all", "batch": 1, "prompt": 3}, "can't be sliced"),
        ({"micro_batches": 0}, "micro_batches=0 must be a whole number"),
        ({"micro_batches": 3}, "a batch is predicted whole or in 2 parts"),
        ({"micro_batches": 2, "batch": 8}, "of a data-parallel group, 1, can't be halved"),
        ({"micro_batches": 2, "batch": 24}, "multiple of 16"),
        (
            {"micro_batches": 2, "ep": 8, "tp": 8, "exchange": "all-to-all", "batch": 2, "prompt": 12},
            "12 tokens of a part can't be sliced for 8 ranks",
        ),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        made(**options)


def test_an_absurd_profile_is_refused() -> None:
    profile = load_profile("mi300x")
    with pytest.raises(ConfigError, match="memory_bandwidth"):
        made(device=dataclasses.replace(profile, memory_bandwidth=-1.0))


@pytest.mark.parametrize(
    ("options", "exchange", "ranks", "groups"),
    [
        ({"ep": 8, "tp": 8}, "all-reduce", 8, 1),
        ({"ep": 8, "tp": 8, "exchange": "all-to-all"}, "all-to-all", 8, 1),
        ({"ep": 64, "tp": 8}, "all-to-all", 64, 8),
        ({"ep": 8, "tp": 1}, "all-to-all", 8, 8),
        ({"ep": 8, "tp": 1, "exchange": "all-gather"}, "all-gather", 8, 8),
        ({"ep": 64, "tp": 8, "exchange": "all-gather"}, "all-gather", 64, 8),
        ({"ep": 1, "tp": 1, "phase": "train"}, "all-to-all", 1, 1),
    ],
)
def test_layout(options: dict[str, Any], exchange: str, ranks: int, groups: int) -> None:
    found = made(**options)
    assert (found.exchanges, found.ranks, found.groups) == (exchange, ranks, groups)
    assert found.tokens == 64 // groups * 2048
    assert dataclasses.replace(found, phase="decode").tokens == 64 // groups


PUBLISHED = {
    "deepseek-v3": (61, 671),
    "deepseek-v2": (60, 236),
    "deepseek-v2-lite": (27, 15.7),
    "llama4-scout": (48, 108),
    "qwen3-30b-a3b": (48, 30.5),
    "qwen3-235b-a22b": (94, 235),
    "mixtral-8x22b": (56, 141),
    "gpt-oss-120b": (36, 117),
    "kimi-k2": (61, 1026),
    "instella-moe-16b": (27, 16),
}
"""Layers, and billions of parameters as the models' own pages have them."""


@pytest.mark.parametrize("name", [one.name for one in KNOWN])
def test_dimensions_give_the_published_number_of_parameters(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    layers, billions = PUBLISHED[name]
    config = architecture(name).config()
    assert config.num_hidden_layers == layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)


def test_layers_are_cut() -> None:
    assert architecture("gpt-oss-120b").config(5).num_hidden_layers == 5
    with pytest.raises(ConfigError, match="has 36 layers, not 37"):
        architecture("gpt-oss-120b").config(37)


def test_a_folder_with_a_configuration_is_a_model(tmp_path) -> None:
    architecture("qwen3-30b-a3b").config(2).save_pretrained(tmp_path)
    found = architecture(str(tmp_path))
    assert found.config().num_hidden_layers == 2
    assert found.config().num_experts == 128
