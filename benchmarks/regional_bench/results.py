# SPDX-License-Identifier: Apache-2.0
"""The file of all parts: compiles, cells and memory, with the facts of the last run of each.

Contract: plain data, to JSON and back; complete after every measurement, so that an interrupted run can go on
(`--resume`). What is measured again replaces its entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import decode, load_records, write_records
from overlap_bench.results import SCHEMA as SCHEMA_OF_CELLS
from overlap_bench.results import Result

from regional_bench.compiled import FORMS, PHASES, Compiled
from regional_bench.sharded import Sharded

SCHEMA = 100 + SCHEMA_OF_CELLS
"""Cells are those of the overlap benchmark."""
COMPILE, STEPS, MEMORY = "compile", "steps", "memory"


@dataclass
class Store:
    """All results of a file."""

    path: Path | None
    """None: nothing is kept."""
    facts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """By part: `machine`, `versions`, `command`."""
    compiles: dict[tuple[str, str, int], Compiled] = field(default_factory=dict)
    cells: dict[str, Result] = field(default_factory=dict)
    sharded: dict[tuple[str, bool], Sharded] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> Store:
        """What is in the file; raises as `load_records`."""

        def build(data: Mapping[str, Any]) -> Store:
            compiles = {one.key: one for one in decode(list[Compiled], data["compiles"])}
            cells = {one.cell: one for one in decode(list[Result], data["cells"])}
            sharded = {one.key: one for one in decode(list[Sharded], data.get("sharded", []))}
            return Store(path, data["facts"], compiles, cells, sharded)

        return load_records(path, SCHEMA, build)

    def add(self, found: Compiled | Result | Sharded) -> None:
        """Keep a measurement, and write the file."""
        if isinstance(found, Compiled):
            self.compiles[found.key] = found
        elif isinstance(found, Sharded):
            self.sharded[found.key] = found
        else:
            self.cells[found.cell] = found
        if self.path is not None:
            compiles = [asdict(one) for one in self.in_order()]
            cells = [one.to_json() for one in self.cells_in_order()]
            sharded = [asdict(one) for one in self.sharded.values()]
            write_records(self.path, SCHEMA, self.facts, compiles=compiles, cells=cells, sharded=sharded)

    def in_order(self) -> list[Compiled]:
        """Compiles, by phase, layers and form."""
        return sorted(
            self.compiles.values(), key=lambda one: (PHASES.index(one.phase), one.layers, FORMS.index(one.form))
        )

    def cells_in_order(self) -> list[Result]:
        """By phase and ratio."""
        return sorted(self.cells.values(), key=lambda one: one.at.place)
