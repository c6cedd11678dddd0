# SPDX-License-Identifier: Apache-2.0
"""Every MoE family of transformers: a guarded checkpoint loads to the bit and guarded, or is refused by name.

The class of fault: transformers looks up by the type of a model how to convert its weights, so that a checkpoint of a
type which it does not know comes with random experts, from whatever class is asked. The weights are compared with those
that were saved; nothing of the conversion is known here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from farskip_compile import Manifest, save_manifest
from farskip_compile.compiler.guard.forward import is_guarded
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import ParameterFingerprint
from farskip_compile.tools.zoo import build_tiny, moe_families
from farskip_compile.tools.zoo.families import Family

FAMILIES = {family.model_type: family for family in moe_families()}
FEW = ("deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe")
"""Experts that are saved one by one, and stacked; a router under another name."""
WITHOUT_AUTO = {"mistral4"}
"""For which transformers has a class, and no entry in `AutoModelForCausalLM`."""

ALONE = """
import importlib, sys, transformers
for line in sys.stdin.read().split():
    folder, module, name = line.split(":")
    cls = getattr(importlib.import_module(module), name)
    for loader in (cls, cls.config_class, transformers.AutoModelForCausalLM):
        try:
            loader.from_pretrained(folder)
        except (AttributeError, ValueError) as error:
            print(f"{folder} {error}")
assert not [name for name in sys.modules if name.startswith("farskip")]
"""


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def saved(family: Family, folder: Path) -> Any:
    """A model of the family, whose guarded checkpoint is in `folder`."""
    model = build_tiny(family, layers=2)
    model.save_pretrained(folder)  # type: ignore[operator]
    save_manifest(Manifest("full"), folder)
    return model


def loads_right(family: Family, folder: Path) -> None:
    model, cls = saved(family, folder), family.load()[0]
    state = model.state_dict()
    for load in (cls, *([] if family.model_type in WITHOUT_AUTO else [AutoModelForCausalLM])):
        loaded = load.from_pretrained(folder)
        assert type(loaded) is cls
        assert loaded.state_dict().keys() == state.keys()
        assert [name for name, value in loaded.state_dict().items() if not torch.equal(value, state[name])] == []
        assert is_guarded(loaded)


def refused_alone(folders: dict[str, Path]) -> None:
    """Each of the folders is refused by the class, by its configuration and by Auto, in a process without this package,
    in words that say what to do or name the type."""
    lines = [f"{folder}:{FAMILIES[name].module}:{FAMILIES[name].class_name}" for name, folder in folders.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, env=environment, input="\n".join(lines), capture_output=True, text=True, check=True)
    for name, folder in folders.items():
        said = [line for line in done.stdout.splitlines() if line.startswith(f"{folder} ")]
        assert sum("import farskip_compile before they are loaded" in line for line in said) == 2, name
        assert sum(f"model type `farskip_{name}`" in line for line in said) == 1, name


@pytest.mark.parametrize("name", FEW)
def test_it_loads_to_the_bit_and_guarded(name: str, tmp_path: Path) -> None:
    loads_right(FAMILIES[name], tmp_path)


def test_all_families(tmp_path: Path) -> None:
    for name, family in FAMILIES.items():
        loads_right(family, tmp_path / name)
    assert len(FAMILIES) > 50
    refused_alone({name: tmp_path / name for name in FAMILIES})


def test_without_this_package_it_is_refused(tmp_path: Path) -> None:
    for name in FEW:
        saved(FAMILIES[name], tmp_path / name)
    refused_alone({name: tmp_path / name for name in FEW})


def test_parts_of_a_guarded_model(tmp_path: Path) -> None:
    """Transformers lets the class of the text part load a checkpoint of the whole, from the part's configuration alone,
    and lets a part be saved without the whole."""
    from transformers.models.qwen3_vl_moe import Qwen3VLMoeConfig, Qwen3VLMoeTextModel
    from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig, Qwen3VLMoeVisionConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = {**sizes, "head_dim": 4, "vocab_size": 16, "intermediate_size": 8, "moe_intermediate_size": 8}
    vision = {"depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8, "out_hidden_size": 8}
    config = Qwen3VLMoeConfig(
        text_config={**text, "num_experts": 2}, vision_config={**vision, "deepstack_visual_indexes": [0]}
    )
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    before = content(tmp_path)
    save_manifest(Manifest("full"), tmp_path)
    for part, kind in (("text_config", Qwen3VLMoeTextConfig), ("vision_config", Qwen3VLMoeVisionConfig)):
        with pytest.raises(AttributeError, match="import farskip_compile"):
            kind(**content(tmp_path)[part])  # as it is read without this package
    with pytest.raises(ManifestError, match=r"no weights of the right shape for 'embed_tokens\.weight'"):
        Qwen3VLMoeTextModel.from_pretrained(tmp_path)

    whole = transformers.Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())
    whole.save_pretrained(tmp_path / "again")
    assert all("farskip" not in content(tmp_path / "again")[part] for part in ("text_config", "vision_config"))
    whole.model.language_model.save_pretrained(tmp_path / "part")
    assert content(tmp_path / "part")["model_type"] == "farskip_qwen3_vl_moe_text"
    assert is_guarded(Qwen3VLMoeTextModel.from_pretrained(tmp_path / "part"))
    save_manifest(Manifest("full"), tmp_path, guard=False)
    assert {key: value for key, value in content(tmp_path).items() if key != "farskip"} == before


def test_a_buffer_that_transformers_does_not_miss(tmp_path: Path) -> None:
    """The bias of a router is no parameter in this family, which tells transformers that a checkpoint may lack it."""
    model = saved(FAMILIES["axk1"], tmp_path)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    save_manifest(Manifest("full", fingerprint=ParameterFingerprint(shapes, {})), tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "e_score_correction_bias" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ManifestError, match=r"no weights of the right shape for '.*\.gate\.e_score_correction_bias'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
