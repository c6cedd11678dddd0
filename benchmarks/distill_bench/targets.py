"""What the experiment was to show, and whether it does; and what the command prints of it, in 80 columns.

Contract: arithmetic on results. A target whose rows are missing is missed. Losses of several seeds count as their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Target

from distill_bench.architectures import WITH_SHARED
from distill_bench.results import FrontResult, Result, Results, mean
from distill_bench.rows import FREED

HEALED, HEALED_WITHOUT_SHARED, SCRATCH, TOKENS, DAMAGE = 0.010, 0.015, 0.010, 0.10, 0.5
"""Fractions of the teacher's held-out loss, of its tokens, and of the damage of rewiring everything."""


def judge_targets(results: Results) -> list[Target]:
    """The targets of the whole experiment, for all models."""
    return [target for model in results.models() for target in _of(results, model)]


def judge_healing(results: Results) -> list[Target]:
    """What must hold at any scale."""
    targets = []
    for model in results.models():
        rows = results.of(model)
        healed, unhealed, by_text = (
            mean(rows[label], lambda one: one.judged["held_out"].kl)
            for label in ("healed-full", "unhealed-full", "healed-by-text-full")
        )
        text = "healed by the teacher, full is nearer to it than unhealed or healed by the text"
        found = f"KL {healed:.4f}, {unhealed:.4f}, {by_text:.4f}"
        targets.append(Target(text, healed < min(unhealed, by_text), found, f"{model}:"))
    return targets


def above(rows: list[Result], teacher: list[Result], source: str = "held_out") -> float:
    """Relative increase of the loss over the teacher's."""
    return mean(rows, lambda one: one.judged[source].loss) / mean(teacher, lambda one: one.judged[source].loss) - 1


def _of(results: Results, model: str) -> list[Target]:
    rows, front = results.of(model), results.front(model)
    teacher = rows.get("teacher", [])
    healed, scratch = (rows.get(name, []) if teacher else [] for name in ("healed-full", "scratch"))
    limit = HEALED if model in WITH_SHARED else HEALED_WITHOUT_SHARED
    tokens = mean(healed, lambda one: one.tokens) / teacher[0].tokens if healed else None
    loss = "the teacher's held-out loss"

    def change(of: list[Result]) -> float | None:
        return above(of, teacher) if of else None

    found: list[tuple[str, bool, str]] = []
    for text, value, most, form in (
        (f"healed full within {limit:.1%} of {loss}", change(healed), limit, "+.2%"),
        (f"with at most {TOKENS:.0%} of the teacher's tokens", tokens, TOKENS, ".1%"),
        (f"FarSkip from scratch within {SCRATCH:.1%} of {loss}", change(scratch), SCRATCH, "+.2%"),
    ):
        found.append((text, value is not None and value <= most, "not run" if value is None else format(value, form)))
    if front is None:
        found.append(("the plan", False, "not run"))
    else:
        ratio = front.plan.measured / front.whole.measured
        text = f"the plan frees at least {FREED:.0%} of what full frees, at {DAMAGE:.0%} of its damage"
        met = front.plan.freed >= FREED and ratio <= DAMAGE
        found.append((text, met, f"{front.plan.freed:.0%} at {ratio:.0%}"))
    return [Target(*one, f"{model}:") for one in found]


def row_text(result: Result | FrontResult, teacher: Result | None) -> str:
    """One line when a row is done."""
    name = f"{result.row.model:12} {result.row.name:22}"
    if isinstance(result, FrontResult):
        return f"{name} plan: {len(result.plan.rows)} of {len(result.whole.rows)} sub-blocks  {result.seconds:.0f} s"
    own = result.judged["held_out"]
    over = f"{own.loss / teacher.judged['held_out'].loss - 1:+7.2%}" if teacher is not None else " " * 7
    return f"{name} loss {own.loss:.4f} {over}  KL {own.kl:.4f}  {result.seconds:4.0f} s"


def targets_text(targets: Sequence[Target]) -> str:
    return "\n".join(one.line() for one in targets)
