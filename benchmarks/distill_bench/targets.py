"""What the experiment was to show, and whether it does.

Contract: arithmetic on results. A target whose rows are missing is missed. Losses of several seeds count as their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill_bench.architectures import WITH_SHARED
from distill_bench.results import Result, Results, mean
from distill_bench.rows import FREED

HEALED, HEALED_WITHOUT_SHARED, SCRATCH, TOKENS, DAMAGE = 0.010, 0.015, 0.010, 0.10, 0.5
"""Parts: of the teacher's held-out loss, of its tokens, and of the damage of rewiring everything."""


@dataclass(frozen=True)
class Target:
    """One of them."""

    model: str
    text: str
    met: bool
    found: str


def judge_targets(results: Results) -> list[Target]:
    """Of all models."""
    return [target for model in results.models() for target in _of(results, model)]


def judge_healing(results: Results) -> list[Target]:
    """What holds at any scale."""
    targets = []
    for model in results.models():
        rows = results.of(model)
        healed, unhealed, by_text = (
            mean(rows[label], lambda one: one.judged["held_out"].kl)
            for label in ("healed-full", "unhealed-full", "healed-by-text-full")
        )
        text = "healed by the teacher, full is nearer to it than unhealed or healed by the text"
        found = f"KL {healed:.4f}, {unhealed:.4f}, {by_text:.4f}"
        targets.append(Target(model, text, healed < min(unhealed, by_text), found))
    return targets


def above(rows: list[Result], teacher: list[Result], source: str = "held_out") -> float:
    """By which part the loss is above the teacher's."""
    return mean(rows, lambda one: one.judged[source].loss) / mean(teacher, lambda one: one.judged[source].loss) - 1


def _of(results: Results, model: str) -> list[Target]:
    rows, front = results.of(model), results.front(model)
    teacher = rows.get("teacher", [])
    healed, scratch = rows.get("healed-full", []), rows.get("scratch", [])
    limit = HEALED if model in WITH_SHARED else HEALED_WITHOUT_SHARED
    targets = []

    def add(text: str, met: bool | None, found: str) -> None:
        targets.append(Target(model, text, bool(met), found if met is not None else "not run"))

    loss = above(healed, teacher) if healed and teacher else None
    add(
        f"healed full within {limit:.1%} of the teacher's held-out loss",
        None if loss is None else loss <= limit,
        f"{loss or 0:+.2%}",
    )
    part = mean(healed, lambda one: one.tokens) / teacher[0].tokens if healed and teacher else None
    add(
        f"with at most {TOKENS:.0%} of the teacher's tokens",
        None if part is None else part <= TOKENS,
        f"{part or 0:.1%}",
    )
    loss = above(scratch, teacher) if scratch and teacher else None
    add(
        f"FarSkip from scratch within {SCRATCH:.1%} of the teacher's held-out loss",
        None if loss is None else loss <= SCRATCH,
        f"{loss or 0:+.2%}",
    )
    if front is None:
        add("the plan", None, "")
        return targets
    ratio = front.plan.measured / front.whole.measured
    add(
        f"the plan frees at least {FREED:.0%} of what full frees, at {DAMAGE:.0%} of its damage",
        front.plan.freed >= FREED and ratio <= DAMAGE,
        f"{front.plan.freed:.0%} at {ratio:.0%}",
    )
    return targets
