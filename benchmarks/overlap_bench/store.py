"""The file of results: JSON, one entry for each cell, complete after every cell.

Contract: a file is never seen half written. A cell that is measured again replaces its entry, so that an interrupted
run goes on where it was (`--resume`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlap_bench.cells import MODELS, PHASES, ROUTINGS, Cell
from overlap_bench.results import Result

SCHEMA = 2


class StoreError(Exception):
    """A file that can't be read."""


@dataclass
class Store:
    """All results of a file, and what holds for all of them."""

    path: Path | None
    """None: nothing is kept."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`versions`, `command`, `method`: of the last run that wrote here."""
    results: dict[str, Result] = field(default_factory=dict)
    """By name of the cell."""

    @staticmethod
    def load(path: Path) -> Store:
        """What is in the file.

        Raises:
            StoreError: no such file, or another one.
        """
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise StoreError(f"{path} has schema {data['schema']}, not {SCHEMA}: measure again into another file")
            results = [Result.from_json(entry) for entry in data["cells"]]
        except FileNotFoundError:
            raise StoreError(f"there is no {path}: measure first, or give --json the file of a run") from None
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is no result of this benchmark: {type(error).__name__} {error}") from None
        return Store(path, data["facts"], {result.cell: result for result in results})

    def add(self, result: Result) -> None:
        """Keep a finished cell, and write the file."""
        self.results[result.cell] = result
        self.write()

    def write(self) -> None:
        """Replace the file."""
        if self.path is None:
            return
        cells = [result.to_json() for result in self.ordered()]
        body = ",\n".join(json.dumps(cell) for cell in cells)
        facts = json.dumps(self.facts, indent=1)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(f'{{"schema": {SCHEMA},\n"facts": {facts},\n"cells": [\n{body}\n]}}\n')
        part.replace(self.path)

    def ordered(self) -> list[Result]:
        """By hosts, phase, routing, model and ratio."""
        return sorted(self.results.values(), key=lambda result: _place(result.at))


def _place(cell: Cell) -> tuple[Any, ...]:
    group = cell.group
    return (
        group.hosts,
        PHASES.index(group.phase),
        ROUTINGS.index(group.routing),
        MODELS.index(group.model),
        cell.ratio,
    )
