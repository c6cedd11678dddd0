# SPDX-License-Identifier: Apache-2.0
"""Two results of lm-eval, of the original and of the healed model, as differences with their errors.

In:    both results, with the samples that lm-eval logs; how each metric sums samples up; limits.
Out:   a `Comparison`: one `MetricLine` for each task and metric.
Never: compares samples of different prompts. Takes a metric for one of separate samples if its samples don't give the
       value that lm-eval reports.

Algorithm, for each task and metric:
1. Values and standard errors as lm-eval reports them; errors that it has none for, by a jackknife over the samples.
2. Paired by sample, if both runs logged the metric's samples: the same documents, prompts and targets, or an error.
3. The standard error of the difference: of a mean, that of the mean of the samples' differences; of any other metric
   (a perplexity, an F1), a jackknife that leaves out one of at most 100 groups of samples, the same in both models.
4. Not paired (groups of tasks, metrics without samples): both standard errors as if the models had nothing in common,
   which is too large, and marked.
5. The drop: how much worse the healed model is. Where more is better in the metric's own unit, where less is better as
   a share of the original's value (0.01: a perplexity one per cent higher). More than the limit fails. If the standard
   error is larger than the limit, the samples can't tell either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from farskip_compile.base.json_files import JsonRecord
from farskip_compile.errors import ConfigError

GROUPS = 100
"""Of a jackknife."""
STDERR = "_stderr"
CLOSE = 1e-6
"""Relative: two ways to compute one value."""

Aggregate = Callable[[list[Any]], float]


@dataclass(frozen=True)
class Measured:
    """A value, and its standard error; None where lm-eval gives none."""

    value: float
    """In the metric's own unit."""
    error: float | None
    """Standard error, likewise."""


@dataclass(frozen=True)
class MetricLimits:
    """How much worse a metric may become: by `TASK:METRIC`, by `TASK`, and for all others (None: anything)."""

    named: Mapping[str, float]
    default: float | None = None

    def of(self, task: str, metric: str) -> float | None:
        """The narrowest one that applies."""
        return self.named.get(f"{task}:{metric}", self.named.get(task, self.default))


@dataclass(frozen=True)
class MetricLine(JsonRecord):
    """One metric of one task."""

    ALSO_WRITTEN = ("difference", "drop", "exceeds", "can_tell")

    task: str
    """As lm-eval calls it."""
    metric: str
    """With the filter that it was computed after, if it has one: `exact_match (strict-match)`."""
    original: Measured
    """Of the original."""
    healed: Measured
    """Of the healed checkpoint."""
    error: float | None
    """Standard error of the difference."""
    paired: bool
    """Whether the error is that of differences sample by sample."""
    samples: int | None
    """How many; None: not paired."""
    higher_is_better: bool | None
    """None: the task does not say."""
    limit: float | None
    """How much worse it may become, as `drop`; None: anything."""

    @property
    def difference(self) -> float:
        """Healed less original, in the metric's unit."""
        return self.healed.value - self.original.value

    @property
    def _unit(self) -> float:
        return 1.0 if self.higher_is_better else abs(self.original.value) or math.nan

    @property
    def drop(self) -> float | None:
        """How much worse the healed model is; negative if it is better, None if the task does not say what is."""
        if self.higher_is_better is None:
            return None
        return (-self.difference if self.higher_is_better else self.difference) / self._unit

    @property
    def exceeds(self) -> bool:
        """Whether the drop is more than the limit; a value that is not a number is."""
        return self.limit is not None and self.drop is not None and not self.drop <= self.limit

    @property
    def can_tell(self) -> bool | None:
        """Whether the standard error of the drop is at most the limit; None without a limit."""
        if self.limit is None or self.drop is None:
            return None
        return self.error is not None and self.error / self._unit <= self.limit


@dataclass(frozen=True)
class Comparison(JsonRecord):
    """All lines, and how the models ran: the evidence of a rewired one, None for one that ran as it is written."""

    ALSO_WRITTEN = ("holds",)

    lines: tuple[MetricLine, ...]
    """One for each metric of each task."""
    original: Mapping[str, Any] | None = None
    """How the original ran."""
    healed: Mapping[str, Any] | None = None
    """How the healed checkpoint ran: what each row left out, in how many graphs and batches."""

    @property
    def holds(self) -> bool:
        """Whether no metric dropped by more than its limit."""
        return not any(line.exceeds for line in self.lines)


def compare(
    original: Mapping[str, Any],
    healed: Mapping[str, Any],
    aggregates: Mapping[str, Mapping[str, Aggregate]],
    limits: MetricLimits,
) -> tuple[MetricLine, ...]:
    """The lines of two results of `lm_eval.simple_evaluate`; `aggregates` by task and metric.

    Raises:
        ConfigError: the runs asked different things, or a limit names no task or metric of them.
    """
    lines = []
    for task in original["results"]:
        ours, theirs = _samples(original, task), _samples(healed, task)
        if ours and theirs:
            _check_same(task, ours, theirs)
        for key, value in original["results"][task].items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith(STDERR) or not isinstance(value, int | float):
                continue
            aggregate = aggregates.get(task, {}).get(metric)
            pairs = [_items(samples, metric, name) for samples in (ours, theirs)]
            first, second = (
                _measured(result["results"][task], metric, name, items, aggregate)
                for result, items in zip((original, healed), pairs, strict=True)
            )
            paired = aggregate is not None and all(
                _same(aggregate, items, one) for items, one in zip(pairs, (first, second), strict=True)
            )
            lines.append(
                MetricLine(
                    task=task,
                    metric=metric if name == "none" else f"{metric} ({name})",
                    original=first,
                    healed=second,
                    error=paired_error(pairs[0], pairs[1], aggregate)
                    if paired and aggregate
                    else _unpaired(first, second),
                    paired=paired,
                    samples=len(pairs[0]) if paired else None,
                    higher_is_better=original["higher_is_better"].get(task, {}).get(metric),
                    limit=limits.of(task, metric),
                )
            )
    known = {name for line in lines for name in (line.task, f"{line.task}:{line.metric.partition(' ')[0]}")}
    if unknown := [name for name in limits.named if name not in known]:
        raise ConfigError(
            f"there is a limit for {unknown[0]!r}, which was not measured", way_out=f"one of {', '.join(sorted(known))}"
        )
    return tuple(lines)


def mean(values: Sequence[float]) -> float:
    """The aggregate whose error has a closed form."""
    return sum(values) / len(values)


def paired_error(original: list[Any], healed: list[Any], aggregate: Aggregate) -> float | None:
    """Standard error of the difference of two aggregates over the same samples; None of a single sample."""
    count = len(original)
    if count < 2:
        return None
    if aggregate is mean:
        differences = numpy.subtract(healed, original, dtype=float)
        return float(differences.std(ddof=1) / math.sqrt(count))
    return _jackknife(count, lambda kept: aggregate([healed[n] for n in kept]) - aggregate([original[n] for n in kept]))


def _jackknife(count: int, value: Callable[[list[int]], float]) -> float | None:
    """Standard error of a value of numbered samples."""
    groups = min(count, GROUPS)
    if groups < 2:
        return None
    parts = [value([number for number in range(count) if number % groups != left_out]) for left_out in range(groups)]
    return float(numpy.std(parts) * math.sqrt(groups - 1))


def _samples(result: Mapping[str, Any], task: str) -> list[Mapping[str, Any]]:
    return list((result.get("samples") or {}).get(task, ()))


def _check_same(task: str, original: list[Mapping[str, Any]], healed: list[Mapping[str, Any]]) -> None:
    """Documents, prompts and targets, in their order.

    Raises:
        ConfigError: they are not the same.
    """
    keys = ("doc_id", "filter", "doc_hash", "prompt_hash", "target_hash")
    asked = [[tuple(sample[key] for key in keys) for sample in samples] for samples in (original, healed)]
    if asked[0] != asked[1]:
        raise ConfigError(
            f"{task}: the two models were not asked the same: documents, prompts or targets differ",
            way_out="give both the same tokenizer and chat template",
        )


def _items(samples: list[Mapping[str, Any]], metric: str, name: str) -> list[Any]:
    """What each sample adds to a metric; nothing if one of them has no value."""
    mine = [sample for sample in samples if sample["filter"] == name]
    return [sample[metric] for sample in mine] if all(metric in sample for sample in mine) else []


def _measured(
    values: Mapping[str, Any], metric: str, name: str, items: list[Any], aggregate: Aggregate | None
) -> Measured:
    value, error = float(values[f"{metric},{name}"]), values.get(f"{metric}{STDERR},{name}")
    if isinstance(error, int | float) and math.isfinite(error):
        return Measured(value, float(error))
    known = Measured(value, None)
    if aggregate is None or not _same(aggregate, items, known):
        return known
    return Measured(value, _jackknife(len(items), lambda kept: aggregate([items[n] for n in kept])))


def _same(aggregate: Aggregate, items: list[Any], reported: Measured) -> bool:
    """Whether the samples give the value that lm-eval reports."""
    return bool(items) and math.isclose(aggregate(items), reported.value, rel_tol=CLOSE, abs_tol=CLOSE)


def _unpaired(original: Measured, healed: Measured) -> float | None:
    if original.error is None or healed.error is None:
        return None
    return math.hypot(original.error, healed.error)
