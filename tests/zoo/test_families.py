# SPDX-License-Identifier: Apache-2.0
"""Families are found by the shape of their configuration, and their tiny models run and have the family's structure."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
import torch
from packaging.version import Version

pytest.importorskip("transformers")

import transformers

from farskip_compile.tools.zoo import build_tiny, moe_families
from farskip_compile.tools.zoo.families import Family, counts_experts
from farskip_compile.tools.zoo.layers import PerLayer, per_layer
from farskip_compile.tools.zoo.sizes import TinySizes, shrink
from farskip_compile.tools.zoo.tiny import CannotBuild, tiny_config

FAMILIES = {family.model_type: family for family in moe_families()}
QUARTER = sorted(FAMILIES)[::4]


def _ids() -> torch.Tensor:
    return torch.randint(0, 128, (2, 10), generator=torch.Generator().manual_seed(0))


def _tiny(config_class: Any, source: str = "") -> Any:
    try:
        return tiny_config(config_class, TinySizes(), source)
    except Exception:  # the class may allow one expert per token only
        return tiny_config(config_class, TinySizes(top_k=1), source)


def _numbers(config: Any) -> dict[str, Any]:
    """The values of a configuration and its parts."""
    values = dict(vars(config))
    for name in getattr(config, "sub_configs", None) or {}:
        values |= vars(values[name])
    return values


def test_families_with_experts_are_found_and_dense_ones_are_not():
    assert {"mixtral", "deepseek_v3", "qwen3_moe", "llama4_text"} <= set(FAMILIES)
    assert not {"llama", "gemma2", "llama4", "nllb-moe"} & set(FAMILIES)
    since_522 = Version(transformers.__version__) >= Version("5.22")
    assert len(FAMILIES) >= (56 if since_522 else 55)


def test_families_are_sorted_and_can_be_imported():
    assert [family.model_type for family in moe_families()] == sorted(FAMILIES)
    assert [family for family in FAMILIES.values() if family.reason is not None] == []
    model_class, config_class = FAMILIES["qwen3_moe"].load()
    assert (model_class.__name__, config_class.__name__) == ("Qwen3MoeForCausalLM", "Qwen3MoeConfig")


@pytest.mark.parametrize("name", QUARTER)
def test_tiny_model_runs_and_depends_on_the_seed_alone(name: str):
    state = torch.random.get_rng_state()
    model, same, other = (build_tiny(FAMILIES[name], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    with torch.no_grad():
        logits, again, others = (m(_ids()).logits for m in (model, same, other))
    assert logits.shape == (2, 10, 128)
    assert bool(torch.isfinite(logits).all())
    assert torch.equal(logits, again)
    assert not torch.equal(logits, others)


@pytest.mark.parametrize("name", QUARTER)
def test_tiny_model_is_small_and_at_least_two_layers_have_experts(name: str):
    model = build_tiny(FAMILIES[name])
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=lambda m: len([*m.modules()]))
    routed = [
        any(re.search(r"(^|\.)experts$", n) or type(m).__name__.endswith("MoE") for n, m in x.named_modules())
        for x in layers
    ]
    assert 4 <= len(layers) <= 6
    assert sum(routed) >= 2


@pytest.mark.parametrize("name", QUARTER)
def test_no_parameter_is_constant(name: str):
    """A weight of one or a gate of zero would hide what it multiplies."""
    state = build_tiny(FAMILIES[name]).state_dict()
    assert [k for k, v in state.items() if v.numel() > 1 and bool((v == v.flatten()[0]).all())] == []


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tiny_configuration_has_eight_experts_and_nothing_is_switched_off(name: str):
    config_class = FAMILIES[name].load()[1]
    default, tiny = _numbers(config_class()), _numbers(_tiny(config_class))
    assert {k for k, v in tiny.items() if counts_experts(k) and v != 8 and "zero" not in k} == set()
    off = {k for k, v in default.items() if v and not tiny.get(k) and not k.startswith("_")}
    # where a stretch of layers begins may become 0
    assert {k for k in off if not k.endswith("offset")} <= {"use_cache"}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tiny_configuration_keeps_all_kinds_of_layers(name: str):
    model_class, config_class = FAMILIES[name].load()
    default = vars(config_class())
    for source in ("", inspect.getsource(inspect.getmodule(model_class) or model_class)):
        tiny = vars(_tiny(config_class, source))
        for key in ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types"):
            assert set(default.get(key) or []) <= set(tiny.get(key) or []), key


def test_layers_that_stand_for_all_are_the_first_of_each_kind():
    kinds = ["linear"] * 5 + ["full"] + ["linear"] * 5 + ["full"]
    dense_first = ["dense"] * 2 + ["sparse"] * 10
    listed = per_layer({"layer_types": kinds, "mlp_layer_types": dense_first, "mlp_only_layers": [0, 1]}, 12)
    chosen = listed.chosen(4)
    assert chosen == [0, 2, 3, 5]
    assert listed.cut(chosen) == {
        "layer_types": ["linear", "linear", "linear", "full"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "mlp_only_layers": [0],
    }


def test_a_short_list_goes_around_until_two_layers_have_experts():
    listed = PerLayer({"blocks": ["mamba", "moe", "attention", "mlp"]}, {}, 4)
    assert listed.chosen(4) == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("name", "value", "small"),
    [
        ("num_experts", None, 8),
        ("enable_moe_block", False, True),
        ("attention_bias", False, False),
        ("n_shared_experts", None, 1),
        ("q_lora_rank", None, None),
        ("residual_multiplier", 1.0, 0.75),
        ("partial_rotary_factor", 1.0, 1.0),
        ("index_topk", 2048, 4),
        ("eos_token_id", 128001, 2),
        ("sliding_window", None, None),
    ],
)
def test_fields_shrink_by_their_role(name: str, value: Any, small: Any):
    assert shrink(name, value, {name: value}, TinySizes()) == small


def test_a_class_that_cannot_be_imported_is_refused_with_the_reason():
    family = dataclasses.replace(FAMILIES["mixtral"], reason="ImportError: no such kernel")
    with pytest.raises(CannotBuild, match="no such kernel"):
        build_tiny(family)


def test_a_model_that_fails_is_refused_with_the_line_of_its_source():
    mixtral = FAMILIES["mixtral"]
    other: Family = dataclasses.replace(mixtral, config_class="LlamaConfig", config_module="transformers")
    with pytest.raises(CannotBuild, match="num_experts_per_tok") as caught:
        build_tiny(other)
    assert "modeling_mixtral.py:" in (caught.value.where.source or "")
