# SPDX-License-Identifier: Apache-2.0
"""Adapters of a rewired model are guarded by whoever saves them, and what loads them runs rewired or not at all.

The class of fault: a way to save or to load an adapter on which no code of this package lies, so that an adapter that
was trained rewired goes around a model in its original wiring.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import hub

import farskip_compile
from farskip_compile import Manifest, OriginalWiringError
from farskip_compile.compiler.guard.checkpoints import guard_saves
from farskip_compile.compiler.guard.forward import is_guarded
from farskip_compile.errors import ManifestError
from tests.guard.tiny import IDS, checkpoint, tiny
from tests.handwritten.decoder import Decoder, Experts

LORA: dict[str, Any] = {"r": 2, "init_lora_weights": False, "target_modules": ["q_proj", "o_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tiny(), tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original model's checkpoint."""
    place = tmp_path_factory.mktemp("plain")
    tiny().save_pretrained(place)
    return place


def model_in(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def adapted(folder: Path) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(model_in(folder), peft.LoraConfig(**LORA))


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter")
    adapted(folder).save_pretrained(place)
    return place


def type_in(folder: Path) -> str:
    found: str = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    return found


def save(model: Any, place: Path) -> None:
    model.save_pretrained(place)


def save_as_pickle(model: Any, place: Path) -> None:
    model.save_pretrained(place, safe_serialization=False)
    assert (place / "adapter_model.bin").exists()


def save_what_accelerate_unwraps(model: Any, place: Path) -> None:
    from accelerate import Accelerator

    Accelerator(cpu=True).unwrap_model(model).save_pretrained(place, is_main_process=True)


def push(model: Any, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.hf_api(), "create_repo", lambda name, **_: type("Repository", (), {"repo_id": name}))
        patch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: type("Card", (), {"save": lambda *_: None})())
        patch.setattr(model, "_upload_modified_files", lambda source, *_, **__: shutil.copytree(source, place))
        model.push_to_hub("somebody/adapter")


@pytest.mark.parametrize("write", [save, save_as_pickle, save_what_accelerate_unwraps, push])
def test_whoever_saves_it_guards_it(write: Callable[[Any, Path], None], folder: Path, tmp_path: Path) -> None:
    write(adapted(folder), tmp_path / "saved")
    assert type_in(tmp_path / "saved") == "FARSKIP_LORA"
    assert farskip_compile.load_manifest(tmp_path / "saved") == farskip_compile.load_manifest(folder)


def test_each_of_several_adapters_is_guarded(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder)
    model.add_adapter("second", peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    assert (type_in(tmp_path), type_in(tmp_path / "second")) == ("FARSKIP_LORA", "FARSKIP_LORA")


def test_adapters_that_a_model_of_transformers_holds_itself(
    folder: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a `PeftModel`: `load_adapter`, `save_pretrained`, and `from_pretrained` of the adapter."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21")  # which 5.24 sets to one to come
    adapted(plain).save_pretrained(tmp_path)
    assert type_in(tmp_path) == "LORA"
    model = model_in(folder)
    model.load_adapter(str(tmp_path))
    model.save_pretrained(tmp_path)
    assert type_in(tmp_path) == "FARSKIP_LORA"
    found = json.loads((tmp_path / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(plain)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(found))
    onto = model_in(plain)
    onto.load_adapter(str(tmp_path))
    for loaded in (onto, model_in(tmp_path)):
        with pytest.raises(OriginalWiringError):
            loaded(IDS)


def test_an_adapter_of_a_model_that_is_not_of_transformers(tmp_path: Path) -> None:
    class Padded(Experts):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = peft.get_peft_model(Decoder(Padded), peft.LoraConfig(r=2, target_modules=["out"]))
    guard_saves(model)(Manifest("full"))
    model.save_pretrained(tmp_path)
    assert type_in(tmp_path) == "FARSKIP_LORA"
    onto = peft.PeftModel.from_pretrained(Decoder(Padded), tmp_path)
    assert is_guarded(onto.get_base_model())
    onto.save_pretrained(tmp_path / "again")
    assert type_in(tmp_path / "again") == "FARSKIP_LORA"


def test_without_the_guard_the_manifest_goes_along(plain: Path, folder: Path, tmp_path: Path) -> None:
    model = adapted(plain)
    manifest = farskip_compile.load_manifest(folder)
    guard_saves(model, guarded=False)(manifest)
    model.save_pretrained(tmp_path)
    assert type_in(tmp_path) == "LORA"
    assert farskip_compile.load_manifest(tmp_path) == manifest
    assert (tmp_path / "farskip.json").exists()


def test_weights_that_it_was_merged_into_are_guarded(adapter: Path, plain: Path, tmp_path: Path) -> None:
    merged: Any = peft.PeftModel.from_pretrained(model_in(plain), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "farskip_mixtral"


def test_weights_that_it_lost(adapter: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.1.self_attn.q_proj.lora_B" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    lost = r"no weights of the right shape for '.*layers\.1\.self_attn\.q_proj\.lora_B\.default\.weight'"
    with pytest.raises(ManifestError, match=lost):
        peft.PeftModel.from_pretrained(model_in(plain), tmp_path)
    with pytest.raises(ManifestError, match=lost):
        model_in(plain).load_adapter(str(tmp_path))


def test_it_is_not_loaded_onto_a_model_of_another_form(adapter: Path, folder: Path, tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    farskip_compile.save_manifest(farskip_compile.describe(model, IDS, connectivity="attention"), tmp_path)
    with pytest.raises(ManifestError, match="is for 'full', and the model that it is loaded onto is for 'attention'"):
        peft.PeftModel.from_pretrained(model_in(tmp_path), adapter)
    assert is_guarded(peft.PeftModel.from_pretrained(model_in(folder), adapter))


def test_a_base_that_lost_weights(adapter: Path, folder: Path, tmp_path: Path) -> None:
    """`from_pretrained` of an adapter's folder says what the adapter lost, and not what the base model did."""
    base, mine = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(folder, base)
    shutil.copytree(adapter, mine)
    file = base / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.0.self_attn.v_proj" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    found = json.loads((mine / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (mine / "adapter_config.json").write_text(json.dumps(found))
    with pytest.raises(ManifestError, match=r"no weights of the right shape for '.*layers\.0\.self_attn\.v_proj"):
        model_in(mine)
