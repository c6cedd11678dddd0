# SPDX-License-Identifier: Apache-2.0
"""Each fault in the source still has its place."""

from __future__ import annotations

import pytest

from tests.mutation.source_fault import SourceFault
from tests.mutation.source_faults import FAULTS, place


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}:{fault.old.strip()[:40]}")
def test_a_fault_finds_its_place(fault: SourceFault) -> None:
    assert place(fault) == 1
    assert fault.old != fault.new


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 40
