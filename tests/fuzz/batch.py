# SPDX-License-Identifier: Apache-2.0
"""Any number of examples from one seed, in chunks, in processes that are renewed now and then.

In:    how many examples of each kind, a seed, a number of processes, and a time limit if there is one.
Out:   a `Result` for each chunk, as they come; failures shrunk by hypothesis if asked, which may take minutes each.
Never: stops at a failure; keeps anything between runs. The same seed gives the same examples, whatever the processes.

A chunk is what is replayed: kind, seed and number say which examples are drawn. Hypothesis stops at a failure; the rest
of the chunk is then drawn from the next seed, until enough examples have run or `MOST_FAILURES` are found.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.checks import KINDS

MOST_FAILURES = 3
CHUNKS_PER_PROCESS = 10
"""Dynamo and the operator registries keep something of each compile."""


@dataclass(frozen=True)
class Chunk:
    """Some examples of one kind; `examples` may be changed, the first ones stay the same."""

    kind: str
    seed: int
    number: int
    examples: int

    @property
    def name(self) -> str:
        """What `--replay` takes."""
        return f"{self.kind}:{self.seed}:{self.number}"


@dataclass
class Failure:
    """An unmet demand, and the smallest example that was found for it (the first, if nothing was shrunk)."""

    chunk: Chunk
    index: int
    """Which example of the chunk failed first, counted from 0."""
    example: str
    error: str


@dataclass
class Result:
    """What a chunk came to."""

    chunk: Chunk
    ran: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)
    """Digests of the examples, to tell how many are distinct."""
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = True
    """False: the time was over."""


def chunks(examples: dict[str, int], seed: int) -> list[Chunk]:
    """Split the work, the kinds in turn, so that a run that is stopped early has seen them all."""
    made: list[tuple[float, Chunk]] = []
    for kind, count in examples.items():
        size = KINDS[kind].chunk
        number = math.ceil(count / size)
        for index in range(number):
            made.append((index / number, Chunk(kind, seed, index, min(size, count - index * size))))
    return [chunk for _, chunk in sorted(made, key=lambda pair: pair[0])]


def run_chunk(chunk: Chunk, deadline: float = math.inf, *, shrink: bool = True) -> Result:
    """Run one chunk in this process.

    Args:
        chunk: which examples.
        deadline: no example begins after this time (`time.time()`).
        shrink: look for a smaller example of each failure.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    result = Result(chunk)
    attempt = 0
    while result.ran < chunk.examples and result.complete and len(result.failures) < MOST_FAILURES:
        _until_failure(result, zlib.crc32(f"{chunk.name}:{attempt}".encode()), deadline, shrink)
        attempt += 1
    result.seconds = time.perf_counter() - started
    return result


def _until_failure(result: Result, chosen_seed: int, deadline: float, shrink: bool) -> None:
    kind = KINDS[result.chunk.kind]
    failure: Failure | None = None

    def check(example: Any) -> None:
        nonlocal failure
        if failure is None:
            if time.time() > deadline:
                result.complete = False
            if not result.complete:
                return
            result.ran += 1
        try:
            counts = kind.check(example)
        except Exception as error:
            index = failure.index if failure is not None else result.ran - 1
            failure = Failure(result.chunk, index, written_out(example), _described(error))
            raise
        if failure is None:
            result.counts += counts
            result.seen.add(zlib.crc32(repr(example).encode()))

    try:
        _driven(kind.strategy(), check, result.chunk.examples - result.ran, chosen_seed, shrink)()
    except Exception as error:
        if failure is None:
            failure = Failure(result.chunk, result.ran, "", f"drawing failed: {_described(error)}")
        result.failures.append(failure)


def _driven(
    strategy: Any, check: Callable[[Any], None], examples: int, chosen_seed: int, shrink: bool
) -> Callable[[], None]:
    """`check` on examples from hypothesis, which stops at the first that fails, and may shrink it."""

    def body(example: Any) -> None:
        check(example)

    quiet = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    return seed(chosen_seed)(quiet(given(strategy)(body)))


def _described(error: Exception) -> str:
    """The error and the innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = ", ".join(f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error} ({places})"


def run_all(todo: Iterable[Chunk], jobs: int, deadline: float = math.inf) -> Iterator[Result]:
    """Run chunks in `jobs` processes, failures as they are; yields results as they come.

    A process that dies takes its chunk with it: a failure, and the end of the run.
    """
    context = multiprocessing.get_context("spawn")
    pending: dict[Future[Result], Chunk] = {}
    waiting = iter(todo)
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=CHUNKS_PER_PROCESS) as pool:
        while True:
            while len(pending) < jobs and time.time() < deadline and (chunk := next(waiting, None)) is not None:
                pending[pool.submit(run_chunk, chunk, deadline, shrink=False)] = chunk
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = pending.pop(future)
                try:
                    yield future.result()
                except Exception as error:  # BrokenProcessPool, or a result that can't be sent
                    yield Result(chunk, failures=[Failure(chunk, 0, "", f"the process died: {error!r}")])
                    return


def written_out(value: Any) -> str:
    """A Python expression that makes `value`; fields of dataclasses that have their default are left out."""
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        inside = ", ".join(map(written_out, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = [(one, getattr(value, one.name)) for one in fields(value)]
    shown = [f"{one.name}={written_out(part)}" for one, part in given if one.default is MISSING or part != one.default]
    return f"{type(value).__name__}({', '.join(shown)})"
