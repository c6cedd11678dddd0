# SPDX-License-Identifier: Apache-2.0
"""Original, rewired, folded and healed, on text that nothing was chosen by.

In:    the original checkpoint; the folder of a healing that is done; the half of the held-out text that judges.
Out:   for each row loss, KL and top-1, and its loss less the original's with the paired standard error: plain data.
Never: a row in another wiring than it says. The original runs as transformers has loaded it, not compiled, before
       anything is prepared; all others are compiled by this backend, the healed one from the checkpoint as it was
       saved, with its own manifest.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.guard.forward import unguard
from farskip_compile.errors import DistillationError
from farskip_compile.healing.causal.asking import MEMORY, Asking
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.evaluate import Evaluation, HeldOut, paired
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher, evaluating
from farskip_compile.healing.distill.beginning import FOLD
from farskip_compile.healing.distill.main import CHECKPOINT
from farskip_compile.healing.fold.states import folded_weights
from farskip_compile.healing.heal.material import Half, device_of, plain_model
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.healing.heal.steps import STEPS
from farskip_compile.manifest import load_manifest
from farskip_compile.manifest.files import CONFIG
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.tools.prepare import prepare


def judge(
    settings: HealSettings, half: Half, chosen: tuple[Connectivity, LayerRange], *, folded: bool
) -> dict[str, dict[str, Any]]:
    """Figures by row, in the order of the page; `folded`: whether there was a fold.

    Raises:
        DistillationError: a file of the fold is damaged.
        FarSkipError: a manifest does not fit its checkpoint.
    """
    model = plain_model(settings)
    batches = [as_batch(one, device_of(settings)) for one in half.batches]
    with evaluating(model):
        asking = Asking(model, batches[0], MEMORY)
        evaluation = Evaluation(batches, FrozenTeacher(model, asking=asking), TrainingRanks(model), MEMORY)
        found = {"original": _row(evaluation, model, asking)}
    prepare(model)
    config = FarSkipConfig(connectivity=chosen[0], layers=chosen[1], inner=settings.inner)
    compiled = torch.compile(model, backend=backend(config), fullgraph=True)
    found["rewired"] = _row(evaluation, model, asking, compiled)
    if folded:
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, value in folded_weights(settings.out / FOLD).items():
                parameters[name].copy_(value)
        found["folded"] = _row(evaluation, model, asking, compiled)
    del model, asking, compiled
    torch.compiler.reset()
    gc.collect()
    found["healed"] = _healed(settings, evaluation)
    return {name: _figures(one, found) for name, one in found.items()}


def _healed(settings: HealSettings, evaluation: Evaluation) -> HeldOut:
    from transformers import AutoModelForCausalLM

    folder = settings.out / CHECKPOINT
    if not (folder / CONFIG).is_file():
        raise DistillationError(
            f"the healed checkpoint {folder} is not there any more",
            way_out=f"put it back, or remove {settings.out / STEPS / 'healing.json'}: it is written again from the "
            "last state",
        )
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder))
    model = model.to(device_of(settings))
    unguard(model)  # its head is found by running a few tokens
    prepare(model)
    config = FarSkipConfig(manifest=load_manifest(folder), inner=settings.inner)
    with evaluating(model):
        asking = Asking(model, evaluation.batches[0], MEMORY)
    return _row(evaluation, model, asking, torch.compile(model, backend=backend(config), fullgraph=True))


def _row(evaluation: Evaluation, model: nn.Module, asking: Asking, compiled: Any = None) -> HeldOut:
    asked = asking.of(compiled if compiled is not None else model)
    return evaluation(lambda batch: asked(batch).said, model)


def _figures(one: HeldOut, of: Mapping[str, HeldOut]) -> dict[str, Any]:
    apart, error = paired(one, of["original"])
    damage = of["rewired"].kl
    assert one.kl is not None
    return {
        **one.figures,
        "perplexity": one.perplexity,
        "repaired": 1 - one.kl / damage if damage else None,
        "difference": apart,
        "error": error,
    }
