# SPDX-License-Identifier: Apache-2.0
"""A model of transformers, saved and loaded as its users do it, with the manifest in its `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from farskip_compile import describe, load_manifest, save_manifest
from farskip_compile.errors import ManifestError
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 128, (2, 10), generator=torch.Generator().manual_seed(0))


def compiled(model: Any, **options: Any) -> torch.Tensor:
    torch.compiler.reset()
    with torch.no_grad():
        return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})(
            IDS
        ).logits


def test_saved_loaded_and_compiled(tmp_path: Path) -> None:
    model = tiny_deepseek_v3()
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    save_manifest(describe(model, IDS), tmp_path / "config.json")
    after = json.loads((tmp_path / "config.json").read_text())
    assert list(after) == [*before, "farskip_dtype", "farskip_model_type", "farskip"]
    assert {key for key, value in before.items() if after[key] != value} == {"architectures", "dtype", "model_type"}

    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    logits = compiled(loaded, manifest=tmp_path)
    assert torch.equal(logits, TransformersFarSkipForm(model)(IDS))
    assert not torch.equal(logits, model(IDS).logits)
    # it goes along when the model is saved again, and with its configuration
    loaded.save_pretrained(tmp_path / "again")
    assert load_manifest(tmp_path / "again") == load_manifest(tmp_path)
    assert torch.equal(compiled(loaded, manifest=loaded.config.to_dict()), logits)


def test_another_checkpoint_of_the_family(tmp_path: Path) -> None:
    model = tiny_deepseek_v3()
    model.save_pretrained(tmp_path)
    save_manifest(describe(model, IDS), tmp_path)
    deeper = tiny_deepseek_v3(layers=5)
    with pytest.raises(ManifestError, match=r"a sub-block attention\.4 .* after the 8 of the manifest .*farskip\.json"):
        compiled(deeper, manifest=tmp_path)


def test_amds_keys_in_a_configuration(tmp_path: Path) -> None:
    """What Instella-MoE says; its model type may well be loaded by the code of DeepSeek-V3."""
    model = tiny_deepseek_v3()
    model.config.farskip = True
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(compiled(loaded, manifest=tmp_path), TransformersFarSkipForm(model)(IDS))


def test_tied_weights(tmp_path: Path) -> None:
    model = tiny_deepseek_v3()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    manifest = describe(model, IDS)
    assert manifest.fingerprint is not None
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= manifest.fingerprint.others.keys()
    compiled(model, manifest=manifest)
