# SPDX-License-Identifier: Apache-2.0
"""Rows, from their start to their results on disk, several at a time, each in a process with one thread.

In:    rows, a scale and the folder of the experiment.
Out:   `folder/rows/<row>/result.json`, and the trained weights in `folder/rows/<row>/model`; results in order of
       completion.
Never: the same weights chosen and judged by the same text; a row before those it needs, or after one has failed.

An interrupted row resumes. Two processes with one thread each finish far more small models in an hour than one process
with two threads.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from common import replace

from distill_bench.architectures import new_model, parallel_model, parameters
from distill_bench.judge import continue_prompts, judge
from distill_bench.page import SHOWN
from distill_bench.results import FILE, FrontPoint, FrontResult, Result, digest_of, kept
from distill_bench.rows import (
    FREED,
    MEMORY_INCREASE,
    OTHER_SEED,
    PAPER,
    PROFILE,
    RANKS,
    RECIPES,
    TOKENS,
    Row,
    Scale,
    rows_of,
)
from distill_bench.texts import TextData, text_data
from farskip_compile import prepare
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.healing.distill import DistillConfig, Distilled, self_distill
from farskip_compile.healing.distill.main import CHECKPOINT
from farskip_compile.healing.distill.records import FILE as METRICS
from farskip_compile.healing.plan import Front, connectivity_of, find_front, measure_damage, measure_together
from farskip_compile.healing.plan.choose import Point

QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # large tensors are kept for the next step, not given back to the system: a fifth of the time of a step
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
R = TypeVar("R")
ROWS = "rows"
EVALUATIONS = 10
"""In the training of a teacher."""
HEALING_EVALUATIONS = 5
PAPER_BETA2 = 0.95
WARM_UP = 100
"""Steps of a teacher; at most a tenth."""
ABOUT = "row.txt"
"""Which row at which scale the states in a folder belong to."""


# Several at a time


def run_rows(
    rows: Sequence[Row], workers: int, *, first: Callable[[], object], work: Callable[[Row], R]
) -> Iterator[R]:
    """The results of `work` for `rows`, each of which comes after those it needs; `first` is called before any.

    Both run in other processes. The error of the first row that failed is raised when the running rows have finished.
    """
    os.environ.update(QUIET)
    done: set[str] = set()
    waiting = list(rows)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    running: dict[Future[R], Row] = {}
    try:
        pool.submit(_without_result, first).result()
        while waiting or running:
            for row in [one for one in waiting if all(f"{one.setting}-{need}" in done for need in one.needs)]:
                if len(running) == workers:
                    break
                waiting.remove(row)
                running[pool.submit(work, row)] = row
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                row = running.pop(future)
                if future.exception() is not None and running:
                    print(f"{row.key} failed; waiting for the running rows", file=sys.stderr, flush=True)
                yield future.result()
                done.add(row.key)
    finally:
        pool.shutdown(cancel_futures=True)


def _without_result(work: Callable[[], object]) -> None:
    work()


def _begin() -> None:
    from transformers.utils import logging

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _end_with(parent: int) -> None:
    """End this process once its parent has: a new run must not find a second writer of the same row."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


# One


def run_row(folder: Path, scale: Scale, row: Row) -> Result | FrontResult:
    """The row's result, from disk if it is there; `FarSkipError` if the model can't be rewired or trained as asked."""
    rows = folder / ROWS
    if (found := kept(rows, row, scale)) is not None:
        return found
    own = rows / row.key
    _clear_if_other(own, digest_of(row, scale))
    data = text_data(folder, scale, row.corpus)
    if row.kind == "front":
        result: Result | FrontResult = _planned(row, scale, teacher_of(rows, row), data)
    else:
        result = _trained_and_judged(rows, row, scale, data)
    replace(own / FILE, json.dumps(asdict(result)) + "\n")
    return result


def teacher_of(rows: Path, row: Row) -> Any:
    """The trained original that a row starts from, prepared for capture."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(rows / f"{row.setting}-teacher@{row.seed}" / CHECKPOINT)
    prepare(model)
    return model


def _planned(row: Row, scale: Scale, teacher: Any, data: TextData) -> FrontResult:
    """The front: what each set of sub-blocks does to the text and what it hides; and which of them the plan is.

    Damages are not additive: every set of the front is also rewired as a whole.
    """
    started = time.process_time()
    damage = measure_damage(teacher, data.chosen_by)
    estimates = 0

    def count(_: tuple[str, ...]) -> None:
        nonlocal estimates
        estimates += 1

    with fake_ranks(RANKS):
        parallel = parallel_model(row.model, scale, dist.group.WORLD)
        ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
        limits = FarSkipConfig(profile=PROFILE, memory_increase=MEMORY_INCREASE)
        front = find_front(parallel, (ids,), damage, config=limits, on_estimate=count)
    chosen = front.for_share(FREED)
    sets = [*(point.rows for point in front.points), front.whole.rows]
    together = {rows: one.kl or 0.0 for rows, one in measure_together(teacher, data.chosen_by, damage, sets).items()}
    return FrontResult(
        row=row,
        digest=digest_of(row, scale),
        points=[_point(front, one, together) for one in front.points],
        chosen=front.points.index(chosen),
        whole=_point(front, front.whole, together),
        damages={one.row: one.held_out.kl or 0.0 for one in damage.rows},
        connectivity={name: list(terms) for name, terms in dict(connectivity_of(damage, chosen.rows)).items()},
        estimates=estimates,
        seconds=time.process_time() - started,
    )


def _point(front: Front, point: Point, together: Mapping[tuple[str, ...], float]) -> FrontPoint:
    return FrontPoint(point.rows, point.damage, together[point.rows], point.exposure.hidden, front.freed(point))


def _trained_and_judged(rows: Path, row: Row, scale: Scale, data: TextData) -> Result:
    started = time.process_time()
    own = rows / row.key
    scratch = row.kind == "teacher"
    model = new_model(row.model, scale, row.seed) if scratch else teacher_of(rows, row)
    config = FarSkipConfig(connectivity=_connectivity(rows, row, scale), inner="eager")
    steps = best = tokens = 0
    history: list[tuple[int, float, float | None]] = []
    notes: dict[str, Any] = {}
    if row.kind == "folded":
        tokens, notes = _folded(model, row, scale, config, data)
    elif row.kind != "unhealed":
        asked = configuration(row, scale, config, own)
        batch = scale.batch if scratch else RECIPES[row.recipe].batch
        # a fold takes batches of one shape
        held_out = [part for one in data.chosen_by for part in one.split(batch)]
        done = self_distill(model, data.train(batch), asked, held_out=held_out)
        steps, best, notes = done.steps, done.best_step, done.notes
        tokens = tokens_of(done)
        history = _history(own / METRICS)
    teacher = model if row.kind == "teacher" else teacher_of(rows, row)
    figures = judge(model, config, teacher, data.judged_by, data.bytes_per_token)
    shown = row.label in SHOWN and row.corpus == scale.corpora[0] and row.seed == scale.seeds[0]
    samples = continue_prompts(model, config, data, scale.new_tokens) if shown else []
    return Result(
        row=row,
        digest=digest_of(row, scale),
        **figures,
        steps=steps,
        best_step=best,
        tokens=tokens,
        seconds=time.process_time() - started,
        parameters=parameters(model),
        history=history,
        samples=samples,
        notes=notes,
    )


def _folded(model: Any, row: Row, scale: Scale, config: FarSkipConfig, data: TextData) -> tuple[int, dict[str, Any]]:
    """Fold, with the first batches that healing would read; its tokens, and what is noted."""
    from farskip_compile.healing.fold import fold

    torch.manual_seed(row.seed + OTHER_SEED)
    batches = list(itertools.islice(data.train(scale.batch), scale.calibration_alone))
    found = fold(model, batches, held_out=data.chosen_by, connectivity=config.connectivity)
    taken = sum(read.accepted for read in found.reads)
    return found.tokens, {"tokens": found.tokens, "accepted": taken, "rejected": len(found.reads) - taken}


def tokens_of(done: Distilled) -> int:
    """What was learned from: targets of the steps and of trials, and tokens that calibrated a fold."""
    tried = sum(one.steps for one in done.trials)
    return done.tokens + tried * done.tokens // done.steps + done.notes.get("fold", {}).get("tokens", 0)


def _history(metrics: Path) -> list[tuple[int, float, float | None]]:
    """All evaluations, also those of an interrupted process."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(one["step"], one["held_out_loss"], one["held_out_kl"]) for one in lines if "held_out_loss" in one]


def _connectivity(rows: Path, row: Row, scale: Scale) -> Any:
    if row.connectivity != "plan":
        return row.connectivity
    all_rows = rows_of(row.model, row.corpus, scale)
    front = kept(rows, next(one for one in all_rows if one.kind == "front"), scale)
    assert isinstance(front, FrontResult)
    return front.connectivity


def configuration(row: Row, scale: Scale, config: FarSkipConfig, output: Path | None) -> DistillConfig:
    """How a row is trained."""
    return DistillConfig(**options_of(row, scale, config, output))


def options_of(row: Row, scale: Scale, config: FarSkipConfig, output: Path | None) -> dict[str, Any]:
    """Fields of its `DistillConfig`."""
    options: dict[str, Any] = {"connectivity": config.connectivity, "options": {"inner": config.inner}}
    if row.kind == "teacher":
        steps, points, most = scale.steps, EVALUATIONS, WARM_UP
        options |= {"objective": "next_token", "learning_rate": scale.learning_rate, "weight_decay": 0.05}
        options["options"] = {"inner": "inductor" if scale.compiled else config.inner}
        options |= {"seed": row.seed, "beta2_half_life": _half_life(PAPER_BETA2, scale.tokens())}
    else:
        recipe = RECIPES[row.recipe]
        steps, points, most = scale.heal_steps(row.part, recipe), HEALING_EVALUATIONS, recipe.warm_up
        options |= {"learning_rate": recipe.learning_rate, "seed": row.seed + OTHER_SEED}
        if recipe == PAPER:
            options |= {"recipe": "paper"}
        elif recipe.batch == PAPER.batch:
            options |= {"beta2_half_life": _half_life(PAPER_BETA2, scale.tokens())}
        if recipe.by_text:
            options |= {"objective": "next_token"}
        if recipe.fold:
            options |= {"fold": True, "fold_batches": scale.calibration * scale.batch // recipe.batch}
        options |= {"stream_weight": recipe.stream}
    every = max(1, steps // points)
    times = {"steps": steps, "warm_up_steps": min(most, steps // 10), "evaluate_every": every, "save_every": every}
    return {**options, **times, "output": output, "progress": False}


def _half_life(beta: float, tokens: int) -> float:
    """In tokens, of an average that each step of so many tokens multiplies by `beta`."""
    return tokens * math.log(0.5) / math.log(beta)


def _clear_if_other(folder: Path, digest: str) -> None:
    about = folder / ABOUT
    if folder.exists() and (not about.exists() or about.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(digest)
