# SPDX-License-Identifier: Apache-2.0
"""Does each sub-block read what the paper says? Asserted of what the compiler makes, or of a model written by hand.

Contract: a model is captured once and not run. What each sub-block reads is read off the graph; what it has to read is
worked out by `expected` from kinds and layers alone. A failure shows the table with the wrong cells marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.declare import NOTHING
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport
from farskip_compile.testing.drawing import drawing, wrong_rows
from farskip_compile.testing.expected import expected_reads, reads_as_written, reads_in_standard_wiring
from farskip_compile.testing.failure import captured, failure, in_words

MOST_IN_WORDS = 4


def assert_rewired(
    model: Callable[..., Any],
    *args: Any,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    kinds: Mapping[str, str] = NOTHING,
    **kwargs: Any,
) -> CompileReport:
    """Assert that the backend gives a model this connectivity; returns the report of its compile.

    A model that is not compiled is rewired as the assertion asks for. One that is compiled, with `backend="farskip"` or
    `farskip_compile.backend(...)`, is rewired as it was compiled: that must come to the same. It is captured, not run.

    Args:
        model: a module, or a function that calls one.
        *args: example inputs.
        connectivity: as in `FarSkipConfig`; "none": each sub-block reads what it reads in the model as written.
        layers: as in `FarSkipConfig`.
        kinds: as in `FarSkipConfig`.
        **kwargs: example inputs by name.

    Raises:
        AssertionError: a sub-block reads something else, or the model is refused.
        ConfigError: wrong options, noticed before the model is looked at.
    """
    config = resolve(FarSkipConfig(connectivity=connectivity, layers=layers, kinds=kinds, inner="eager"))
    report = captured(model, args, kwargs, config).report
    expected = expected_reads(report, reads_as_written(report), config.connectivity, config.layers)
    reads = {row.name: row.reads for row in report.rows}
    _compare(report, reads, expected, config, f"compiled with: {in_words(report.config)}")
    return report


def assert_wiring(
    model: Callable[..., Any],
    *args: Any,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    kinds: Mapping[str, str] = NOTHING,
    **kwargs: Any,
) -> CompileReport:
    """Assert that `model`, as it is written, has this connectivity: a FarSkip model written by hand.

    Nothing is rewired, and whether the model is compiled makes no difference; the report of a compile that leaves it as
    it is is returned. What a sub-block has to read is counted from standard wiring, in which it reads everything that
    was added before it; so `connectivity="none"` asserts standard wiring, and "mlp" is that of a parallel block.

    Args:
        model: a module, or a function that calls one; captured, not run.
        *args: example inputs.
        connectivity: as in `FarSkipConfig`.
        layers: first and last, both inclusive; those outside must be standard.
        kinds: as in `FarSkipConfig`.
        **kwargs: example inputs by name.

    Raises:
        AssertionError: a sub-block reads something else, or no table can be read.
        ConfigError: wrong options, noticed before the model is looked at.
    """
    asked = resolve(FarSkipConfig(connectivity=connectivity, layers=layers, kinds=kinds, inner="eager"))
    report = captured(model, args, kwargs, FarSkipConfig(connectivity="none", kinds=kinds, inner="eager")).report
    expected = expected_reads(report, reads_in_standard_wiring(report), asked.connectivity, asked.layers)
    _compare(report, reads_as_written(report), expected, asked, "read off the model as it is written")
    return report


def _compare(
    report: CompileReport,
    reads: Mapping[str, TermSet],
    expected: Mapping[str, TermSet],
    asked: FarSkipConfig,
    what: str,
) -> None:
    wrong = wrong_rows(report.table, reads, expected)
    if wrong:
        words = [one.text(report.table) for one in wrong[:MOST_IN_WORDS]]
        if len(wrong) > MOST_IN_WORDS:
            words.append(f"and {len(wrong) - MOST_IN_WORDS} more")
        headline = f"{len(wrong)} of {len(report.rows)} sub-blocks do not read what {in_words(asked)} asks for"
        raise failure(headline, what, "\n".join(words), drawing(report.table, reads, wrong))
