"""What the command prints.

Contract: fits into 80 columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill_bench.results import FrontResult, Result, Results
from distill_bench.targets import Target


def row_text(result: Result | FrontResult, teacher: Result | None) -> str:
    """One line when a row is done."""
    name = f"{result.row.model:12} {result.row.name:22}"
    if isinstance(result, FrontResult):
        plan = result.plan
        return f"{name} plan: {len(plan.rows)} of {len(result.whole.rows)} sub-blocks  {result.seconds:.0f} s"
    own = result.judged["held_out"]
    over = f"{own.loss / teacher.judged['held_out'].loss - 1:+7.2%}" if teacher is not None else " " * 7
    return f"{name} loss {own.loss:.4f} {over}  KL {own.kl:.4f}  {result.seconds:4.0f} s"


def targets_text(targets: Sequence[Target]) -> str:
    """All of them."""
    lines = []
    for one in targets:
        lines.append(f"{'met   ' if one.met else 'MISSED'} {one.model}: {one.text}: {one.found}")
    return "\n".join(lines)


def facts_text(results: Results) -> str:
    """Machine, versions, command."""
    return "\n".join(f"{name}: {value}" for name, value in results.facts.items())
