# SPDX-License-Identifier: Apache-2.0
"""What a run reports while it goes on: JSON lines, a progress bar, TensorBoard.

In:    a dictionary of numbers for each reported step.
Out:   `metrics.jsonl` (one sealed JSON object a line, flushed); on a terminal a bar; if asked, TensorBoard's files.
Never: reports on another rank than the first; leaves lines of steps that a resumed run takes again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from farskip_compile.base.extras import missing
from farskip_compile.base.json_files import sealed, unsealed, write_text
from farskip_compile.base.reading.files import read_bytes
from farskip_compile.errors import DistillationError
from farskip_compile.healing.distill.config import DistillConfig

FILE = "metrics.jsonl"
LARGEST = 2**28
"""Bytes of metrics that are read back: those of about a million steps."""


class Records:
    """Open from the first step, before which `step` were taken, to the last."""

    def __init__(self, config: DistillConfig, step: int, *, first: bool) -> None:
        self.file: Any = None
        self.board: Any = None
        self.bar: Progress | None = None
        if not first:
            return
        if config.output is not None:
            config.output.mkdir(parents=True, exist_ok=True)
            path = config.output / FILE
            kept = _lines(path, step) if step else []
            write_text(path, "".join(f"{line}\n" for line in kept))
            self.file = path.open("a")
            if config.tensorboard:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError as error:
                    raise missing("tensorboard=True", "tensorboard") from error
                self.board = SummaryWriter(str(config.output), purge_step=step + 1)
        if config.progress and sys.stderr.isatty():
            shown = TextColumn("{task.fields[shown]}")
            columns = ("distill", BarColumn(), MofNCompleteColumn(), shown, TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=config.steps, completed=step, shown="")

    def write(self, step: int, **numbers: float | int | None) -> None:
        """Numbers of one step; `step` counts from 1."""
        if self.file is not None:
            self.file.write(sealed({"step": step, **numbers}) + "\n")
            self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                if value is not None:
                    self.board.add_scalar(name, value, step)
        if self.bar is not None:
            shown = {name: numbers[name] for name in ("loss", "held_out_kl", "held_out_loss") if name in numbers}
            text = " ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in shown.items())
            self.bar.update(self.task, completed=step)
            if text:
                self.bar.update(self.task, shown=text)

    def close(self) -> None:
        """Close at the end of the run, however it ended."""
        for one in (self.file, self.board):
            if one is not None:
                one.close()
        if self.bar is not None:
            self.bar.stop()


def _lines(path: Path, last: int) -> list[str]:
    """Whole lines up to step `last`; a killed run may have left half a line behind them.

    Raises:
        DistillationError: a line is damaged.
    """
    way_out = f"move {path} away: the run continues without its earlier lines"
    kept: list[str] = []
    try:
        text = read_bytes(path, LARGEST).decode() if path.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():
            if unsealed(line)["step"] > last:
                break
            kept.append(line)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DistillationError(f"can't read line {len(kept) + 1} of {path}: {error}", way_out=way_out) from error
    return kept
