# SPDX-License-Identifier: Apache-2.0
"""The assertions in the tests of someone who uses unittest: a failure is a failure, not an error."""

from __future__ import annotations

import unittest

import torch

from farskip_compile.models import FarSkipForm, build
from farskip_compile.testing import assert_equivalent, assert_rewired, assert_unchanged

IDS = torch.zeros(1, 5, dtype=torch.long)


class Suite(unittest.TestCase):
    def setUp(self) -> None:
        self.model = build("mixtral", layers=("moe", "moe"), dtype=torch.float64)

    def rewired(self, **options: object) -> torch.nn.Module:
        return torch.compile(self.model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})

    def passes(self) -> None:
        assert_rewired(self.rewired(), IDS)
        assert_unchanged(self.model, IDS)
        assert_equivalent(self.rewired(), FarSkipForm(self.model), IDS)

    def fails_wiring(self) -> None:
        assert_rewired(self.rewired(connectivity="mlp"), IDS)

    def fails_equivalence(self) -> None:
        assert_equivalent(self.rewired(), self.model, IDS)

    def fails_refused(self) -> None:
        assert_rewired(self.model, IDS, layers=(0, 9))


def test_results_of_a_unittest_suite() -> None:
    names = ["passes", "fails_wiring", "fails_equivalence", "fails_refused"]
    result = unittest.TestResult()
    unittest.TestSuite(map(Suite, names)).run(result)
    assert result.testsRun == 4
    assert result.errors == []
    failed = {case.id().rpartition(".")[2]: text for case, text in result.failures}
    assert set(failed) == set(names) - {"passes"}
    assert "[x]" in failed["fails_wiring"]
    assert "of the largest entry" in failed["fails_equivalence"]
    assert "LayerRangeError" in failed["fails_refused"]
