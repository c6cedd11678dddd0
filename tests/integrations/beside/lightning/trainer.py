# SPDX-License-Identifier: Apache-2.0
"""Lightning's Trainer with the callback: the steps are those by hand, and checkpoints say for which form they are."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import farskip_compile
from farskip_compile import ConfigError, OriginalWiringError
from farskip_compile.errors import ManifestError
from farskip_compile.integrations.lightning import FarSkip
from farskip_compile.integrations.state import KEY, manifest_of_checkpoint
from tests.distributed.ranks import run_ranks
from tests.integrations.beside.lightning.steps import (
    BATCHES,
    batches,
    equal,
    loss_of,
    optimizer_of,
    small,
    trained_by_hand,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Lit(LightningModule):
    """`how`: who compiles the model."""

    def __init__(self, how: str = "callback", **options: Any) -> None:
        super().__init__()
        self.how, self.options = how, options
        self.model = small()

    def configure_model(self) -> None:
        if self.how == "itself":
            self.how = "done"
            self.model.compile(backend="farskip", fullgraph=True, options={"inner": "eager", **self.options})
        if self.how == "wrapped":
            self.how = "done"
            self.model = torch.compile(self.model, backend="farskip", fullgraph=True)

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        loss = loss_of(self.model(batch), batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        self.log("validation", loss_of(self.model(batch), batch))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self)


def loader(rank: int = 0) -> DataLoader[Any]:
    return DataLoader(batches(rank), batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: FarSkip, epochs: int = 1, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    where = {"accelerator": "cpu", "default_root_dir": folder}
    return Trainer(**{**quiet, **where, "max_epochs": epochs, "callbacks": list(callbacks), **options})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that was trained for an epoch, with validation."""
    folder = tmp_path_factory.mktemp("lightning")
    lit, farskip = Lit(), FarSkip(inner="eager")
    run = trainer(folder, farskip)
    run.fit(lit, loader(), loader(1))
    assert farskip.batches == {"validation": 2 + BATCHES, "training": BATCHES}, "two to check before training"
    assert equal(lit.model, trained_by_hand())
    run.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return Path(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]


def test_models_that_compile_themselves(tmp_path: Path) -> None:
    """The second one as the first, for which Dynamo compiled all that it needs."""
    for _ in range(2):
        lit, farskip = Lit("itself", connectivity="attention"), FarSkip()
        trainer(tmp_path, farskip).fit(lit, loader())
        assert farskip.batches == {"training": BATCHES}
        assert equal(lit.model, trained_by_hand(connectivity="attention"))
    assert farskip.manifest == farskip_compile.describe(lit.model, batches()[0], connectivity="attention")


def test_checkpoints_say_what_they_are_for(checkpoint: Path) -> None:
    expected = farskip_compile.describe(small(), batches()[0])
    for file in (checkpoint, checkpoint.parents[1] / "weights.ckpt"):
        assert manifest_of_checkpoint(file) == expected
        names = set(torch.load(file, weights_only=True)["state_dict"])
        assert names == {KEY, *(f"model.{name}" for name in small().state_dict())}
        with pytest.raises(RuntimeError, match=f'Unexpected key.*"{KEY}"'):
            Lit.load_from_checkpoint(file)
    assert equal(Lit.load_from_checkpoint(checkpoint, strict=False).model, trained_by_hand())


def test_a_run_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    lit, farskip = Lit(), FarSkip(inner="eager")
    trainer(tmp_path, farskip, epochs=2).fit(lit, loader(), ckpt_path=checkpoint)
    assert farskip.batches == {"training": BATCHES}
    assert equal(lit.model, trained_by_hand(epochs=2))
    trainer(tmp_path, farskip).test(lit, loader(), ckpt_path=checkpoint, verbose=False)
    assert farskip.batches["testing"] == BATCHES


@pytest.mark.parametrize("how", ["callback", "itself"])
def test_a_checkpoint_for_another_form_is_refused(how: str, checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"connectivity": "attention"}
    lit = Lit(how, **options) if how == "itself" else Lit()
    farskip = FarSkip() if how == "itself" else FarSkip(inner="eager", **options)
    error, match = (ManifestError, "for 'full'") if how == "itself" else (ConfigError, "in the checkpoint, in which")
    with pytest.raises(error, match=match):
        trainer(tmp_path, farskip, epochs=2).fit(lit, loader(), ckpt_path=checkpoint)


class Bypasses(Lit):
    """Its second batch goes past the compiled model."""

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        if number == 1 and self.how == "forward":
            return loss_of(self.model.forward(batch), batch)
        if number == 1 and self.how == "another backend":
            self.model.compile(backend="eager")
        if number == 1 and self.how == "unguarded":
            farskip_compile.unguard(self.model)
            self.model._compiled_call_impl = None
        return super().training_step(batch, number)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("forward", "is trained in a FarSkip form"),
        ("another backend", "is trained in a FarSkip form"),
        ("unguarded", "training did not run rewired"),
    ],
)
def test_a_batch_in_the_original_wiring_is_refused(how: str, reason: str, tmp_path: Path) -> None:
    farskip = FarSkip(inner="eager")
    with pytest.raises(OriginalWiringError, match=reason):
        trainer(tmp_path, farskip).fit(Bypasses(how), loader())
    assert farskip.batches == {"training": 1}


def test_what_is_asked_wrongly_is_refused(tmp_path: Path) -> None:
    for wrong, match in (({"strict": False}, "strict=False"), ({"conectivity": "full"}, "unknown option")):
        with pytest.raises(ConfigError, match=match):
            FarSkip(**wrong)
    for lit, farskip, match in (
        (Lit(), FarSkip("network"), "has no `network`"),
        (Lit(), FarSkip("how"), "is a str"),
        (Lit("wrapped"), FarSkip(), "is a OptimizedModule"),
        (Lit("itself"), FarSkip(connectivity="mlp"), "compiled already, and FarSkip is given connectivity"),
    ):
        with pytest.raises(ConfigError, match=match):
            trainer(tmp_path, farskip).fit(lit, loader())
    run = trainer(tmp_path, FarSkip())
    run.strategy.connect(Lit())
    with pytest.raises(ManifestError, match="nothing was rewired yet"):
        run.save_checkpoint(tmp_path / "early.ckpt")


def fit_on_rank(rank: int, world_size: int, folder: str) -> tuple[bool, dict[str, int]]:
    """Under DDP."""
    torch._dynamo.config.optimize_ddp = False
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), GROUP_RANK="0")
    strategy = DDPStrategy(process_group_backend="gloo")
    options = {"strategy": strategy, "devices": world_size, "plugins": [TorchElasticEnvironment()]}
    lit, farskip = Lit(), FarSkip(inner="eager")
    trainer(Path(folder), farskip, use_distributed_sampler=False, **options).fit(lit, loader(rank))
    return equal(lit.model, trained_by_hand(ranks=world_size)), farskip.batches


def test_two_ranks(tmp_path: Path) -> None:
    assert run_ranks(fit_on_rank, 2, str(tmp_path)) == [(True, {"training": BATCHES})] * 2
    (file,) = tmp_path.rglob("*.ckpt")
    assert manifest_of_checkpoint(file).connectivity == "full"
