# SPDX-License-Identifier: Apache-2.0
"""The kill table: every fault with its judge's verdict, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.mutation import (
    normalize_faults,
    order_faults,
    pass_faults,
    piece_faults,
    reading_faults,
    run_faults,
    value_faults,
    wiring_faults,
)
from tests.mutation.bench import Fault, Verdict

WIDTH = 80
INDENT = " " * 5
MOST_LINES = 3
"""Of a message."""
PARTS: dict[str, Sequence[Fault]] = {
    "what sub-blocks read": wiring_faults.FAULTS,
    "coefficients, caches and side effects": value_faults.FAULTS,
    "single assignment": normalize_faults.FAULTS,
    "the reader of the table": reading_faults.FAULTS,
    "passes on the model's graph": pass_faults.FAULTS,
    "exchanges in pieces": piece_faults.FAULTS,
    "order, forward and backward": order_faults.FAULTS,
    "kernels, ranks and caches": run_faults.FAULTS,
}


@dataclass(frozen=True)
class Row:
    """One fault and what became of it."""

    number: int
    fault: Fault
    verdict: Verdict | None

    def text(self) -> str:
        """What was done and who has noticed; where it was done, and how that one began to say so."""
        by = self.verdict.by if self.verdict else "NOBODY"
        message = self.verdict.message if self.verdict else "the fault has survived"
        told = textwrap.fill(
            f"{self.fault.where}: {message}",
            WIDTH,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            max_lines=MOST_LINES,
            placeholder=" ...",
        )
        return f"{self.number:>3}  {self.fault.name:<{WIDTH - 26}}  {by}\n{told}"


def judge(part: str) -> Iterator[Row]:
    """The rows of one part of the table, numbered through all parts."""
    first = 1 + sum(len(faults) for name, faults in PARTS.items() if list(PARTS).index(name) < list(PARTS).index(part))
    for number, fault in enumerate(PARTS[part], start=first):
        try:
            verdict = fault.judge()
        except Exception as error:
            raise AssertionError(f"fault {number}, {fault.name!r}, could not be judged") from error
        yield Row(number, fault, verdict)
