# SPDX-License-Identifier: Apache-2.0
"""What the demo found out: plain records, made by the ranks and by the parent, shown by the renderers.

Contract: a check compares the compiled model with its hand-written FarSkip form, and with its own plain wiring. It
passes if outputs and gradients are within its tolerances (0: equal bit for bit) and the function did change. A
comparison of variants passes if each computes what the same wiring computes eagerly; times decide nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from farskip_compile.base.json_files import JsonRecord, replacing
from farskip_compile.measure.profiling import OverlapReport
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.schedule import ScheduleReport

NOTE = "Measured on this machine's loopback; benchmarks/overlap.py measures on a network with limited links."
WHY_APART = (
    "Predicted and measured need not agree here. On a loopback no network card moves the bytes: gloo's threads copy "
    "them, on the cores and through the memory that the ranks compute with. The prediction takes the figures of the "
    "profile {profile}: another machine's, measured while it was otherwise idle. In it, transfers cost compute "
    "nothing, and both ranks launch at the same moment; a measured exchange also waits for the rank that comes later. "
    "Compare variants with each other, not predicted with measured."
)
"""Why the demo's two exposed times differ."""
LARGEST_DIFFERENCE = 0.05
"""Relative difference of the logits, by Euclidean norm. Rounding alone stays far below it, even where it decides which
of two experts with nearly equal scores gets a token; a wrong wiring is far above it."""
LEAST_CHANGE = 1e-3
"""The rewired model must differ from the plain one by at least this much, or nothing was rewired."""


class _Result(JsonRecord, ABC):
    """A result that passes or does not."""

    ALSO_WRITTEN: ClassVar[tuple[str, ...]] = ("passed",)

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether it is as it should be."""


@dataclass(frozen=True)
class Check(_Result):
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
    """Difference of the outputs from those of the model as written."""
    output_tolerance: float
    gradient_tolerance: float
    seconds: float
    """Wall time of the first compiled call, and of its backward in a training step."""

    @property
    def passed(self) -> bool:
        """Whether all differences are within tolerance, and the function changed."""
        outputs = self.outputs_equal or 0.0 < self.output_difference <= self.output_tolerance
        gradients = self.gradient_difference is None or self.gradient_difference <= self.gradient_tolerance
        return outputs and gradients and self.plain_difference >= LEAST_CHANGE


@dataclass(frozen=True)
class DemoPart(_Result):
    """What all parts of the demo have."""

    title: str
    about: str
    ranks: int = 1
    problem: str = ""
    """Why there are no checks or variants."""
    skipped: bool = False
    """The problem is a missing program or package, so this is not a failure."""


@dataclass(frozen=True)
class DemoCase(DemoPart):
    """One model in one setting."""

    report: CompileReport | None = None
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed and the graph was rewired."""
        rewired = self.report is not None and self.report.outcome is Outcome.REWIRED
        return rewired and bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Variant(JsonRecord):
    """One way to compile the model, over all ranks; in JSON, times in nanoseconds, means over the ranks."""

    ALSO_WRITTEN = ("passed", "communication_ns", "exposed_ns", "duration_ns")
    NOT_WRITTEN = ("trace",)

    name: str
    report: OverlapReport
    difference: float
    """Largest over the ranks; see `LARGEST_DIFFERENCE`."""
    predicted: ScheduleReport | None = None
    """What the scheduler expects on rank 0; None for plain Inductor."""
    trace: bytes = field(default=b"", repr=False)
    """The merged Chrome trace."""

    @property
    def trace_name(self) -> str:
        """File name of the merged trace."""
        return f"farskip_demo_{slug(self.name)}.trace.json"

    @property
    def passed(self) -> bool:
        """Whether it computes what it should."""
        return self.difference <= LARGEST_DIFFERENCE

    @property
    def communication_ns(self) -> float:
        """Time in flight, as a mean over the ranks."""
        return self.report.total.communication_ns / len(self.report.ranks)

    @property
    def exposed_ns(self) -> float:
        """Exposed time, as a mean over the ranks."""
        return self.report.total.exposed_ns / len(self.report.ranks)

    @property
    def duration_ns(self) -> int:
        """Time from the first event of any rank to the last."""
        spans = [trace.span for trace in self.report.traces if trace.span is not None]
        return max(end for _, end in spans) - min(start for start, _ in spans)

    @property
    def predicted_exposed_ns(self) -> float | None:
        """Exposed time that the scheduler expects; None where it did not estimate."""
        after = None if self.predicted is None else self.predicted.after
        return None if after is None else 1e9 * after.exposed_seconds

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`; in place of the trace, the name of its file."""
        return {**super().to_json(), "overlap": self.report.total.fraction, "trace": self.trace_name}


@dataclass(frozen=True)
class DemoComparison(DemoPart):
    """The variants side by side."""

    variants: tuple[Variant, ...] = ()
    setting: str = ""
    """Device, ranks, phase and tokens, for the captions of pictures."""
    note: str = NOTE

    @property
    def why_apart(self) -> str:
        """Why predicted and measured differ; empty if nothing was predicted."""
        profiles = [one.predicted.profile for one in self.variants if one.predicted and one.predicted.after]
        return WHY_APART.format(profile=profiles[0]) if profiles else ""

    @property
    def passed(self) -> bool:
        """Whether there are variants and each computes what it should."""
        return bool(self.variants) and all(variant.passed for variant in self.variants)

    def write_traces(self, folder: Path) -> list[Path]:
        """Write one Chrome trace for each variant; gives the files.

        Raises:
            OSError: a file can't be written.
        """
        paths = [folder / variant.trace_name for variant in self.variants]
        for path, variant in zip(paths, self.variants, strict=True):
            with replacing(path) as temporary:
                temporary.write_bytes(variant.trace)
        return paths


@dataclass(frozen=True)
class Demo(_Result):
    """All parts of the demo and their verdict."""

    ALSO_WRITTEN = ("passed", "verdict")

    cases: tuple[DemoCase, ...]
    seconds: float
    command: str = "farskip demo"
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    overlap: DemoComparison | None = None
    """The variants of the overlap part side by side."""

    @property
    def parts(self) -> tuple[DemoPart, ...]:
        """The cases, and the comparison if there is one."""
        return self.cases if self.overlap is None else (*self.cases, self.overlap)

    @property
    def failed(self) -> tuple[DemoPart, ...]:
        """Parts that ran and did not pass."""
        return tuple(part for part in self.parts if not part.passed and not part.skipped)

    @property
    def passed(self) -> bool:
        """Whether no case failed and at least one passed."""
        return not self.failed and any(case.passed for case in self.cases)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        checks = [check for case in self.cases for check in case.checks]
        good = sum(check.passed for check in checks)
        skipped = sum(part.skipped for part in self.parts)
        text = f"{good} of {len(checks)} checks passed"
        if self.failed:
            text += f"; failed: {', '.join(case.title for case in self.failed)}"
        return text + (f"; {skipped} part{'s' if skipped > 1 else ''} skipped" if skipped else "")


def over_ranks(per_rank: Sequence[DemoCase]) -> DemoCase:
    """The case as all ranks together saw it: the largest differences, equal only if equal everywhere."""
    if not all(case.checks for case in per_rank):
        return per_rank[0]
    phases = zip(*(case.checks for case in per_rank), strict=True)
    return replace(per_rank[0], ranks=len(per_rank), checks=tuple(_worst(checks) for checks in phases))


def _worst(checks: Sequence[Check]) -> Check:
    gradients = [check.gradient_difference for check in checks if check.gradient_difference is not None]
    return replace(
        checks[0],
        output_difference=max(check.output_difference for check in checks),
        outputs_equal=all(check.outputs_equal for check in checks),
        gradient_difference=max(gradients) if gradients else None,
        gradients_equal=all(check.gradients_equal for check in checks) if gradients else None,
        plain_difference=min(check.plain_difference for check in checks),
        seconds=max(check.seconds for check in checks),
    )


def slug(variant: str) -> str:
    """Its name in names of files."""
    return variant.lower().replace(", ", "_").replace(" ", "_")


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
