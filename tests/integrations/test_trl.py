# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with `FarSkipCallback`: losses of the form by hand, whatever the data set is made into.

The oracle computes the loss of each batch from the logits of the form by hand; SGD of rate zero keeps the weights, so
that each logged loss is that of the first weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import farskip_compile
from farskip_compile.integrations.trainer import FarSkipCallback
from farskip_compile.models.generic_form import GenericFarSkipForm
from tests.evaluation.checkpoints import model, tokenizer
from tests.integrations.training import LEFT_OUT

TEXTS = [{"text": text} for text in ("the stack of rows", "a term", "one, two, three", "x y z")] * 2
PAIRS = [{"prompt": "the rows are ", "completion": "read"}, {"prompt": "a", "completion": " term"}] * 4


def trainer_of(rows: list[dict[str, str]], folder: Path, given: Any, **more: Any) -> tuple[Any, list[Any], Any]:
    """A trainer, the batches that it makes, and its callback."""
    adapters = more.pop("peft_config", None)
    plain = {
        "learning_rate": 0.0,
        "optim": "sgd",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "router_aux_loss_coef": 0.0,
        "activation_checkpointing": False,
        "bf16": False,
    }
    callback = FarSkipCallback(inner="eager")
    trainer = SFTTrainer(
        given,
        SFTConfig(str(folder), **{**plain, **more}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[callback],
        peft_config=adapters,
    )
    batches: list[Any] = []
    collate = trainer.data_collator

    def collator(rows: Any) -> Any:
        batches.append(collate(rows))
        return batches[-1]

    trainer.data_collator = collator
    return trainer, batches, callback


def losses_by_hand(given: Any, batches: list[Any]) -> list[float]:
    form, found = GenericFarSkipForm(given), []
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "position_ids")}
        with torch.no_grad():
            logits = form(**inputs, use_cache=False).logits
        labels = batch["labels"][:, 1:].flatten()
        found.append(float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)))
    return found


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (TEXTS, {}),
        (PAIRS, {}),
        (TEXTS, {"packing": True, "packing_strategy": "bfd"}),
        (TEXTS, {"packing": True, "packing_strategy": "wrapped", "max_length": 16}),
    ],
    ids=["texts", "completions only", "packed without padding", "packed and cut"],
)
def test_losses_of_the_form_by_hand(rows: list[dict[str, str]], more: dict[str, Any], tmp_path: Path) -> None:
    trainer, batches, callback = trainer_of(rows, tmp_path, model().train(), **more)
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged == pytest.approx(losses_by_hand(model(), batches[:2]), rel=1e-5)
    assert callback.steps == 2
    assert {str(report.left_out) for report in callback.reports} == {str(LEFT_OUT)}
    masked = (batches[0]["labels"] == -100).any()
    assert bool(masked) == ("wrapped" not in more.values())


def test_its_defaults_for_moe_models(tmp_path: Path) -> None:
    """Activation checkpoints around layers that record what their routers say."""
    more = {"activation_checkpointing": True, "router_aux_loss_coef": 0.1, "learning_rate": 0.05, "max_steps": 1}
    weights = []
    for checkpointing in (True, False):
        more["activation_checkpointing"] = checkpointing
        trainer, _, callback = trainer_of(TEXTS, tmp_path / str(checkpointing), model().train(), **more)
        trainer.train()
        assert callback.reports[0].left_out == LEFT_OUT
        assert trainer.state.log_history[0]["aux_loss"] > 0
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert not torch.equal(
        weights[0]["model.layers.0.mlp.gate.weight"], model().state_dict()["model.layers.0.mlp.gate.weight"]
    )


def test_adapters_that_it_adds(tmp_path: Path) -> None:
    more = {"peft_config": peft.LoraConfig(target_modules=["q_proj"]), "max_steps": 1, "save_strategy": "steps"}
    trainer, batches, callback = trainer_of(TEXTS, tmp_path, model().train(), save_steps=1, **more)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(losses_by_hand(model(), batches[:1])[0], rel=1e-5)
    manifest = farskip_compile.load_manifest(tmp_path / "checkpoint-1")
    assert manifest == callback.manifest
    assert manifest.connectivity == "full"
    trainer.save_model(str(tmp_path / "mine"))
    assert farskip_compile.load_manifest(tmp_path / "mine") == manifest
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["peft_type"] == "FARSKIP_LORA"


def test_a_guarded_checkpoint_by_its_name(tmp_path: Path) -> None:
    """TRL loads it by the class that its configuration names."""
    saved = model()
    saved.save_pretrained(tmp_path)
    farskip_compile.save_manifest(farskip_compile.Manifest("full"), tmp_path)
    trainer, _, _ = trainer_of(TEXTS, tmp_path / "run", str(tmp_path))
    assert type(trainer.model) is type(saved)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
