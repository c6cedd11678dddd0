# SPDX-License-Identifier: Apache-2.0
"""What can be done to a captured graph, by name: `EDITS`. Each takes a `Sheet`, and its choices from `sheet.rng`.

An edit raises `Unfit` where it finds no place. It need not keep the function of the graph; the graph has to run.
"""

from __future__ import annotations

from tests.fuzz.edits import memory, operators, shapes, sums
from tests.fuzz.edits.registry import EDITS

__all__ = ["EDITS", "memory", "operators", "shapes", "sums"]
