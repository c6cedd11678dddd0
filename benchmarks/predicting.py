"""What the benchmarks of predictions share: processes that predict, and pages that are written between marks.

Contract: a prediction has a process of its own, with one thread, so that its memory can be told; torch and transformers
say nothing there. A page keeps what stands outside of its marks.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

Task, Found = TypeVar("Task"), TypeVar("Found")


def each_in_a_process(work: Callable[[Task], Found], tasks: Sequence[Task], workers: int) -> list[Found]:
    """What `work` makes of each task, in their order; so many at a time."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet, max_tasks_per_child=1) as pool:
        return list(pool.map(work, tasks))


def _quiet() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def write_between_marks(page: Path, script: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks of `script` in `page`."""
    begin, end = f"<!-- written by {script} -->", "<!-- until here -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text("\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"]), encoding="utf-8")
