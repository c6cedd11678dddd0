# SPDX-License-Identifier: Apache-2.0
"""Whole checkpoints for a `Trainer` of transformers that resumes a rewired model.

In:    the class `Trainer`, once transformers' module of it is imported (`farskip_compile/__init__.py`).
Out:   the same class, whose `train(resume_from_checkpoint=...)` and `load_best_model_at_end` load all weights, and
       refuse a guarded checkpoint where nothing trains rewired.
Never: changes anything else of a Trainer without `FarSkipCallback` and without a guarded model.

Why: transformers (5.20 to 5.24) saves experts one by one and holds them stacked. Its `from_pretrained` converts, its
Trainer does not: it logs missing keys, and leaves experts and routers as they were.

Algorithm, around each of the two methods:
1. Let the Trainer load, and keep the names that none of its calls of `load_state_dict` had.
2. If there are any, load the checkpoint by `from_pretrained` of the model's class, and copy its state. An error names
   the weights that the files do not have either.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile._compat.modules import unwrapped
from farskip_compile.compiler.guard.checkpoints import INFO, WATCHED
from farskip_compile.compiler.guard.forward import is_guarded
from farskip_compile.errors import OriginalWiringError
from farskip_compile.manifest.files import CONFIG
from farskip_compile.manifest.guarded import is_guarded as is_guarded_text
from farskip_compile.manifest.lost import refuse_lost


def watch_resume() -> None:
    """Let all Trainers of transformers load whole models; a second call changes nothing."""
    from transformers.trainer import Trainer

    trainers: Any = Trainer
    resume, best = trainers._load_from_checkpoint, trainers._load_best_model
    if hasattr(resume, WATCHED):
        return

    @functools.wraps(resume)
    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = unwrapped(model if model is not None else self.model)
        folder = Path(resume_from_checkpoint)
        if not _trains_rewired(self, whole):
            _refuse_guarded(folder)
            resume(self, resume_from_checkpoint, model)
            return
        with _completed(whole, folder):
            resume(self, resume_from_checkpoint, model)

    @functools.wraps(best)
    def _load_best_model(self: Any) -> None:
        whole = unwrapped(self.model)
        if not _trains_rewired(self, whole):
            best(self)
            return
        with _completed(whole, Path(self.state.best_model_checkpoint)):
            best(self)

    setattr(_load_from_checkpoint, WATCHED, True)
    trainers._load_from_checkpoint, trainers._load_best_model = _load_from_checkpoint, _load_best_model


def _trains_rewired(trainer: Any, model: nn.Module) -> bool:
    from farskip_compile.integrations.trainer import FarSkipCallback

    return is_guarded(model) or any(isinstance(one, FarSkipCallback) for one in trainer.callback_handler.callbacks)


def _refuse_guarded(folder: Path) -> None:
    config = folder / CONFIG
    if config.is_file() and is_guarded_text(config.read_text()):
        raise OriginalWiringError(
            f"the checkpoint {folder} is of a FarSkip form of the model, and this Trainer would train it on in its "
            "original wiring",
            way_out="Trainer(..., callbacks=[FarSkipCallback()]) of farskip_compile.integrations.trainer",
        )


@contextmanager
def _completed(model: Any, folder: Path) -> Iterator[None]:
    """Within the block `load_state_dict` of `model` is called, once or for each file; after it the model is whole."""
    missing: list[set[str]] = []
    handle = model.register_load_state_dict_post_hook(lambda _, keys: missing.append(set(keys.missing_keys)))
    try:
        yield
    finally:
        handle.remove()
    lost = set.intersection(*missing) if missing else set()
    if not lost or hasattr(model, "get_base_model"):  # all but adapters are missing in the files of adapters
        return
    if not hasattr(model, "from_pretrained"):
        refuse_lost(sorted(lost), f"the checkpoint {folder}")
    loaded, info = type(model).from_pretrained(folder, **{INFO: True})
    if info["missing_keys"]:
        refuse_lost(sorted(info["missing_keys"]), f"the checkpoint {folder}")
    model.load_state_dict(loaded.state_dict())
