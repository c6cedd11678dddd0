# SPDX-License-Identifier: Apache-2.0
"""Prints the table of faults behind the tests of this folder: `pytest -s tests/faults`, `python -m tests.faults`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.faults.outcomes import Outcome
from tests.faults.table import PROPERTY, lines_of, row

Tell = Callable[[str, str, Sequence[Outcome], str], None]


@pytest.fixture
def tell(record_property: Callable[[str, Any], None]) -> Tell:
    """Puts a row into the table: the fault, how it was made, the outcomes, the state of the disk."""

    def put(fault: str, made: str, outcomes: Sequence[Outcome], disk: str) -> None:
        record_property(PROPERTY, row(fault, made, outcomes, disk))

    return put


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    rows = [value for one in reports for name, value in getattr(one, "user_properties", ()) if name == PROPERTY]
    if rows and config.getoption("capture") == "no":
        terminalreporter.write_line("\n".join(lines_of(rows)))
