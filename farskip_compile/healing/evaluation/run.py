# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints on the same tasks of lm-eval.

In:    an original, a healed checkpoint, names of tasks, settings.
Out:   a `Comparison`.
Never: runs a checkpoint with a manifest in its original wiring; keeps both models in memory; asks them different
       things. Nothing is written to stdout: what lm-eval prints there goes to stderr.

Algorithm:
1. The tasks, the limits and the manifest, before any model: unknown names are errors.
2. The original, as it is written if it has no manifest (lm-eval's `hf`); then the healed one, as `FarSkipLM`. Both with
   lm-eval's seeds, the same examples and the same batches.
3. Both compared sample by sample (`difference`).
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.metrics import mean as mean_of_theirs
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoConfig

from farskip_compile.errors import ConfigError
from farskip_compile.healing.evaluation.difference import Aggregate, Comparison, MetricLimits, compare, mean
from farskip_compile.healing.evaluation.found import needed_manifest
from farskip_compile.healing.evaluation.model import FarSkipLM, default_device
from farskip_compile.manifest.found import find_manifest
from farskip_compile.manifest.lost import new_parameters, refuse_lost

BOOTSTRAPS = 1000
"""For lm-eval's standard errors of what is not a mean; its own default (100,000) takes minutes for each."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What both models are run with; names as in lm-eval."""

    limit: int | None = None
    """Samples of each task; None: all."""
    num_fewshot: int | None = None
    """Examples in each prompt; None: as the task says."""
    batch_size: int | str = 1
    """Requests at a time, or `auto`."""
    device: str | None = None
    """None: an accelerator if there is one."""
    dtype: str = "auto"
    """Of the parameters; `auto`: as the checkpoint says."""
    include_path: Path | None = None
    """A folder with further tasks."""
    apply_chat_template: bool = False
    """Put the prompts into the tokenizer's chat template."""
    inner: str = "inductor"
    """Compiles the rewired graphs."""
    limits: MetricLimits = field(default_factory=lambda: MetricLimits({}))
    """How much worse metrics may become."""


def evaluate(
    original: str,
    healed: str,
    tasks: Sequence[str],
    settings: EvaluationSettings | None = None,
    *,
    tell: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Run two checkpoints on the same tasks, one after the other.

    Args:
        original: a folder, or a name on the Hub; run as it is written, unless it has a manifest, too.
        healed: likewise; run as its manifest says.
        tasks: names of lm-eval's tasks, or of those in `settings.include_path`.
        settings: for both; None: the defaults.
        tell: called with what is being done.

    Raises:
        ConfigError: an unknown task, or a limit for one that is not measured.
        ManifestError: the healed checkpoint has no manifest.
        OriginalWiringError: a rewired model did not run rewired.
    """
    settings = settings or EvaluationSettings()
    with contextlib.redirect_stdout(sys.stderr):
        tell("tasks of lm-eval")
        manager = TaskManager(include_path=str(settings.include_path) if settings.include_path else None)
        aggregates = _aggregates(manager, tasks)
        _check_limits(settings.limits, aggregates)
        needed_manifest(healed, AutoConfig.from_pretrained(healed))  # before the original runs for hours
        tell(f"1 of 2: {original}")
        first, how_first = _run(original, tasks, manager, settings)
        tell(f"2 of 2: {healed}")
        second, how_second = _run(healed, tasks, manager, settings)
    return Comparison(compare(first, second, aggregates, settings.limits), how_first, how_second)


def _run(
    checkpoint: str, tasks: Sequence[str], manager: TaskManager, settings: EvaluationSettings
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """lm-eval's result, and the evidence of how a rewired model ran."""
    device = settings.device or default_device()
    common: dict[str, Any] = {"device": device, "dtype": settings.dtype, "batch_size": settings.batch_size}
    if find_manifest(checkpoint, AutoConfig.from_pretrained(checkpoint)) is None:
        model = HFLM(checkpoint, **common)
        if new := new_parameters(model.model):
            refuse_lost(sorted(new), f"the checkpoint {checkpoint}")
    else:
        model = FarSkipLM(checkpoint, inner=settings.inner, **common)
    result = lm_eval.simple_evaluate(
        model,
        tasks=list(tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        log_samples=True,
        bootstrap_iters=BOOTSTRAPS,
        apply_chat_template=settings.apply_chat_template,
        task_manager=manager,
    )
    evidence = model.evidence.to_json() if isinstance(model, FarSkipLM) else None
    del model
    gc.collect()  # a model is part of circles
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return result, evidence


def _aggregates(manager: TaskManager, tasks: Sequence[str]) -> dict[str, dict[str, Aggregate]]:
    """How each metric of each task sums up its samples; of groups of tasks, nothing.

    Raises:
        ConfigError: a task is not known, or can't be loaded.
    """
    for name in tasks:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, 3)
            raise ConfigError(
                f"lm-eval has no task {name!r}",
                way_out=f"did you mean {', '.join(close)}?"
                if close
                else "`lm_eval ls tasks` names them all; tasks of your own: --include-path FOLDER",
            )
    try:
        loaded = manager.load(list(tasks))
    except Exception as error:  # of lm-eval, of datasets, or of code of the task
        raise ConfigError(
            f"lm-eval can't load the tasks: {type(error).__name__}: {error}",
            way_out="check the task's YAML file and data, or the connection",
        ) from error
    found = {
        name: {metric: mean if one is mean_of_theirs else one for metric, one in task.aggregation().items()}
        for name, task in loaded["tasks"].items()
    }
    return {**{name: {} for name in loaded["groups"]}, **found}


def _check_limits(limits: MetricLimits, aggregates: Mapping[str, Mapping[str, Aggregate]]) -> None:
    """Which metrics a group has is known when it has run.

    Raises:
        ConfigError: a limit is for a task or a metric that will not be measured.
    """
    for name in limits.named:
        task, _, metric = name.partition(":")
        if task not in aggregates or (metric and aggregates[task] and metric not in aggregates[task]):
            known = [task, *(f"{task}:{one}" for one in aggregates[task])] if task in aggregates else list(aggregates)
            raise ConfigError(
                f"there is a limit for {name!r}, which will not be measured", way_out=f"one of {', '.join(known)}"
            )
