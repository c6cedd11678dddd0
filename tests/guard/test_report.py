# SPDX-License-Identifier: Apache-2.0
"""A model in its original wiring: an error, or one warning, and a count of all such calls."""

from __future__ import annotations

import warnings

import pytest
from torch import nn

from farskip_compile import FarSkipWarning, OriginalWiringError
from farskip_compile.compiler.guard.report import as_written, report_original_wiring


def test_under_strict_each_call_is_an_error_that_names_the_way_out() -> None:
    module = nn.Linear(1, 1)
    for _ in range(2):
        with pytest.raises(OriginalWiringError, match="it is a copy") as caught:
            report_original_wiring(module, "it is a copy", "compile it", strict=True)
        assert caught.value.way_out == "compile it"
    assert as_written(module) is None


def test_otherwise_a_module_warns_once_and_its_calls_are_counted() -> None:
    module, other = nn.Linear(1, 1), nn.Linear(1, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for reason in ("first", "second"):
            report_original_wiring(module, reason, "compile it", strict=False)
        report_original_wiring(other, "third", "compile it", strict=False)
    assert [str(one.message).splitlines()[0] for one in caught] == ["first", "third"]
    assert all(one.category is FarSkipWarning for one in caught)
    known = as_written(module)
    assert known is not None
    assert (known.calls, known.reason) == (2, "second")
