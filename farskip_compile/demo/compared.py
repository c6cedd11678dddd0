"""What the demo's overlap part found: plain records of all ranks together, made from what each rank left behind.

Contract: `compared` reads the traces of all ranks and takes, of each variant, the repetition whose exposed time is the
middle one. A comparison passes if every variant computes what the same wiring computes eagerly; times decide nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farskip_compile.demo.overlap import RankOverlap, RankVariant, trace_name
from farskip_compile.errors import FarSkipError
from farskip_compile.profiling import OverlapReport, merge_traces, overlap, read_trace
from farskip_compile.report.schedule import ScheduleReport

NOTE = "Measured on this machine's loopback; benchmarks/overlap.py measures on a network with limited links."
LARGEST_DIFFERENCE = 0.05
"""Of the logits, by Euclidean norm. Rounding alone stays far below it, but may decide which expert a token is sent to
where two are as good as equal; a wrong wiring is far above it."""


@dataclass(frozen=True)
class Variant:
    """One way to compile the model, over all ranks."""

    name: str
    report: OverlapReport
    difference: float
    """Largest over the ranks; see `LARGEST_DIFFERENCE`."""
    predicted: ScheduleReport | None = None
    """What the scheduler expects on rank 0; None for plain Inductor."""
    trace: bytes = field(default=b"", repr=False)
    """The merged Chrome trace."""

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
        """Plain data for `json.dumps`; times in nanoseconds, means over the ranks."""
        return {
            "name": self.name,
            "passed": self.passed,
            "difference": self.difference,
            "communication_ns": self.communication_ns,
            "exposed_ns": self.exposed_ns,
            "overlap": self.report.total.fraction,
            "duration_ns": self.duration_ns,
            "predicted": None if self.predicted is None else self.predicted.to_json(),
            "trace": trace_name(self.name),
            "report": self.report.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """The variants side by side."""

    title: str
    about: str
    ranks: int
    variants: tuple[Variant, ...] = ()
    problem: str = ""
    """Why there are no variants."""
    skipped: bool = False
    """The problem is a missing program, so this is no failure."""
    note: str = NOTE

    @property
    def passed(self) -> bool:
        """Whether there are variants and each computes what it should."""
        return bool(self.variants) and all(variant.passed for variant in self.variants)

    def write_traces(self, folder: Path) -> list[Path]:
        """Write one Chrome trace for each variant; gives the files.

        Raises:
            OSError: a file can't be written.
        """
        paths = [folder / trace_name(variant.name) for variant in self.variants]
        for path, variant in zip(paths, self.variants, strict=True):
            path.write_bytes(variant.trace)
        return paths

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "title": self.title,
            "about": self.about,
            "ranks": self.ranks,
            "passed": self.passed,
            "skipped": self.skipped,
            "problem": self.problem,
            "note": self.note,
            "variants": [variant.to_json() for variant in self.variants],
        }


def compared(per_rank: Sequence[RankOverlap]) -> Comparison:
    """All ranks together; a trace that can't be used is the problem of the comparison."""
    case = per_rank[0].case
    try:
        together = zip(*(seen.variants for seen in per_rank), strict=True)
        variants = tuple(_variant(ranks) for ranks in together)
    except FarSkipError as error:
        return Comparison(case.title, case.about, len(per_rank), problem=f"{type(error).__name__}: {error}")
    return Comparison(case.title, case.about, len(per_rank), variants)


def _variant(ranks: Sequence[RankVariant]) -> Variant:
    repetitions = list(zip(*(seen.traces for seen in ranks), strict=True))
    reports = [overlap([read_trace(path) for path in paths]) for paths in repetitions]
    order = sorted(range(len(reports)), key=lambda index: (reports[index].total.exposed_ns, index))
    middle = order[len(order) // 2]
    with tempfile.TemporaryDirectory(prefix="farskip-demo-") as folder:
        merged = merge_traces(repetitions[middle], Path(folder) / "merged.json").read_bytes()
    difference = max(seen.difference for seen in ranks)
    return Variant(ranks[0].name, reports[middle], difference, ranks[0].predicted, merged)
