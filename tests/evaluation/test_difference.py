# SPDX-License-Identifier: Apache-2.0
"""Differences of two results: their errors against textbook formulas, limits, and what is not comparable."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import pytest

from farskip_compile.errors import ConfigError

pytest.importorskip("lm_eval")

from farskip_compile.healing.evaluation.difference import (
    Measured,
    MetricLimits,
    MetricLine,
    compare,
    mean,
    paired_error,
)

NONE = MetricLimits({})


def samples(values: list[Any], metric: str = "acc", name: str = "none") -> list[dict[str, Any]]:
    hashes = {"doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}
    return [{"doc_id": n, "filter": name, metric: value, **hashes} for n, value in enumerate(values)]


def result(value: float, error: Any, logged: list[dict[str, Any]], metric: str = "acc", name: str = "none") -> Any:
    return {
        "results": {"task": {"alias": "task", f"{metric},{name}": value, f"{metric}_stderr,{name}": error}},
        "samples": {"task": logged},
        "higher_is_better": {"task": {metric: metric == "acc"}},
    }


def two(original: list[Any], healed: list[Any], aggregate: Any, metric: str = "acc") -> list[Any]:
    return [result(aggregate(values), "N/A", samples(values, metric), metric) for values in (original, healed)]


def weighted(items: list[tuple[float, float]]) -> float:
    """As lm-eval's weighted perplexities."""
    return math.exp(-sum(a for a, _ in items) / sum(b for _, b in items))


def test_the_error_of_a_mean() -> None:
    """Twenty questions, of which one model loses three and wins one: McNemar's setting."""
    original = [1.0] * 12 + [0.0] * 8
    healed = [0.0] * 3 + [1.0] * 9 + [1.0] + [0.0] * 7
    (line,) = compare(*two(original, healed, mean), {"task": {"acc": mean}}, NONE)
    assert line.difference == pytest.approx(-0.1)
    assert line.error == pytest.approx(math.sqrt((4 / 20 - 0.1**2) / 19))  # squares of -1 and +1, less the mean's
    assert (line.paired, line.samples, line.limit, line.can_tell) == (True, 20, None, None)
    assert line.original.error == pytest.approx(numpy.std(original, ddof=1) / math.sqrt(20))  # lm-eval gave none


def test_the_error_of_a_perplexity() -> None:
    """A ratio of sums, by the delta method: the jackknife agrees to first order."""
    generator = random.Random(0)
    weights = [generator.uniform(5, 30) for _ in range(300)]
    original = [(-generator.gauss(2.0, 0.2) * w, w) for w in weights]
    healed = [(a - generator.gauss(0.02, 0.01) * w, w) for a, w in original]
    (line,) = compare(
        *two(original, healed, weighted, "perplexity"), {"task": {"perplexity": weighted}}, MetricLimits({}, 0.02)
    )
    values = [weighted(items) for items in (original, healed)]
    slopes = [
        [-value * (a + math.log(value) * w) / sum(weights) for a, w in items]
        for value, items in zip(values, (original, healed), strict=True)
    ]
    expected = numpy.subtract(*slopes).std(ddof=1) * math.sqrt(300)
    assert line.difference == pytest.approx(values[1] - values[0])
    assert line.error == pytest.approx(expected, rel=0.1)
    assert line.error < math.hypot(line.original.error, line.healed.error) / 5  # what pairing is for
    assert line.drop == pytest.approx(values[1] / values[0] - 1)
    assert line.can_tell


def test_a_jackknife_of_a_mean_is_the_closed_form() -> None:
    generator = random.Random(1)
    original, healed = ([generator.random() for _ in range(60)] for _ in range(2))
    as_any_other = paired_error(original, healed, lambda values: sum(values) / len(values))
    assert as_any_other == pytest.approx(paired_error(original, healed, mean), rel=1e-9)
    assert paired_error([1.0], [0.0], mean) is None
    assert paired_error([1.0], [0.0], sum) is None


def test_what_has_no_samples_is_not_paired() -> None:
    """A group of tasks; and a metric whose samples don't give the value that is reported."""
    pair = [result(value, 0.03, []) for value in (0.5, 0.4)]
    wrong = [result(value, 0.03, samples([0.0, 1.0])) for value in (0.7, 0.4)]
    for results, aggregates in ((pair, {}), (pair, {"task": {"acc": mean}}), (wrong, {"task": {"acc": mean}})):
        (line,) = compare(*results, aggregates, NONE)
        assert (line.paired, line.samples) == (False, None)
        assert line.error == pytest.approx(math.hypot(0.03, 0.03))
    (line,) = compare(result(0.5, "N/A", []), result(0.4, 0.03, []), {}, NONE)
    assert line.error is None


def test_filters_are_kept_apart() -> None:
    first = result(1.0, 0.0, samples([1.0, 1.0], name="strict") + samples([0.0, 0.0], name="lax"), name="strict")
    second = result(0.5, 0.0, samples([1.0, 0.0], name="strict") + samples([1.0, 1.0], name="lax"), name="strict")
    (line,) = compare(first, second, {"task": {"acc": mean}}, NONE)
    assert (line.metric, line.paired, line.samples, line.difference) == ("acc (strict)", True, 2, -0.5)


@pytest.mark.parametrize("key", ["doc_hash", "prompt_hash", "target_hash", "doc_id", "filter"])
def test_different_prompts(key: str) -> None:
    first, second = two([1.0, 0.0], [1.0, 0.0], mean)
    second["samples"]["task"][1][key] = "another"
    with pytest.raises(ConfigError, match="not asked the same"):
        compare(first, second, {"task": {"acc": mean}}, NONE)


def test_a_sample_too_few() -> None:
    first, second = two([1.0, 0.0], [1.0, 0.0], mean)
    second["samples"]["task"].pop()
    with pytest.raises(ConfigError, match="not asked the same"):
        compare(first, second, {"task": {"acc": mean}}, NONE)


def line(original: float, healed: float, error: float | None, limit: float | None, higher: bool | None) -> MetricLine:
    return MetricLine("task", "acc", Measured(original, 0.1), Measured(healed, 0.1), error, True, 9, higher, limit)


@pytest.mark.parametrize(
    ("found", "drop", "exceeds", "can_tell"),
    [
        (line(0.5, 0.48, 0.005, 0.01, True), 0.02, True, True),
        (line(0.5, 0.48, 0.05, 0.01, True), 0.02, True, False),
        (line(0.5, 0.495, 0.005, 0.01, True), 0.005, False, True),
        (line(0.5, 0.6, 0.05, 0.01, True), -0.1, False, False),
        (line(20.0, 20.3, 0.1, 0.01, False), 0.015, True, True),
        (line(20.0, 20.1, 0.1, 0.01, False), 0.005, False, True),
        (line(20.0, 20.1, 0.3, 0.01, False), 0.005, False, False),
        (line(20.0, 19.0, 0.1, 0.01, False), -0.05, False, True),
        (line(0.5, 0.4, None, 0.01, True), 0.1, True, False),
        (line(0.5, 0.4, 0.001, 0.01, None), None, False, None),
        (line(0.5, 0.4, 0.001, None, True), 0.1, False, None),
        (line(0.5, math.nan, 0.001, 0.01, True), math.nan, True, True),
        (line(0.0, 0.1, 0.001, 0.01, False), math.nan, True, False),
    ],
)
def test_limits(found: MetricLine, drop: float | None, exceeds: bool, can_tell: bool | None) -> None:
    assert found.drop == (pytest.approx(drop, nan_ok=True) if drop is not None else None)
    assert (found.exceeds, found.can_tell) == (exceeds, can_tell)


def test_the_narrowest_limit_applies() -> None:
    limits = MetricLimits({"task": 0.2, "task:acc": 0.1}, 0.3)
    assert [limits.of("task", "acc"), limits.of("task", "f1"), limits.of("other", "acc")] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("name", ["tusk", "task:f1", "task:"])
def test_a_limit_of_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is a limit for '{name}'") as caught:
        compare(*two([1.0, 0.0], [1.0, 0.0], mean), {"task": {"acc": mean}}, MetricLimits({name: 0.1}))
    assert "task:acc" in caught.value.way_out
