# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT: rewired like the model that they adapt, merged or not, and under its manifest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import transformers

import farskip_compile
from farskip_compile import CompileReport, Manifest, describe
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.adapters import without_adapters
from tests.compile_each import compile_each

IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))


def base(layers: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        initializer_range=0.2,
        pad_token_id=0,
    )
    model = transformers.DeepseekV3ForCausalLM(config).double().eval()
    farskip_compile.prepare(model)
    return model


def adapted(modules: list[str] | str, parameters: list[str] | None = None) -> Any:
    """With adapters that do something, which PEFT's don't before they are trained."""
    config = peft.LoraConfig(
        r=2, lora_alpha=4, init_lora_weights=False, target_modules=modules, target_parameters=parameters
    )
    return peft.get_peft_model(base(), config).eval()


def logits(model: Any, *each: dict[str, Any]) -> list[torch.Tensor]:
    """Under each of these options, from one capture."""
    torch.compiler.reset()
    runs = compile_each(model, [{"inner": "eager", **options} for options in each])
    with torch.no_grad():
        return [run(input_ids=IDS, use_cache=False).logits for run in runs]


ADAPTED: dict[str, tuple[Any, ...]] = {
    "attention": (["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],),
    "output": (["o_proj"],),
    "experts": ([], ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "everything": ("all-linear",),
}


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of the base model."""
    return describe(base(), IDS, use_cache=False)


@pytest.mark.parametrize("what", ADAPTED)
def test_merged_equals_unmerged(what: str, manifest: Manifest) -> None:
    """And under the manifest of the base model the adapted one is rewired to the same bits."""
    wishes = [{"connectivity": one} for one in ("full", "mlp", "attention")] if what == "output" else [{}]
    model = adapted(*ADAPTED[what])
    farskip_compile.prepare(model)
    reports: list[CompileReport] = []
    asked = [{**options, "on_report": reports.append} for options in [*wishes, {"manifest": manifest}]]
    *unmerged, under_manifest = logits(model, *asked)
    assert torch.equal(under_manifest, unmerged[0])
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, *asked[:-1]), unmerged, rtol=1e-10, atol=1e-10)
    assert len(reports) == 2 * len(wishes) + 1
    assert {report.terms for report in reports} == {("e", "a0", "r0", "s0", "a1", "r1", "s1")}
    with torch.no_grad():
        assert (merged(IDS).logits - base()(IDS).logits).abs().max() > 1e-3, "the adapters do something"


def test_prepare_changes_nothing_but_how_experts_get_their_weight() -> None:
    model = adapted(*ADAPTED["everything"])
    names = [name for name, _ in model.named_parameters()]

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        output = model(input_ids=IDS).logits
        output.square().sum().backward()
        return [output, *(value.grad for value in model.parameters() if value.grad is not None)]

    before = results()
    preparation = farskip_compile.prepare(model)
    assert "adapters of parameters in" in str(preparation)
    assert all(map(torch.equal, results(), before))
    assert [name for name, _ in model.named_parameters()] == names
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, base()(IDS).logits)
    preparation.undo()
    assert not any("forward" in vars(module) and "ParamWrapper" in str(type(module)) for module in model.modules())
    assert all(map(torch.equal, results(), before))


def test_the_manifest_of_another_base_model_does_not_hold() -> None:
    with pytest.raises(ManifestError, match="ends after 4 sub-blocks"):
        logits(adapted(["o_proj"]), {"manifest": describe(base(3), IDS, use_cache=False)})


def test_names_under_adapters() -> None:
    known = {"a.q.weight", "a.o.weight", "a.up", "b.weight"}
    names = {
        "a.q.base.weight": "a.q.weight",
        "a.q.lora.default.weight": None,
        "a.base.base.up": "a.up",
        "a.lora.up": "a.up",
        "b.weight": ...,  # known
        "c.weight": ...,
        "weight": ...,
    }
    found = without_adapters(names, known)
    assert found == {name: inner for name, inner in names.items() if inner is not ...}
