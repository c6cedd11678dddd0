# SPDX-License-Identifier: Apache-2.0
"""`device_map`: on one device nothing changes; hooks of accelerate are refused in every way of compiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook

import farskip_compile
from farskip_compile import ConfigError, FarSkipWarning
from farskip_compile.errors import ManifestError, PartialModelError
from tests.integrations.qwen2_moe import qwen2, qwen2_form

IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))
PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
ON_CPU = dict.fromkeys(PARTS, "cpu")
EAGER = {"inner": "eager"}
WITHOUT_KERNELS = {"experts_implementation": "batched_mm"}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, ON_CPU], ids=["auto", "one", "each part"])
@torch.no_grad()
def test_one_device_needs_no_hooks(device_map: Any, tmp_path: Path) -> None:
    qwen2(torch.float32).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map, **WITHOUT_KERNELS)
    assert not any(hasattr(part, "_hf_hook") for part in model.modules())
    farskip_compile.prepare(model)
    model.compile(backend="farskip", fullgraph=True, options=EAGER)
    found = model(IDS).logits
    assert torch.equal(found, qwen2_form(model, IDS))
    assert farskip_compile.reports().compiles[-1].left_out["attention.1"] == ("r0",)


def hooked(how: str, folder: Path) -> Any:
    model = qwen2(torch.float32)
    if how == "cpu offload":
        return cpu_offload(model, execution_device=torch.device("cpu"))
    if how == "forced hooks":
        return dispatch_model(model, ON_CPU, main_device="cpu", force_hooks=True)
    return dispatch_model(model, {**ON_CPU, "model.layers.1": "disk"}, main_device="cpu", offload_dir=folder)


@torch.no_grad()
def test_hooks_that_move_nothing_are_refused_or_part_of_the_graph(tmp_path: Path) -> None:
    """Dynamo traces those of accelerate 1.16, once they have run."""
    model = hooked("forced hooks", tmp_path)
    plain, expected = model(IDS).logits, qwen2_form(qwen2(torch.float32), IDS)
    compiled = torch.compile(model, backend="farskip", options=EAGER)
    try:
        found = compiled(IDS).logits
    except PartialModelError:
        with pytest.raises(PartialModelError, match="accelerate's hooks"):
            compiled(IDS)
        return
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("how", ["cpu offload", "disk offload"])
@torch.no_grad()
def test_hooks_are_refused(how: str, tmp_path: Path) -> None:
    """Whole, layer by layer, and where a manifest is asked for; the way out is one device."""
    model = hooked(how, tmp_path)
    expected = model(IDS).logits
    assert any(isinstance(getattr(part, "_hf_hook", None), AlignDevicesHook) for part in model.modules())
    with pytest.raises(PartialModelError, match="accelerate's hooks") as caught:
        torch.compile(model, backend="farskip", options=EAGER)(IDS)
    assert "onto one device" in caught.value.way_out
    assert "torch.compiler.reset()" in caught.value.way_out
    with pytest.raises(PartialModelError):
        torch.compile(model, backend="farskip", options=EAGER)(IDS)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="AlignDevicesHook"):
        torch.compile(model, backend="farskip", fullgraph=True, options=EAGER)(IDS)
    with pytest.raises(ManifestError, match="accelerate's hooks"):
        farskip_compile.describe(model, IDS)
    if how != "cpu offload":  # there the hooks are on parts of layers
        with pytest.raises(ConfigError, match=r"replaced by accelerate\.hooks\.") as refused:
            farskip_compile.regional(model, inner="eager")
        assert len(refused.value.reason) < 200
    torch.compiler.reset()
    with pytest.warns(FarSkipWarning, match="accelerate's hooks"):
        unchanged = torch.compile(model, backend="farskip", options={**EAGER, "strict": False})(IDS).logits
    assert torch.equal(unchanged, expected)
