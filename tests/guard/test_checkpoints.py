# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with a manifest is refused without this package, and with it runs rewired or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from safetensors.torch import load_file, save_file

from farskip_compile import (
    OriginalWiringError,
    describe,
    load_manifest,
    prepare,
    regional,
    save_manifest,
    unguard,
)
from farskip_compile.errors import ManifestError
from farskip_compile.healing.distill.source import whole_model
from farskip_compile.models.generic_form import GenericFarSkipForm
from tests.guard.tiny import IDS, checkpoint, compiled, tiny

NAMED = r"farskip\.json describes, and it is about to run in its original wiring"
LOST = r"no weights of the right shape for '(model\.)?layers\.1\.mlp\.gate\.weight'"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(model, tmp_path_factory.mktemp("guarded"))


@pytest.fixture
def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("first", [("transformers", "farskip_compile"), ("farskip_compile", "transformers")])
def test_imported_in_either_order_it_is_known(folder: Path, first: tuple[str, str]) -> None:
    script = (
        f"import sys\nimport {first[0]}, {first[1]}\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
        "print(AutoConfig.from_pretrained(sys.argv[1]).farskip_model_type)\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)\n"
        "print([finder.module for finder in sys.meta_path if type(finder).__module__ == 'farskip_compile'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["mixtral", "MixtralForCausalLM", "['transformers.trainer']"]


def test_names_are_kept_and_come_back(model: Any, folder: Path, tmp_path: Path) -> None:
    assert config_of(folder)["architectures"] == ["FarSkipMixtralForCausalLM"]
    assert config_of(folder)["farskip_model_type"] == "mixtral"
    model.save_pretrained(tmp_path)
    before = config_of(tmp_path)
    save_manifest(load_manifest(folder), tmp_path, guard=False)
    assert config_of(tmp_path) == before
    for _ in range(2):
        save_manifest(load_manifest(folder), tmp_path)
        assert config_of(tmp_path) == config_of(folder)
    save_manifest(load_manifest(folder), tmp_path, guard=False)
    assert {key: value for key, value in config_of(tmp_path).items() if key != "farskip"} == before
    type(model).from_pretrained(tmp_path)(IDS)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    plain(IDS)


def test_a_model_in_its_original_wiring_is_not_guarded(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    before = config_of(tmp_path)
    save_manifest(describe(model, IDS), tmp_path)
    assert config_of(tmp_path)["model_type"] == "farskip_mixtral"
    save_manifest(describe(model, IDS, connectivity="none"), tmp_path)
    assert {key: value for key, value in config_of(tmp_path).items() if key != "farskip"} == before
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(IDS)


CODE = """
from transformers import MixtralConfig, MixtralForCausalLM

class Config(MixtralConfig):
    model_type = "somebodys"

class Model(MixtralForCausalLM):
    config_class = Config
"""


def test_code_in_the_repository(model: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader without this package finds no code to run; with it the code's own classes load a guarded model."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    place = tmp_path / "theirs"
    model.save_pretrained(place, save_original_format=False)
    code = {"AutoConfig": "code_of_somebody.Config", "AutoModelForCausalLM": "code_of_somebody.Model"}
    text = config_of(place) | {"model_type": "somebodys", "auto_map": code}
    (place / "code_of_somebody.py").write_text(CODE)
    (place / "config.json").write_text(json.dumps(text))
    save_manifest(load_manifest(folder), place)
    assert config_of(place)["auto_map"] == {}
    with pytest.raises(ValueError, match="contains custom code"):
        transformers.AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert type(loaded).__name__ == "Model"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(OriginalWiringError, match=NAMED):
        loaded(IDS)
    save_manifest(load_manifest(folder), place, guard=False)
    assert {key: value for key, value in config_of(place).items() if key != "farskip"} == text


def test_a_failing_write_of_the_config_is_not_half_a_guard(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ManifestError, match="is not JSON"):
        save_manifest(load_manifest(folder), tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_configuration_of_the_callers_does_not_hide_the_guard(model: Any, folder: Path) -> None:
    """`from_pretrained(folder, config=...)` does not read the guarded `config.json`."""
    loaded = type(model).from_pretrained(folder, config=copy.deepcopy(model.config))
    with pytest.raises(OriginalWiringError, match=NAMED):
        loaded(IDS)


def test_a_guard_of_an_earlier_version_is_read_and_renewed(model: Any, folder: Path, tmp_path: Path) -> None:
    """It had the type alone, which the model's own class does not ask for."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = config_of(tmp_path)
    content["dtype"] = content.pop("farskip_dtype")
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    save_manifest(load_manifest(folder), tmp_path)
    assert config_of(tmp_path) == config_of(folder)


@pytest.mark.parametrize("guard", [True, False])
def test_weights_that_the_checkpoint_lost(model: Any, folder: Path, guard: bool, tmp_path: Path) -> None:
    """Refused as they are loaded; without the guard, as they are compiled with the manifest, whole or by layers. A head
    that is new on purpose is no loss."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_manifest(load_manifest(folder), tmp_path, guard=guard)
    heads = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(heads).__name__ == "MixtralForSequenceClassification"
    file = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.1.block_sparse_moe.gate" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    if guard:
        for loader in (type(model), transformers.AutoModelForCausalLM, transformers.AutoModel):
            with pytest.raises(ManifestError, match=LOST):
                loader.from_pretrained(tmp_path)
        return
    with pytest.raises(ManifestError, match=LOST):
        whole_model(tmp_path)  # as heal and distill load the original
    lost = type(model).from_pretrained(tmp_path).eval()
    prepare(lost)
    with pytest.raises(ManifestError, match=LOST):
        compiled(lost, manifest=tmp_path)(IDS)
    regional(lost, inner="eager", manifest=tmp_path)
    with pytest.raises(ManifestError, match=LOST):
        lost(IDS)


def test_loaded_it_is_the_original_class_with_its_weights(model: Any, loaded: Any) -> None:
    assert type(loaded) is type(model)
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_it_runs_rewired(model: Any, folder: Path, loaded: Any) -> None:
    with torch.no_grad():
        expected = GenericFarSkipForm(model)(IDS).logits
        assert torch.equal(compiled(loaded, manifest=folder)(IDS).logits, expected)
        loaded.compile(backend="farskip", fullgraph=True, options={"inner": "eager", "manifest": str(folder)})
        assert torch.equal(loaded(IDS).logits, expected)
        copied = copy.deepcopy(loaded)  # which is not compiled
        assert torch.equal(compiled(copied, manifest=folder)(IDS).logits, expected)
    assert describe(loaded, IDS).table == load_manifest(folder).table


@pytest.mark.parametrize(
    "run",
    [
        lambda model: model(IDS),
        lambda model: model.forward(IDS),
        lambda model: model.model(IDS),
        lambda model: copy.deepcopy(model)(IDS),
        lambda model: model.generate(IDS, max_new_tokens=1),
        lambda model: torch.compile(model, backend="eager", fullgraph=True)(IDS),
        lambda model: torch.compile(model, backend="eager")(IDS),
        lambda model: torch.export.export(model, (IDS,)),
        lambda model: torch.export.export(model, (IDS,), strict=True),
    ],
    ids=["call", "forward", "inner", "copy", "generate", "fullgraph", "eager", "export", "strict-export"],
)
def test_it_never_runs_in_its_original_wiring(folder: Path, loaded: Any, run: Any) -> None:
    with pytest.raises(OriginalWiringError, match=NAMED) as caught:
        run(loaded)
    assert f'"manifest": {str(folder / "farskip.json")!r}' in caught.value.way_out
    assert "unguard" in caught.value.way_out


def test_another_backend_after_ours(folder: Path, loaded: Any) -> None:
    compiled(loaded, manifest=folder)(IDS)
    with pytest.raises(OriginalWiringError, match=NAMED):
        torch.compile(loaded, backend="eager", fullgraph=True)(IDS)
    with torch.compiler.set_stance("force_eager"), pytest.raises(OriginalWiringError, match=NAMED):
        compiled(loaded, manifest=folder)(IDS)


def test_unguard_is_the_way_back(model: Any, loaded: Any) -> None:
    unguard(loaded)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert torch.equal(loaded.model(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_saved_again_it_is_guarded_again(folder: Path, loaded: Any, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path)
    assert config_of(tmp_path)["model_type"] == "farskip_mixtral"
    assert config_of(tmp_path)["architectures"] == ["FarSkipMixtralForCausalLM"]
    assert load_manifest(tmp_path) == load_manifest(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(OriginalWiringError, match=r"config\.json describes"):
        again(IDS)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "mixtral"  # what the code of the model asks for
    for _ in range(2):
        with pytest.raises(OriginalWiringError):
            transformers.AutoModelForCausalLM.from_config(config)(IDS)
