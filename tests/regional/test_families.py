# SPDX-License-Identifier: Apache-2.0
"""Families of transformers, layer by layer: the table of the whole model, and its logits, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers")
from transformers.utils import output_capturing

import farskip_compile
from farskip_compile.tools.regional.recording import USERS
from farskip_compile.tools.zoo.families import moe_families
from farskip_compile.tools.zoo.tiny import build_tiny

FAMILIES = {family.model_type: family for family in moe_families()}
COMPILED = (
    "afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "doge", "dots1", "dots3_note_text", "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint",
    "gemma4_text", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "jamba", "jetmoe", "kimi_linear",
    "kolibri1", "laguna", "lara_mini", "lfm2_moe", "llama4_text", "mellum", "mimo_v2_flash", "minimax_m2",
    "minimax_m3_vl_text", "mistral4", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "sarvam_mla", "sarvam_moe", "solar_open", "zaya",
)  # fmt: skip
"""Those that compile whole without `prepare` and whose layers compile by themselves."""
IDS = torch.randint(0, 128, (2, 10), generator=torch.Generator().manual_seed(0))


FEW = ("deepseek_v3", "gemma4_text", "llama4_text", "nemotron_h", "qwen3_next")


def check(name: str) -> None:
    torch.compiler.reset()
    farskip_compile.reports().clear()
    model = build_tiny(FAMILIES[name])
    whole = copy.deepcopy(model)
    whole.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        expected = whole(IDS, use_cache=False).logits
    (report,) = (report for report in farskip_compile.reports().compiles if report.rows)
    torch.compiler.reset()
    regional = farskip_compile.regional(model, "full", inner="eager")
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
    assert regional.table == report.table


@pytest.mark.parametrize("name", FEW)
def test_the_table_is_that_of_the_whole_model(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", [name for name in COMPILED if name in FAMILIES and name not in FEW])
def test_all_other_families(name: str) -> None:
    check(name)


def test_any_number_of_models_may_let_their_layers_record() -> None:
    """A wrapper for each of them would end in a RecursionError, in the model that comes after some sixty others."""
    collector = output_capturing._active_collector
    earlier = getattr(collector, USERS, 0)
    made = [farskip_compile.regional(build_tiny(FAMILIES["mixtral"]), "full", inner="eager") for _ in range(3)]
    plain = output_capturing.CompileableContextVar
    assert type(collector).__bases__ == (plain,)
    for one, left in zip([made[1], made[0], made[0], made[2]], [2, 1, 1, 0], strict=True):
        one.undo()
        assert getattr(collector, USERS) == earlier + left
    assert (type(collector) is plain) == (earlier == 0)
