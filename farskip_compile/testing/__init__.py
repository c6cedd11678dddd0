# SPDX-License-Identifier: Apache-2.0
"""Assertions for the tests of models that are compiled with farskip.

Contract: plain functions, for pytest, unittest or a script; a failure is an `AssertionError` whose text fits a terminal
of 80 columns. `docs/ci.md` shows a whole test file, and says what each of them proves and what it does not.

    assert_rewired              each sub-block reads what the paper says, in what the compiler makes of a model
    assert_wiring               the same of a model that is written in FarSkip form by hand
    assert_unchanged            under connectivity "none" the model is bit for bit what it was
    assert_equivalent           two models compute the same: outputs, gradients, writes
    assert_overlappable         collectives of routed experts have compute between launch and wait
    assert_same_on_all_ranks    all ranks compile the same

`farskip_compile.testing.strategies`, which needs hypothesis, generates models and graphs.
"""

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.testing.comparing import relative_difference
from farskip_compile.testing.equivalence import assert_equivalent, assert_unchanged
from farskip_compile.testing.overlap import assert_overlappable
from farskip_compile.testing.ranks import assert_same_on_all_ranks
from farskip_compile.testing.wiring import assert_rewired, assert_wiring

__all__ = [
    "assert_equivalent",
    "assert_overlappable",
    "assert_rewired",
    "assert_same_on_all_ranks",
    "assert_unchanged",
    "assert_wiring",
    "fake_ranks",
    "relative_difference",
]
