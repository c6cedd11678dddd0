# SPDX-License-Identifier: Apache-2.0
"""PEFT: LoRA on attention and experts is rewired to the form by hand, under the base model's manifest."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import farskip_compile
from farskip_compile import FarSkipWarning, Manifest, OriginalWiringError
from farskip_compile.errors import PartialModelError
from farskip_compile.manifest.adapters import names_without_adapters
from farskip_compile.models.generic_form import GenericFarSkipForm, installed
from tests.compare import run_with_gradients
from tests.handwritten.decoder import Decoder, Experts, farskip_form, token_ids
from tests.integrations.qwen2_moe import COMMON, qwen2, qwen2_form

IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))
ROUTED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EAGER = {"inner": "eager"}
TRACES_NAMES_OF_CLASSES = Version(torch.__version__) >= Version("2.15")


def prepared(model: Any) -> Any:
    farskip_compile.prepare(model)
    return model


def qwen() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**COMMON, num_experts=4, head_dim=16)
    return prepared(transformers.Qwen3MoeForCausalLM(config).double().eval())


def adapted(model: Any, **config: Any) -> Any:
    """With adapters that do something, which those of PEFT don't before they are trained."""
    torch.manual_seed(1)
    asked = {"r": 2, "lora_alpha": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM", **config}
    return prepared(peft.get_peft_model(model, peft.LoraConfig(**asked)))


def compiled(model: Any, **options: Any) -> None:
    model.compile(backend="farskip", fullgraph=True, options={"inner": "eager", **options})


def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_adapters_everywhere_equal_the_form_by_hand() -> None:
    """The PeftModel, and the model in it compiled in place; only adapters, and copies that are trained, get gradients;
    merged in place, and merged for good."""
    model = adapted(qwen2(), target_modules="all-linear", target_parameters=ROUTED, modules_to_save=["mlp.gate"])
    expected = run_with_gradients(lambda ids: qwen2_form(model.get_base_model(), ids), model, IDS)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert expected[1].keys() == trained
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    for place in ("self_attn.o_proj", "mlp.experts", "mlp.shared_expert.up_proj", "mlp.gate"):
        assert any(f"layers.1.{place}." in name for name in trained), place

    around = torch.compile(model, backend="farskip", fullgraph=True, options=EAGER)
    found = run_with_gradients(lambda ids: around(input_ids=ids).logits, model, IDS)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], expected[1][name]) for name in trained)
    assert farskip_compile.reports().compiles[-1].left_out["attention.1"] == ("r0",)
    with torch.no_grad():
        assert (found[0] - logits(model)).abs().max() > 1e-3, "as written it is another function"

        model.merge_adapter()
        torch.compiler.reset()
        assert torch.equal(logits(around), qwen2_form(model.get_base_model(), IDS))
        model.unmerge_adapter()
        merged = copy.deepcopy(model).merge_and_unload()
        compiled(merged, inner="aot_eager")
        assert torch.equal(logits(merged), qwen2_form(merged, IDS))
        torch.testing.assert_close(logits(merged), expected[0], rtol=1e-9, atol=1e-9)


class Padded(Experts):
    """Each expert gets all tokens, with a weight that may be zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.choose(x)
        gates = [(weights * (chosen == number)).sum(-1, keepdim=True) for number in range(len(self.experts))]
        routed = sum(expert(x) * gate for expert, gate in zip(self.experts, gates, strict=True))
        return routed + self.shared(x)


def test_adapters_on_experts_that_are_linear_layers() -> None:
    """In a model that is not of transformers: each expert's two layers, and the router."""

    model = adapted(Decoder(Padded, layers=2).double(), target_modules=["up", "down", "router"], task_type=None)
    expected = run_with_gradients(lambda ids: farskip_form(model.get_base_model(), ids), model, token_ids())
    rewired = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "aot_eager"})
    found = run_with_gradients(rewired, model, token_ids())
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    assert any(".experts.0.experts.3.up.lora_A." in name for name in found[1])
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-9, atol=1e-12)


def test_a_manifest_holds_for_base_adapters_and_merged_weights(tmp_path: Path) -> None:
    """Made of any of them it is the same; the adapter that it lies beside loads onto a model that runs rewired or not
    at all, and so does what is merged."""
    model = adapted(qwen(), target_modules=["o_proj"], target_parameters=ROUTED, modules_to_save=["gate"])
    manifest = farskip_compile.describe(model, input_ids=IDS)
    assert manifest == farskip_compile.describe(qwen(), IDS)
    assert manifest.fingerprint is not None
    assert "model.layers.1.mlp.gate.weight" in manifest.fingerprint.used

    adapter, again = tmp_path / "adapter", tmp_path / "again"
    model.save_pretrained(adapter)
    original = json.loads((adapter / "adapter_config.json").read_text())
    assert farskip_compile.save_manifest(manifest, adapter) == adapter / "farskip.json"
    assert _types(adapter) == ("FARSKIP_LORA", "LORA")
    loaded = peft.PeftModel.from_pretrained(qwen(), adapter)
    for call in (loaded, loaded.get_base_model()):
        with pytest.raises(OriginalWiringError, match=r"farskip\.json describes, and it is about to run in its orig"):
            call(input_ids=IDS)
    prepared(loaded).get_base_model().compile(
        backend="farskip", fullgraph=True, options={**EAGER, "manifest": str(adapter)}
    )
    with torch.no_grad():
        expected = GenericFarSkipForm(model.get_base_model())(IDS).logits
        assert torch.equal(logits(loaded), expected)
    loaded.save_pretrained(again)  # without the file
    assert _types(again) == ("FARSKIP_LORA", "LORA")
    assert farskip_compile.load_manifest(again) == manifest

    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    farskip_compile.save_manifest(manifest, merged)
    healed = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float64)
    with pytest.raises(OriginalWiringError):
        healed(IDS)
    compiled(prepared(healed), manifest=str(merged))
    with torch.no_grad():
        torch.testing.assert_close(logits(healed), expected, rtol=1e-9, atol=1e-9)

    farskip_compile.save_manifest(manifest, adapter, guard=False)
    assert json.loads((adapter / "adapter_config.json").read_text()) == original


def test_peft_alone_refuses_a_guarded_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(qwen(), target_modules=["q_proj", "o_proj"])
    model.save_pretrained(tmp_path)
    farskip_compile.save_manifest(Manifest("full"), tmp_path)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, "FARSKIP_LORA")
    with pytest.raises(KeyError, match="FARSKIP_LORA"):
        peft.PeftModel.from_pretrained(qwen(), tmp_path)


def test_generate_does_not_pass_by_what_is_compiled() -> None:
    """PEFT's `generate` calls the model inside; compiled there, it generates what the form by hand does."""
    model = adapted(qwen(), target_modules=["q_proj", "o_proj"])
    ask = {"input_ids": IDS, "max_new_tokens": 1, "do_sample": False, "use_cache": False}
    around = torch.compile(model, backend="farskip", fullgraph=True, options=EAGER)
    with pytest.raises(OriginalWiringError, match="`generate` runs the model") as caught:
        around.generate(**ask)
    assert "get_base_model().compile(" in caught.value.way_out
    in_place = copy.deepcopy(model)
    compiled(in_place)
    with pytest.raises(OriginalWiringError, match="`generate` of a PeftModel") as caught:
        in_place.generate(**ask)
    assert "get_base_model().compile(" in caught.value.way_out
    compiled(in_place, strict=False)
    with pytest.warns(FarSkipWarning, match="`generate` of a PeftModel"):
        plain = in_place.generate(**ask)
    in_place.compile(backend="eager")
    assert torch.equal(in_place.generate(**ask), plain), "other backends are left alone"

    with installed(model.get_base_model()):
        expected = model.generate(**ask)
    assert not torch.equal(expected, plain)
    compiled(model.get_base_model())
    assert torch.equal(model.generate(**ask), expected)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_dora(fullgraph: bool) -> None:
    """It asks for the name of a parameter's class, which Dynamo traces from torch 2.15 on."""
    model = adapted(Decoder(Padded, layers=2).double(), target_modules=["out"], use_dora=True, task_type=None)
    rewired = torch.compile(model, backend="farskip", fullgraph=fullgraph, options=EAGER)
    if TRACES_NAMES_OF_CLASSES:
        assert torch.equal(rewired(token_ids()), farskip_form(model.get_base_model(), token_ids()))
    elif not fullgraph:
        with pytest.raises(PartialModelError, match="DoRA") as caught:
            rewired(token_ids())
        assert "merge_and_unload" in caught.value.way_out
    else:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="__module__"):
            rewired(token_ids())


def test_names_come_from_where_adapters_are() -> None:
    """Not from what they are called: a module of the model's own may be called like PEFT's."""

    def model() -> torch.nn.Module:
        return torch.nn.ModuleDict({"base_layer": torch.nn.Linear(2, 2), "other": torch.nn.Embedding(3, 2)})

    tokens = peft.LoraConfig(r=1, target_modules=["base_layer"], trainable_token_indices={"other": [0]})
    found = peft.get_peft_model(model(), tokens)
    names = names_without_adapters(found)
    assert {outside for outside in names.values() if outside is not None} == {
        "base_layer.weight",
        "base_layer.bias",
        "other.weight",
    }
    assert names["base_model.model.base_layer.base_layer.weight"] == "base_layer.weight"
    assert names["base_model.model.base_layer.lora_A.default.weight"] is None
    saved = peft.LoraConfig(r=1, target_modules=["base_layer"], modules_to_save=["other"])
    names = names_without_adapters(peft.get_peft_model(model(), saved))
    assert names["base_model.model.other.modules_to_save.default.weight"] == "other.weight"
    assert names["base_model.model.other.original_module.weight"] == "other.weight"


def _types(folder: Path) -> tuple[str, str]:
    found = json.loads((folder / "adapter_config.json").read_text())
    return found["peft_type"], found["farskip_peft_type"]
