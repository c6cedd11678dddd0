# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: facts about a run, files of results, tables, pages, pictures and worker processes.

Contract: a file is never seen half written, and equal results give equal files. Torch and matplotlib are imported only
where they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

DOCS = Path(__file__).parents[1] / "docs"
Task, Found = TypeVar("Task"), TypeVar("Found")

# Facts


def processor() -> str:
    """Its name, the number of cores, and the system."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def facts() -> dict[str, str]:
    """`machine` (with its load), `versions` and `command` of this run."""
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    packages = f"torch {version('torch')}, farskip-compile {version('farskip-compile')}"
    return {
        "machine": processor() + load,
        "versions": f"Python {platform.python_version()}, {packages}",
        "command": " ".join(["python", *sys.argv]),
    }


# Files


def replace(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


class RecordsError(Exception):
    """A file of results that can't be read."""


def write_records(path: Path, schema: int, facts: Mapping[str, Any], **lists: Iterable[Mapping[str, Any]]) -> None:
    """Lists of plain data as JSON, one record per line, after `schema` and `facts`."""
    parts = [f'{{"schema": {schema}', f'"facts": {json.dumps(facts, indent=1)}']
    for name, records in lists.items():
        lines = ",\n".join(map(json.dumps, records))
        parts.append(f'"{name}": [\n{lines}\n]')
    replace(path, ",\n".join(parts) + "}\n")


def load_records(path: Path, schema: int, build: Callable[[dict[str, Any]], Found]) -> Found:
    """What `build` makes of the data in a file.

    Raises:
        RecordsError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != schema:
            raise RecordsError(f"{path} has schema {data['schema']}, not {schema}: measure again into another file")
        return build(data)
    except FileNotFoundError:
        raise RecordsError(f"there is no {path}: measure first, or give --json the file of a run") from None
    except (KeyError, TypeError, ValueError) as error:
        raise RecordsError(f"{path} is not a result of this benchmark: {type(error).__name__} {error}") from None


def decode(kind: Any, value: Any) -> Any:
    """A value of type `kind` from what `dataclasses.asdict` and JSON made of it; unknown fields are dropped."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: decode(hints[name], part) for name, part in value.items() if name in hints})  # type: ignore[operator]
    if origin in (Union, UnionType):
        return None if value is None else decode(next(one for one in arguments if one is not NoneType), value)
    if origin is tuple:
        return tuple(map(decode, repeat(arguments[0]) if arguments[-1] is ... else arguments, value))
    if origin in (list, Sequence):
        return [decode(arguments[0], one) for one in value]
    if origin in (dict, Mapping):
        return {key: decode(arguments[1], one) for key, one in value.items()}
    return value


# Text


@dataclasses.dataclass(frozen=True)
class Target:
    """What was to hold, and whether it does."""

    target: str
    met: bool
    found: str
    """The figures, and by how much it is missed."""
    of: str = ""
    """A cell or a model."""

    def line(self) -> str:
        """For the terminal."""
        return f"{'met   ' if self.met else 'MISSED'} {self.of} {self.target}: {self.found}"


def aligned(facts: Mapping[str, str]) -> str:
    return "\n".join(f"{name + ':':9} {text}" for name, text in facts.items())


def columns(lines: Sequence[Sequence[str]], indent: str = "") -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        indent + "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )


def markdown(head: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; the headings of columns of numbers, which are aligned to the right, begin with `>`."""
    names = head.split(" | ")
    rule = "|".join("---:" if name.startswith(">") else "---" for name in names)
    lines = [f"| {' | '.join(row)} |" for row in ([name.removeprefix(">") for name in names], *rows)]
    return [lines[0], f"|{rule}|", *lines[1:]]


def span(values: Iterable[float], text: str) -> str:
    """`low to high` in the format `text`; one figure if both read alike."""
    ends = sorted(values)
    low, high = text.format(ends[0]), text.format(ends[-1])
    return low if low == high else f"{low} to {high}"


def write_between_marks(page: Path, script: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks of `script` in `page`; the rest stays."""
    begin, end = f"<!-- written by {script} -->", "<!-- until here -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    replace(page, "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"]))


# Pictures


@contextlib.contextmanager
def picture(path: Path, rows: int, columns: int, size: tuple[float, float], title: str) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (two-dimensional), saved as PNG at the end of the block; needs matplotlib. The title says
    what holds for all of it: device, phase, batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for one in axes.flat:
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    try:
        yield figure, axes
        figure.savefig(path, dpi=130, metadata={"Software": None})  # equal results, equal bytes
    finally:
        pyplot.close(figure)


# Processes


def each_in_a_process(work: Callable[[Task], Found], tasks: Sequence[Task], workers: int) -> list[Found]:
    """`work(task)` for each task, in order; each in a process with one thread, so that its memory can be measured."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet, max_tasks_per_child=1) as pool:
        return list(pool.map(work, tasks))


def _quiet() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
