# SPDX-License-Identifier: Apache-2.0
"""What is asked of one table: named connectivities, one of them in a range of layers, and tables of a user."""

from __future__ import annotations

import random
from collections.abc import Mapping

from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

NAMED = ("none", "full", "attention", "mlp")
FURTHER = ("lag2", "ladder")
USER_TABLES = 2
Wish = tuple[Connectivity, LayerRange]


def wishes(table: Table, number: int) -> list[Wish]:
    """The wishes for `table`; range and user tables follow from `number`."""
    rng = random.Random(number)
    made: list[Wish] = [(name, None) for name in NAMED]
    if table.num_layers > 0:
        made.append((rng.choice(FURTHER), None))
        first = rng.randrange(table.num_layers)
        made.append((rng.choice(NAMED[1:] + FURTHER), (first, rng.randrange(first, table.num_layers))))
    return made + [(user_table(table, rng), None) for _ in range(USER_TABLES)]


def user_table(table: Table, rng: random.Random) -> Mapping[str, list[str]]:
    """For some rows, some of what they read, but never the embedding."""
    wish: dict[str, list[str]] = {}
    for row in table.rows:
        names = [table.terms[index].name for index in row.reads if index != 0]
        if gone := rng.sample(names, min(len(names), rng.randint(0, 3))):
            wish[row.name] = gone
    return wish


def said(connectivity: Connectivity, answer: str) -> str:
    """A key for counting what was answered to a wish."""
    return f"{connectivity if isinstance(connectivity, str) else 'user table'}: {answer}"
