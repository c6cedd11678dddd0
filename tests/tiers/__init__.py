# SPDX-License-Identifier: Apache-2.0
"""The three tiers of the tests: `make test` runs the quick one, `make test-all` two, `make test-deep` all three.

Contract: data, and how it is read. `WHOLE` and `DEEP` are the only places that say which tests are left to
`make test-all` and to `make test-deep`, by kind: a folder, a file, or the beginning of a test's id. What is not listed
is quick: unit tests, properties, the models of transformers against their oracle, each form of a collective on two
ranks. `make test-all` is what a change must pass; it is to take less than half an hour on two cores. What is deep runs
before a release: some parameters of a test whose others a change runs, the same of another model or of one more layout
(`PARAMETERS`); and what another test shows in a smaller form, which is named beside it (`SHOWN_BY`). Tests that are
listed start first, in the order of the tables, so that no long one is left for one worker.
"""

from __future__ import annotations

from tests.tiers.parameters import PARAMETERS
from tests.tiers.shown_by import SHOWN_BY
from tests.tiers.whole import WHOLE

DEEP = (
    *(f"tests/{file}::{test}" for file, tests in PARAMETERS.items() for test in tests),
    *(f"tests/{test}" for test in SHOWN_BY),
)
"""What `make test-all` leaves out, too."""
QUICK = (
    "tests/distill/test_mismatch.py",
    "tests/fold/test_solve.py",
    "tests/guard/test_limit.py",
    "tests/guard/test_report.py",
    "tests/handwritten/test_between.py",
    "tests/prepare/test_loops.py",
)
"""What is quick in a folder that is not: the only tests of its code that `make test` has."""


def place(nodeid: str) -> int | None:
    """Where a test stands in `WHOLE`, or behind that in `DEEP`; None: it is quick."""
    if nodeid.startswith(QUICK):
        return None
    return next((number for number, start in enumerate((*WHOLE, *DEEP)) if nodeid.startswith(start)), None)


def is_deep(nodeid: str) -> bool:
    """Whether a test is left to `make test-deep`."""
    return nodeid.startswith(DEEP)
