"""Rows, from their start to their results on disk, several at a time, each in a process with one thread.

In:    rows, a scale and the folder of the experiment.
Out:   `folder/rows/<row>/result.json`, and the trained weights in `folder/rows/<row>/model`; results in order of
       completion.
Never: the same weights chosen and judged by the same text; a row before those it needs, or after one has failed.

An interrupted row resumes. Two processes with one thread each finish far more small models in an hour than one process
with two threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
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
from distill_bench.results import FILE, FrontPoint, FrontResult, Result, digest_of, kept
from distill_bench.rows import FREED, MEMORY_INCREASE, PROFILE, RANKS, TOKENS, Row, Scale, rows_of
from distill_bench.texts import TextData, text_data
from farskip_compile import prepare
from farskip_compile.config import FarSkipConfig
from farskip_compile.distill import DistillConfig, self_distill
from farskip_compile.distill.main import CHECKPOINT
from farskip_compile.distill.records import FILE as METRICS
from farskip_compile.plan import Front, Point, connectivity_of, find_front, measure_damage, measure_together
from farskip_compile.testing import fake_ranks

QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
R = TypeVar("R")
ROWS = "rows"
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
            for row in [one for one in waiting if all(f"{one.model}-{need}" in done for need in one.needs)]:
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

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


# One


def run_row(folder: Path, scale: Scale, row: Row) -> Result | FrontResult:
    """The row's result, from disk if it is there; `FarSkipError` if the model can't be rewired or trained as asked."""
    rows = folder / ROWS
    if (found := kept(rows, row, scale)) is not None:
        return found
    own = rows / row.key
    _clear_if_other(own, digest_of(row, scale))
    data = text_data(folder, scale)
    if row.kind == "front":
        result: Result | FrontResult = _planned(row, scale, teacher_of(rows, row), data)
    else:
        result = _trained_and_judged(rows, row, scale, data)
    replace(own / FILE, json.dumps(asdict(result)) + "\n")
    return result


def teacher_of(rows: Path, row: Row) -> Any:
    """The trained original of the row's model, prepared for capture."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(rows / f"{row.model}-teacher" / CHECKPOINT)
    prepare(model)
    return model


def _planned(row: Row, scale: Scale, teacher: Any, data: TextData) -> FrontResult:
    """The front: what each set of sub-blocks does to the text and what it hides; and which of them the plan is.

    Damages are not additive: every set of the front is also rewired as a whole.
    """
    started = time.perf_counter()
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
        seconds=time.perf_counter() - started,
    )


def _point(front: Front, point: Point, together: Mapping[tuple[str, ...], float]) -> FrontPoint:
    return FrontPoint(point.rows, point.damage, together[point.rows], point.exposure.hidden, front.freed(point))


def _trained_and_judged(rows: Path, row: Row, scale: Scale, data: TextData) -> Result:
    started = time.perf_counter()
    own = rows / row.key
    model = new_model(row.model, scale, row.seed) if row.kind in ("teacher", "scratch") else teacher_of(rows, row)
    config = FarSkipConfig(connectivity=_connectivity(rows, row, scale), layers=row.layers, inner="eager")
    steps = best = tokens = 0
    history: list[tuple[int, float, float | None]] = []
    if row.learns != "nothing":
        done = self_distill(model, data.train, _configuration(row, scale, config, own), held_out=data.chosen_by)
        steps, best, tokens = done.steps, done.best_step, done.tokens
        history = _history(own / METRICS)
    teacher = model if row.kind == "teacher" else teacher_of(rows, row)
    figures = judge(model, config, teacher, data.judged_by)
    main = row.connectivity in ("full", "none") and row.layers is None and (row.seed, row.times) == (scale.seeds[0], 1)
    samples = continue_prompts(model, config, data, scale.new_tokens) if main else []
    return Result(
        row=row,
        digest=digest_of(row, scale),
        **figures,
        steps=steps,
        best_step=best,
        tokens=tokens,
        seconds=time.perf_counter() - started,
        parameters=parameters(model),
        history=history,
        samples=samples,
    )


def _history(metrics: Path) -> list[tuple[int, float, float | None]]:
    """All evaluations, also those of an interrupted process."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(one["step"], one["held_out_loss"], one["held_out_kl"]) for one in lines if "held_out_loss" in one]


def _connectivity(rows: Path, row: Row, scale: Scale) -> Any:
    if row.connectivity != "plan":
        return row.connectivity
    front = kept(rows, next(one for one in rows_of(row.model, scale) if one.kind == "front"), scale)
    assert isinstance(front, FrontResult)
    return front.connectivity


def _configuration(row: Row, scale: Scale, config: FarSkipConfig, output: Path) -> DistillConfig:
    heals = row.kind == "healed"
    steps = scale.heal_steps(row.times) if heals else scale.steps
    return DistillConfig(
        connectivity=config.connectivity,
        layers=config.layers,
        options={"inner": config.inner},
        objective="kl" if row.learns == "teacher" else "next_token",
        steps=steps,
        learning_rate=scale.heal_learning_rate if heals else scale.learning_rate,
        warm_up_steps=scale.warm_up(steps),
        weight_decay=0.0 if heals else 0.05,
        evaluate_every=max(1, steps // 10),
        save_every=max(1, steps // 10),
        seed=row.seed,
        output=output,
        progress=False,
    )


def _clear_if_other(folder: Path, digest: str) -> None:
    about = folder / ABOUT
    if folder.exists() and (not about.exists() or about.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(digest)
