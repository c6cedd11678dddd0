# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with `FarSkipCallback`: the training of the form by hand, and checkpoints that say so."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

import farskip_compile
from farskip_compile.errors import ConfigError, ManifestError, OriginalWiringError
from farskip_compile.integrations.trainer import FarSkipCallback
from farskip_compile.models.generic_form import GenericFarSkipForm
from tests.integrations.training import LEFT_OUT, ROUNDING, Recorder, arguments, assert_equal, by_hand, data, model

pytestmark = pytest.mark.xdist_group("trained")  # one worker, so that `run` is made once


@dataclass
class Run:
    """What the first test's training left; others resume it and load what it saved."""

    folder: Path
    trainer: Any
    callback: FarSkipCallback
    batches: list[Any]
    before: float
    losses: list[float]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of two batches each, an evaluation before them and after each, a checkpoint after each."""
    folder, collator, callback = tmp_path_factory.mktemp("run"), Recorder(), FarSkipCallback(inner="eager")
    trainer = Trainer(
        model(),
        arguments(
            folder,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            logging_steps=1,
        ),
        data_collator=collator,
        train_dataset=data(),
        eval_dataset=data()[:2],
        callbacks=[callback],
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    batches = [batch for batch in collator.batches if not torch.equal(batch["labels"], evaluated())]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Run(folder, trainer, callback, batches, before, losses)


def evaluated() -> torch.Tensor:
    return torch.stack([row["labels"] for row in data()[:2]])


def test_trains_as_the_form_by_hand(run: Run) -> None:
    plain = model()
    losses = by_hand(plain, [run.batches[:2], run.batches[2:4]])
    assert_equal(run.trainer.model, plain)
    assert run.losses[0] == pytest.approx(float(losses[0]), abs=0)
    assert run.losses[1] == pytest.approx(float(losses[1]), rel=1e-6)
    predicted = run.trainer.predict(data()[:2]).predictions
    with torch.no_grad():
        expected = GenericFarSkipForm(plain.eval())(input_ids=evaluated()).logits
    logits = torch.from_numpy(predicted[0] if isinstance(predicted, tuple) else predicted)
    assert (logits - expected).abs().max() < 1e-5
    assert run.callback.steps == 2
    # one graph to train with and one to evaluate with: what is saved in between changes nothing that is compiled
    assert [report.left_out for report in run.callback.reports] == [LEFT_OUT] * 2


def test_an_evaluation_is_rewired_before_training_as_well(run: Run) -> None:
    plain, ids = model().eval(), evaluated()
    with torch.no_grad():
        rewired, as_written = (form(input_ids=ids, labels=ids).loss for form in (GenericFarSkipForm(plain), plain))
    assert run.before == float(rewired)
    assert abs(run.before - float(as_written)) > 1e-2


def test_checkpoints_say_which_form_they_are_for(run: Run) -> None:
    for folder in (run.folder / "checkpoint-1", run.folder / "checkpoint-2"):
        manifest = farskip_compile.load_manifest(folder)
        assert manifest.connectivity == "full"
        assert manifest == run.callback.manifest
        assert json.loads((folder / "config.json").read_text())["model_type"] == "farskip_mixtral"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "checkpoint-2")
    assert_equal(loaded, run.trainer.model)
    with pytest.raises(OriginalWiringError, match="the weights are for a FarSkip form"):
        loaded(evaluated())


def test_a_model_that_the_user_saves_says_so_too(run: Run, tmp_path: Path) -> None:
    run.trainer.save_model(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "farskip_mixtral"
    assert farskip_compile.load_manifest(tmp_path) == run.callback.manifest
    assert run.callback.write_manifest(tmp_path) == tmp_path / "farskip.json"


def resumed(run: Run, trained: Any, folder: Path, **options: Any) -> Trainer:
    trainer = Trainer(
        trained,
        arguments(folder, gradient_accumulation_steps=2),
        train_dataset=data(),
        callbacks=[FarSkipCallback(inner="eager", **options)],
    )
    trainer.train(resume_from_checkpoint=str(run.folder / "checkpoint-1"))
    return trainer


def test_a_resumed_run_is_the_uninterrupted_one(run: Run, tmp_path: Path) -> None:
    """A Trainer that loads weights without the conversion of `from_pretrained` leaves experts as they were."""
    other = model()
    torch.nn.init.normal_(other.model.layers[1].mlp.experts.down_proj)
    assert_equal(resumed(run, other, tmp_path).model, run.trainer.model)


def test_weights_that_a_checkpoint_lost_are_not_resumed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder / "checkpoint-1", tmp_path / "checkpoint-1")
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layers.1.block_sparse_moe" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ManifestError, match=r"no weights of the right shape for 'model\.layers\.1\.mlp\.experts"):
        resumed(Run(tmp_path, None, run.callback, [], 0.0, []), model(), tmp_path)


def test_the_best_checkpoint_is_loaded_whole(run: Run, tmp_path: Path) -> None:
    trainer: Any = Trainer(model(), arguments(tmp_path), train_dataset=data(), callbacks=[FarSkipCallback()])
    trainer.state.best_model_checkpoint = str(run.folder / "checkpoint-2")
    trainer._load_best_model()
    assert_equal(trainer.model, run.trainer.model)


def test_a_rewired_run_is_not_resumed_in_the_original_wiring(run: Run, tmp_path: Path) -> None:
    """Neither with this package imported nor, where only the files can say so, without."""
    checkpoint = run.folder / "checkpoint-1"
    with pytest.raises(OriginalWiringError, match="this Trainer would train it on in its original wiring"):
        Trainer(model(), arguments(tmp_path), train_dataset=data()).train(resume_from_checkpoint=str(checkpoint))
    content = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(AttributeError, match="import farskip_compile before they are loaded"):
        transformers.PreTrainedConfig(**content)  # as a Trainer reads it


def test_a_resumed_run_keeps_its_wiring(run: Run, tmp_path: Path) -> None:
    with pytest.raises(OriginalWiringError, match=r"a graph left out \{'attention.1': \('r0',\)\}, not \{.*'moe.0'"):
        resumed(run, model(), tmp_path, connectivity="attention")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "checkpoint-1")
    with pytest.raises(ConfigError, match="connectivity"):  # the loaded model's manifest says another one
        resumed(run, loaded, tmp_path, connectivity="attention")


def test_a_run_without_the_callback_is_not_resumed_with_it() -> None:
    state = SimpleNamespace(global_step=3, stateful_callbacks={})
    with pytest.raises(ConfigError, match="first 3 steps without FarSkipCallback"):
        FarSkipCallback().on_train_begin(settings(), state, None, model=model())


def test_mixed_precision_is_kept_around_a_model_that_is_made_for_training(tmp_path: Path) -> None:
    """With `model_init` the callback comes after accelerate has given the model a forward with autocast."""
    collator, callback = Recorder(), FarSkipCallback(inner="eager")
    trainer = Trainer(
        args=arguments(tmp_path, bf16=True, max_steps=1),
        model_init=model,
        data_collator=collator,
        train_dataset=data(),
        callbacks=[callback],
    )
    trainer.train()
    plain, single = model(), model()
    by_hand(plain, [collator.batches[:1]], autocast=True)
    assert_equal(trainer.model, plain)
    by_hand(single, [collator.batches[:1]])
    assert (single.lm_head.weight - plain.lm_head.weight).abs().max() > 100 * ROUNDING
    assert callback.steps == 1


def test_activation_checkpoints(tmp_path: Path) -> None:
    collator, callback = Recorder(), FarSkipCallback(inner="aot_eager")
    args = arguments(tmp_path, max_steps=1, activation_checkpointing=True)
    trainer: Any = Trainer(model(), args, data_collator=collator, train_dataset=data(), callbacks=[callback])
    trainer.train()
    assert trainer.model.is_activation_checkpointing
    plain = model()
    by_hand(plain, [collator.batches[:1]])
    assert_equal(trainer.model, plain)
    assert [report.left_out for report in callback.reports] == [LEFT_OUT]


def test_adapters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    plain, collator, callback = copy.deepcopy(adapted), Recorder(), FarSkipCallback(inner="eager")
    args = arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer = Trainer(adapted, args, data_collator=collator, train_dataset=data(), callbacks=[callback])
    trainer.train()
    by_hand(plain, [collator.batches[:1]])
    assert_equal(adapted, plain)
    assert sorted(file.name for file in (tmp_path / "checkpoint-1").glob("*.json")) == [
        "adapter_config.json",
        "farskip.json",
        "trainer_state.json",
    ]
    trainer.save_model(str(tmp_path / "mine"))
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["peft_type"] == "FARSKIP_LORA"
    assert farskip_compile.load_manifest(tmp_path / "mine") == callback.manifest


# What is refused


def settings(**more: Any) -> Any:
    return SimpleNamespace(**{"torch_compile": False, "n_gpu": 1, "fsdp": None, **more})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"torch_compile": True}, "torch_compile compiles the model with another backend"),
        ({"n_gpu": 2}, "DataParallel"),
        ({"fsdp": True}, "FSDP gathers the parameters"),
    ],
)
def test_settings_that_wrap_the_model_otherwise(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FarSkipCallback().on_init_end(settings(**more), None, None, model=model())


def test_models_that_can_not_be_taken() -> None:
    compiled = model()
    compiled.compile(backend="eager")
    with pytest.raises(ConfigError, match="compiled already"):
        FarSkipCallback().on_init_end(settings(), None, None, model=compiled)
    with pytest.raises(ConfigError, match="Linear has no `base_model`"):
        FarSkipCallback(stack_alone=True).on_init_end(settings(), None, None, model=nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"strict": False}, "strict=False"), ({"connectivity": "none"}, "changes no wiring"), ({"inr": "eager"}, "inr")],
)
def test_options_that_assert_nothing(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FarSkipCallback(**options)


def test_a_callback_that_has_not_seen_the_model(run: Run) -> None:
    late = FarSkipCallback()
    with pytest.raises(OriginalWiringError, match="has not seen the model of this Trainer"):
        late.on_evaluate(None, None, None, model=model())
    with pytest.raises(ManifestError, match="nothing has run"):
        late.write_manifest(run.folder)
    with pytest.raises(OriginalWiringError, match="has not seen the model of this Trainer"):
        run.callback.on_predict(None, None, None, model=model())


def test_a_checkpoint_elsewhere_is_not_left_without_a_manifest(run: Run, tmp_path: Path) -> None:
    args = SimpleNamespace(should_save=True, output_dir=str(tmp_path))
    with pytest.raises(ManifestError, match="the checkpoint is not at"):
        run.callback.on_save(args, SimpleNamespace(global_step=2), None)


def test_a_step_in_the_original_wiring_is_an_error(tmp_path: Path) -> None:
    callbacks: list[Any] = [FarSkipCallback(inner="eager")]
    trainer: Any = Trainer(model(), arguments(tmp_path), train_dataset=data(), callbacks=callbacks)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(OriginalWiringError, match="trains this model rewired"),
    ):
        trainer.train()
    farskip_compile.unguard(trainer.model)
    with torch.compiler.set_stance("force_eager"), pytest.raises(OriginalWiringError, match="no longer compiled"):
        trainer.train()


def test_what_others_put_around_the_forward_stays_when_the_guard_goes() -> None:
    callback, given = FarSkipCallback(inner="eager"), model()
    given.forward = lambda *args, **kwargs: "theirs"
    theirs = given.forward
    callback.on_init_end(settings(), None, None, model=given)
    farskip_compile.unguard(given)
    assert given.forward is theirs


def test_the_way_by_name_is_an_error_of_accelerates(tmp_path: Path) -> None:
    """docs/integrations/transformers.md quotes it."""
    with pytest.raises(ValueError, match="'FARSKIP' is not a valid DynamoBackend"):
        Trainer(model(), arguments(tmp_path, torch_compile_backend="farskip"))
