# SPDX-License-Identifier: Apache-2.0
"""What can't be served rewired does not start: an error before the server is ready, by name, with a way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import farskip_compile
from farskip_compile.errors import ConfigError, FarSkipError, ManifestError, OriginalWiringError, ParallelismError
from tests.vllm.real.checkpoints import make

FULL = {"additional_config": {"farskip": {"connectivity": "full"}}}
OVERLAP = {"additional_config": {"farskip": {"connectivity": "full", "overlap": True}}}


def configured(folder: Path, **engine: Any) -> Any:
    """The configuration that vLLM would start its processes with."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(folder), dtype="float32", max_model_len=128, **engine).create_engine_config()


@pytest.mark.parametrize(
    ("engine", "error", "match"),
    [
        ({**FULL, "enforce_eager": True}, OriginalWiringError, "told to compile nothing"),
        ({**FULL, "compilation_config": {"mode": 0}}, OriginalWiringError, "told to compile nothing"),
        (
            {**FULL, "enable_lora": True},
            OriginalWiringError,
            "on a CPU vLLM compiles no model that is served with LoRA",
        ),
        (
            {**FULL, "speculative_config": {"method": "ngram_gpu", "num_speculative_tokens": 2}},
            ConfigError,
            "speculation by 'ngram_gpu' was not tried",
        ),
        ({**FULL, "pipeline_parallel_size": 2}, ParallelismError, "pipeline_parallel_size is 2"),
        (
            {**OVERLAP, "enable_expert_parallel": True, "data_parallel_size": 2},
            ParallelismError,
            "overlap is asked for, but with expert parallelism|run sequence-parallel",
        ),
        ({"additional_config": {"farskip": {"conectivity": "full"}}}, ConfigError, "unknown option 'conectivity'"),
        ({"additional_config": {"farskip": "full"}}, ConfigError, "not a mapping of options"),
        ({"additional_config": {"farskip": {"connectivity": "fall"}}}, FarSkipError, "fall"),
        ({"additional_config": {"farskip": {"overlap": 1}}}, ConfigError, "neither true nor false"),
    ],
)
def test_a_configuration(checkpoint, engine, error, match):
    with pytest.raises(error, match=match):
        configured(checkpoint("qwen3_moe"), **engine)


def test_a_second_model(checkpoint, tmp_path):
    """A draft model is a second one to compile; speculation without one is served (test_served)."""
    make("qwen3_moe", tmp_path / "draft", num_hidden_layers=1)
    draft = {"method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": 2}
    with pytest.raises(ConfigError, match="speculation by 'draft_model' compiles a second model"):
        configured(checkpoint("qwen3_moe"), **FULL, speculative_config=draft)


def test_eager_is_refused_for_a_checkpoint_that_says_what_it_is(checkpoint):
    with pytest.raises(OriginalWiringError, match=r"the manifest .*farskip\.json asks for a rewired model"):
        configured(checkpoint("qwen3_moe", "manifest"), enforce_eager=True)


def test_options_that_contradict_the_manifest(checkpoint):
    with pytest.raises(ConfigError, match="contradicts the manifest"):
        configured(checkpoint("qwen3_moe", "manifest"), additional_config={"farskip": {"connectivity": "mlp"}})


def test_a_guarded_checkpoint_without_its_manifest(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("qwen3_moe", "manifest"), tmp_path / "lost")
    (folder / "farskip.json").unlink()
    config = folder / "config.json"
    content = json.loads(config.read_text())
    del content["farskip"]
    config.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="says nowhere which"):
        configured(folder)


def test_another_version(checkpoint, monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.30.4")
    with pytest.raises(ConfigError, match=r"vLLM 0\.30, on which it was not tried"):
        configured(checkpoint("qwen3_moe"), **FULL)


def test_nobody_asks_and_nothing_happens(checkpoint):
    found = configured(checkpoint("qwen3_moe"))
    assert not found.additional_config
    assert type(found.compilation_config.init_backend(found)) is str


def test_what_is_asked_for_is_a_part_of_vllms_hash(checkpoint, monkeypatch):
    from farskip_compile.vllm import asked

    folder = checkpoint("qwen3_moe", "manifest")
    plain = configured(checkpoint("qwen3_moe")).compute_hash()
    full = configured(checkpoint("qwen3_moe"), **FULL).compute_hash()
    mlp = configured(checkpoint("qwen3_moe"), additional_config={"farskip": {"connectivity": "mlp"}}).compute_hash()
    manifest = configured(folder)
    assert manifest.additional_config["farskip"]["settled"]["manifest"]
    assert len({plain, full, mlp, manifest.compute_hash()}) == 4
    monkeypatch.setattr(asked, "source_hash", lambda: "another")
    assert configured(checkpoint("qwen3_moe"), **FULL).compute_hash() not in (plain, full, mlp)


def run(folder: Path, engine: dict[str, Any], **variables: str) -> subprocess.CompletedProcess[str]:
    arguments = {"model": str(folder), "dtype": "float32", "max_model_len": 64, **engine}
    script = "import json, sys\nfrom vllm import LLM\nif __name__ == '__main__': LLM(**json.loads(sys.argv[1]))"
    script_file = Path(os.environ["VLLM_CACHE_ROOT"]).parent / "start.py"
    script_file.write_text(script)
    command = [sys.executable, str(script_file), json.dumps(arguments)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


OTHERS = [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"num_hidden_layers": 5}, {"vocab_size": 576}]
OTHERS += [{"num_local_experts": 4}]


@pytest.mark.parametrize("changes", OTHERS, ids=str)
def test_a_manifest_of_another_model(changes, checkpoint, tmp_path):
    """A manifest beside weights of other sizes, or another number of layers, is refused before anything is loaded."""
    folder = shutil.copytree(checkpoint("mixtral"), tmp_path / "wrong")
    make("mixtral", tmp_path / "other", **changes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other").eval()
    farskip_compile.prepare(model)
    manifest = farskip_compile.describe(model, torch.tensor([[5, 6, 7, 8]]))
    farskip_compile.save_manifest(manifest, folder / "farskip.json", guard=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ManifestError, match="parameter"):
        configured(folder)


def test_a_model_that_is_not_warmed_up(checkpoint):
    done = run(checkpoint("qwen3_moe", "manifest"), {}, VLLM_CPU_CI_ENV="1")
    assert done.returncode
    assert "OriginalWiringError" in done.stdout + done.stderr
    assert "none of its compiled code has run" in done.stdout + done.stderr


def test_a_guarded_checkpoint_without_the_plugin_is_refused_by_name(checkpoint):
    done = run(checkpoint("qwen3_moe", "manifest"), {}, VLLM_PLUGINS="none")
    assert done.returncode
    assert "farskip_qwen3_moe" in done.stdout + done.stderr
