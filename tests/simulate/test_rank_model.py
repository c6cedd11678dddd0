# SPDX-License-Identifier: Apache-2.0
"""What one rank holds of a model: shapes, and that all ranks together hold all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.rank_model import RankModel, rank_model
from tests.simulate.tiny import SMALL, scenario

transformers = pytest.importorskip("transformers")


def model_of(name: str = "deepseek-v3", **options: Any) -> RankModel:
    found = scenario(name, **options)
    with fake_ranks(found.ranks):
        return rank_model(found)


def whole_shapes(name: str) -> dict[str, torch.Size]:
    """Of the model as transformers makes it."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(scenario(name).architecture.config())
    return {key: value.shape for key, value in model.named_parameters()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "cut",
    [
        {"ep": 4, "tp": 4},
        {"ep": 4, "tp": 1},
        {"ep": 4, "tp": 2, "exchange": "all-to-all"},
        {"ep": 4, "tp": 2, "exchange": "all-gather"},
    ],
)
def test_every_matrix_is_cut_along_one_dimension_or_whole(name: str, cut: dict[str, Any]) -> None:
    whole = whole_shapes(name)
    found = {key: value.shape for key, value in model_of(name, **cut).module.named_parameters()}
    assert found.keys() == whole.keys()
    for key, shape in found.items():
        ratios = [full // part for full, part in zip(whole[key], shape, strict=True) if full != part]
        assert len(ratios) <= 1, key
        if ".experts." in key:
            assert ratios == [cut["ep"]], key
            assert shape[0] * cut["ep"] == whole[key][0], key
        elif key.endswith(("q_proj.weight", "q_b_proj.weight", "kv_b_proj.weight", "o_proj.weight")):
            assert ratios == ([cut["tp"]] if cut["tp"] > 1 else []), key
        elif key.endswith(("norm.weight", "embed_tokens.weight", "kv_a_proj_with_mqa.weight", "q_a_proj.weight")):
            assert ratios == [], key


def test_fewer_heads_of_keys_than_ranks_are_repeated() -> None:
    """Qwen3 has 2 here: each of 4 ranks holds one."""
    found = dict(model_of("qwen3-30b-a3b", ep=4, tp=4).module.named_parameters())
    assert found["model.layers.0.self_attn.k_proj.weight"].shape == (64, 512)
    assert found["model.layers.0.self_attn.q_proj.weight"].shape == (128, 512)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ep": 3, "tp": 1, "batch": 9}, "32 experts can't be divided among 3 ranks"),
        ({"ep": 32, "tp": 32, "name": "llama4-scout"}, "16 experts can't be divided among 32 ranks"),
        ({"ep": 8, "tp": 8, "name": "qwen3-30b-a3b", "heads": 12}, "12 parts of .*q_proj can't be cut among 8 ranks"),
        ({"loads": (1.0, 2.0)}, "2 loads are given, but the model has 32 experts"),
    ],
)
def test_what_does_not_divide_is_refused(options: dict[str, Any], said: str, monkeypatch) -> None:
    options = dict(options)
    if heads := options.pop("heads", None):
        monkeypatch.setitem(SMALL[options["name"]], "num_attention_heads", heads)
    with pytest.raises(ConfigError, match=said):
        model_of(**options)


def test_a_model_without_experts_is_refused(tmp_path) -> None:
    from farskip_compile.measure.simulate import Scenario

    transformers.LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    found = Scenario(model=str(tmp_path), device="mi300x", ep=4, batch=4)
    with fake_ranks(4), pytest.raises(ConfigError, match="no routed experts"):
        rank_model(found)


def test_decode_reads_a_cache() -> None:
    """Of latent attention the latents, of other attention heads of keys and values."""
    latent = dict(model_of(phase="decode", prompt=100).module.named_buffers())
    assert latent["model.layers.0.self_attn.farskip_cached_keys"].shape == (8, 1, 100, 64 + 16)
    heads = dict(model_of("llama4-scout", phase="decode", prompt=100).module.named_buffers())
    assert heads["model.layers.0.self_attn.farskip_cached_keys"].shape == (8, 1, 100, 64)
    assert heads["model.layers.0.self_attn.farskip_cached_values"].shape == (8, 1, 100, 64)


def test_recorded_loads_count() -> None:
    loads = (3.0, *[1.0] * 31)
    assert model_of(loads=loads).imbalance == pytest.approx(10 / 34 * 4)
