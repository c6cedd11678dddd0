"""What the demo found out: plain records, made by the ranks and by the parent, shown by the renderers.

Contract: a check compares the compiled model with its hand-written FarSkip form, and with its own plain wiring. It
passes if outputs and gradients are within its tolerances (0: equal bit for bit) and the function did change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farskip_compile.demo.compared import Comparison
from farskip_compile.report.compile import CompileReport, Outcome

LEAST_CHANGE = 1e-3
"""The rewired model must differ from the plain one by at least this much, or nothing was rewired."""


@dataclass(frozen=True)
class Check:
    """One phase of one case against the oracle. Differences are relative to the largest magnitude."""

    phase: str
    """`prefill` or `training step`."""
    inner: str
    dtype: str
    output_difference: float
    outputs_equal: bool
    gradient_difference: float | None
    gradients_equal: bool | None
    plain_difference: float
    """Of the outputs, to the model as written."""
    output_tolerance: float
    gradient_tolerance: float
    seconds: float
    """Wall time of the first compiled call, and of its backward in a training step."""

    @property
    def passed(self) -> bool:
        """Whether everything is as it must be."""
        outputs = self.outputs_equal or 0.0 < self.output_difference <= self.output_tolerance
        gradients = self.gradient_difference is None or self.gradient_difference <= self.gradient_tolerance
        return outputs and gradients and self.plain_difference >= LEAST_CHANGE

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**vars(self), "passed": self.passed}


@dataclass(frozen=True)
class Case:
    """One model in one setting."""

    title: str
    about: str
    ranks: int = 1
    report: CompileReport | None = None
    checks: tuple[Check, ...] = ()
    problem: str = ""
    """Why there are no checks."""
    skipped: bool = False
    """The problem is a missing program or package, so this is no failure."""

    @property
    def passed(self) -> bool:
        """Whether every check passed and the graph was rewired."""
        rewired = self.report is not None and self.report.outcome is Outcome.REWIRED
        return rewired and bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "title": self.title,
            "about": self.about,
            "ranks": self.ranks,
            "passed": self.passed,
            "skipped": self.skipped,
            "problem": self.problem,
            "checks": [check.to_json() for check in self.checks],
            "report": self.report.to_json() if self.report is not None else None,
        }


@dataclass(frozen=True)
class Demo:
    """All of it."""

    cases: tuple[Case, ...]
    seconds: float
    command: str = "farskip demo"
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    overlap: Comparison | None = None
    """The variants of the overlap part side by side."""

    @property
    def parts(self) -> tuple[Case | Comparison, ...]:
        """The cases, and the comparison if there is one."""
        return self.cases if self.overlap is None else (*self.cases, self.overlap)

    @property
    def failed(self) -> tuple[Case | Comparison, ...]:
        """Parts that ran and did not pass."""
        return tuple(part for part in self.parts if not part.passed and not part.skipped)

    @property
    def passed(self) -> bool:
        """Whether no case failed and at least one passed."""
        return not self.failed and any(case.passed for case in self.cases)

    def verdict(self) -> str:
        """One sentence."""
        checks = [check for case in self.cases for check in case.checks]
        good = sum(check.passed for check in checks)
        skipped = sum(part.skipped for part in self.parts)
        text = f"{good} of {len(checks)} checks passed"
        if self.failed:
            text += f"; failed: {', '.join(case.title for case in self.failed)}"
        return text + (f"; {skipped} part{'s' if skipped > 1 else ''} skipped" if skipped else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "command": self.command,
            "started": self.started,
            "seconds": self.seconds,
            "versions": self.versions,
            "cases": [case.to_json() for case in self.cases],
            "overlap": None if self.overlap is None else self.overlap.to_json(),
        }


def over_ranks(per_rank: Sequence[Case]) -> Case:
    """The case as all ranks together saw it: the largest differences, equal only if equal everywhere."""
    first = per_rank[0]
    if not all(case.checks for case in per_rank):
        return first
    return Case(
        title=first.title,
        about=first.about,
        ranks=len(per_rank),
        report=first.report,
        checks=tuple(_worst(checks) for checks in zip(*(case.checks for case in per_rank), strict=True)),
    )


def _worst(checks: Sequence[Check]) -> Check:
    first = checks[0]
    gradients = [check.gradient_difference for check in checks if check.gradient_difference is not None]
    return Check(
        phase=first.phase,
        inner=first.inner,
        dtype=first.dtype,
        output_difference=max(check.output_difference for check in checks),
        outputs_equal=all(check.outputs_equal for check in checks),
        gradient_difference=max(gradients) if gradients else None,
        gradients_equal=all(check.gradients_equal for check in checks) if gradients else None,
        plain_difference=min(check.plain_difference for check in checks),
        output_tolerance=first.output_tolerance,
        gradient_tolerance=first.gradient_tolerance,
        seconds=max(check.seconds for check in checks),
    )


def number(value: float) -> str:
    """A difference, short."""
    return "0" if value == 0.0 else f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def bits(check: Check) -> str:
    """What is equal bit for bit."""
    parts = {"outputs": check.outputs_equal, "gradients": check.gradients_equal}
    known = {name: equal for name, equal in parts.items() if equal is not None}
    if all(known.values()):
        return "yes"
    equal = [name for name, value in known.items() if value]
    return f"only {equal[0]}" if equal else "no"
