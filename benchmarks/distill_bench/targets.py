# SPDX-License-Identifier: Apache-2.0
"""What rows with equal labels have in common, and whether they show what the experiment was to show.

In:    results of one model on one corpus, by label (`Results.of`).
Out:   `Summary`: means over teachers, each row compared with its own teacher; the targets, met or missed.
Never: a target whose rows are missing counts as met.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common import Target

from distill_bench.results import FrontResult, Result, Results
from distill_bench.rows import FREED, WITH_SHARED

HEALED, HEALED_WITHOUT_SHARED = 0.010, 0.012
"""Above the teacher's held-out loss, relative."""
REPAIRED, FOLDED = 0.92, 0.45
"""Of the KL damage, by healing and by the fold alone."""
MOST_TOKENS, DAMAGE = 0.10, 1 / 3
"""Of the teacher's tokens; of the damage of rewiring everything."""
Rows = dict[str, list[Result]]


@dataclass(frozen=True)
class Figure:
    """Over the teachers."""

    mean: float
    deviation: float | None
    """Standard deviation; None: one teacher."""

    def text(self, form: str, *, plus_minus: bool = True) -> str:
        """Mean ± deviation; of percentages, the deviation is in points."""
        text = format(self.mean, form)
        return (
            f"{text} ± {format(self.deviation, form.lstrip('+'))}"
            if plus_minus and self.deviation is not None
            else text
        )


@dataclass(frozen=True)
class Summary:
    """Of the rows with one label."""

    kl: Figure
    repaired: Figure | None
    """Fraction of the unhealed row's KL that is gone; None: nothing was rewired, or that row is missing."""
    top1: Figure
    bits: Figure
    above: Figure
    """Relative increase of the loss over the teacher's."""
    error: float
    """Standard error of `above` by the choice of the text, paired with the teacher."""
    tokens: float
    """Of the teacher's."""


def summary(rows: Rows, label: str, source: str = "held_out") -> Summary | None:
    """None: the rows or their teachers are missing."""
    teachers = {one.row.seed: one for one in rows.get("teacher", [])}
    found = [one for one in rows.get(label, []) if one.row.seed in teachers]
    if not found:
        return None
    unhealed = {one.row.seed: one for one in rows.get(f"unhealed-{found[0].row.connectivity}", [])}

    def over(of: Callable[[Result], float]) -> Figure:
        values = [of(one) for one in found]
        return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def loss_of_teacher(one: Result) -> float:
        return teachers[one.row.seed].judged[source].loss

    repairs = found[0].row.kind in ("folded", "healed") and all(one.row.seed in unhealed for one in found)
    return Summary(
        kl=over(lambda one: one.judged[source].kl),
        repaired=over(lambda one: 1 - one.judged[source].kl / unhealed[one.row.seed].judged[source].kl)
        if repairs
        else None,
        top1=over(lambda one: one.judged[source].top1),
        bits=over(lambda one: one.judged[source].bits),
        above=over(lambda one: one.judged[source].loss / loss_of_teacher(one) - 1),
        error=statistics.fmean(one.judged[source].error / loss_of_teacher(one) for one in found),
        tokens=statistics.fmean(one.tokens / teachers[one.row.seed].tokens for one in found),
    )


def judge_targets(results: Results) -> list[Target]:
    """The targets of the whole experiment: for all models and corpora; the plan is made on the first corpus."""
    first = results.settings()[0][1]
    plans = [
        Target(*_plan(results.front(setting), results.of(setting)), _of(setting))
        for setting in results.settings()
        if setting[1] == first
    ]
    return judge_healed(results) + plans


def judge_healed(results: Results) -> list[Target]:
    """Those that are about healing and the fold."""
    return [
        Target(*one, _of(setting))
        for setting in results.settings()
        for one in _healing(setting[0], results.of(setting))
    ]


def _of(setting: tuple[str, str]) -> str:
    return f"{setting[0]}, {setting[1]}:"


def judge_healing(results: Results) -> list[Target]:
    """What must hold at any scale."""
    targets = []
    for setting in results.settings():
        rows = results.of(setting)
        labels = ("best-full", "folded-full", "text-full", "unhealed-full")
        found = {label: one.kl.mean for label in labels if (one := summary(rows, label)) is not None}
        text = "healed full is nearer to the teacher than folded, and both nearer than unhealed; text is not as near"
        met = len(found) == len(labels) and (
            found["best-full"] < min(found["folded-full"], found["text-full"])
            and found["folded-full"] < found["unhealed-full"]
        )
        figures = ", ".join(f"{label} {kl:.4f}" for label, kl in found.items())
        targets.append(Target(text, met, f"KL {figures}", f"{setting[0]}, {setting[1]}:"))
    return targets


def plan_damage(rows: Rows) -> float | None:
    """KL of the plan's set after the fold over that of `full` without one, measured together; None: not run."""
    plan, full = summary(rows, "folded-plan"), rows.get("unhealed-full", [])
    whole = (
        [one.judged["held_out"].kl for one in full if one.row.seed == rows["folded-plan"][0].row.seed] if plan else []
    )
    return plan.kl.mean / whole[0] if plan is not None and whole else None


def _healing(model: str, rows: Rows) -> list[tuple[str, bool, str]]:
    best, folded = summary(rows, "best-full"), summary(rows, "folded-full")
    limit = HEALED if model in WITH_SHARED else HEALED_WITHOUT_SHARED
    checks: Sequence[tuple[str, float | None, Callable[[float], bool], str]] = (
        (
            f"healed full at most {limit:.1%} above the teacher's held-out loss",
            best.above.mean if best else None,
            lambda value: value <= limit,
            "+.2%",
        ),
        (
            f"at least {REPAIRED:.0%} of the KL damage repaired",
            best.repaired.mean if best and best.repaired else None,
            lambda value: value >= REPAIRED,
            ".1%",
        ),
        (
            f"with at most {MOST_TOKENS:.0%} of the teacher's tokens",
            best.tokens if best else None,
            lambda value: value <= MOST_TOKENS,
            ".1%",
        ),
        (
            f"the fold alone repairs at least {FOLDED:.0%} of it",
            folded.repaired.mean if folded and folded.repaired else None,
            lambda value: value >= FOLDED,
            ".1%",
        ),
    )
    return [
        (text, value is not None and met(value), "not run" if value is None else format(value, form))
        for text, value, met, form in checks
    ]


def _plan(front: FrontResult | None, rows: Rows) -> tuple[str, bool, str]:
    text = f"the plan with fold frees at least {FREED:.0%} of what full frees, at a third of its damage"
    damage = plan_damage(rows)
    if front is None or damage is None:
        return text, False, "not run"
    return text, front.plan.freed >= FREED and damage <= DAMAGE, f"{front.plan.freed:.0%} at {damage:.0%}"


def row_text(result: Result | FrontResult, teacher: Result | None, unhealed: Result | None) -> str:
    """One line when a row is done."""
    name = f"{result.row.setting:22} {result.row.name:18}"
    if isinstance(result, FrontResult):
        return f"{name} plan: {len(result.plan.rows)} of {len(result.whole.rows)} sub-blocks  {result.seconds:.0f} s"
    own = result.judged["held_out"]
    over = f"{own.loss / teacher.judged['held_out'].loss - 1:+7.2%}" if teacher is not None else " " * 7
    repaired = f"{1 - own.kl / unhealed.judged['held_out'].kl:6.1%}" if unhealed is not None else " " * 6
    return f"{name} KL {own.kl:.4f} {repaired}  loss {own.loss:.4f} {over}  {result.seconds:4.0f} s"


def targets_text(targets: Sequence[Target]) -> str:
    return "\n".join(one.line() for one in targets)
