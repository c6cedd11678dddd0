# SPDX-License-Identifier: Apache-2.0
"""transformers 4 beside this package: its models are compiled or refused, what needs transformers 5 says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import farskip_compile
from farskip_compile.errors import MissingPackageError, PartialModelError
from farskip_compile.manifest.guarded import guarded
from farskip_compile.models import build

VERSION = transformers.__version__
LINE = f"transformers {VERSION} is installed; farskip-compile works with transformers >=5."
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
IDS = torch.arange(8)[None]


def tiny(family: str, **sizes: int) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("names", ["transformers, farskip_compile", "farskip_compile, transformers"])
def test_imported_in_either_order(names: str) -> None:
    uses = "from transformers import AutoModelForCausalLM, Trainer; from farskip_compile import backend"
    done = run("-W", "error::UserWarning", "-c", f"import {names}; {uses}")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "farskip" not in done.stderr


def test_a_model_whose_experts_are_captured_is_rewired() -> None:
    model = tiny("olmoe", num_experts=4)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        rewired, original = (one(input_ids=IDS, use_cache=False).logits for one in (compiled, model))
    assert farskip_compile.status(model).rewired
    assert not torch.allclose(rewired, original)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_model_whose_experts_are_not_captured_is_refused(family: str) -> None:
    sizes = {"num_local_experts": 4} if family == "mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    compiled = torch.compile(tiny(family, **sizes), backend="farskip", options={"inner": "eager"})
    with torch.no_grad(), pytest.raises(PartialModelError, match="a graph break cuts the residual stack"):
        compiled(input_ids=IDS, use_cache=False)


def test_prepare_and_the_callback_say_what_they_need() -> None:
    from farskip_compile.integrations.trainer import FarSkipCallback

    model = tiny("olmoe", num_experts=4)
    for use in (lambda: farskip_compile.prepare(model), FarSkipCallback):
        with pytest.raises(MissingPackageError) as found:
            use()
        assert found.value.reason.startswith(LINE)
        assert found.value.way_out.startswith("pip install 'transformers>=5.")


def test_a_model_of_others_is_prepared() -> None:
    model = build("mixtral")
    farskip_compile.prepare(model)
    with torch.no_grad():
        torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})(IDS)


@pytest.mark.parametrize(
    "command", ["check families", "heal x.toml", "simulate deepseek-v3 --device h100", "explain transformers:olmoe"]
)
def test_commands_say_what_they_need(command: str) -> None:
    done = run("-m", "farskip_compile", *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(LINE)
    assert "pip install 'farskip-compile[" in line


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModelForCausalLM", "OlmoeForCausalLM", "OlmoeConfig"])
def test_a_guarded_checkpoint_is_not_loaded(name: str, tmp_path: Path) -> None:
    tiny("olmoe", num_experts=4).save_pretrained(tmp_path)
    assert getattr(transformers, name).from_pretrained(tmp_path) is not None
    file = tmp_path / "config.json"
    file.write_text(guarded(file.read_text()))
    with pytest.raises((ValueError, AttributeError), match="farskip"):
        getattr(transformers, name).from_pretrained(tmp_path)
