# SPDX-License-Identifier: Apache-2.0
"""Generated architectures on two real ranks, in every way to be parallel, against the hand-written form."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.models import FarSkipForm
from farskip_compile.models.decoder import build_decoder
from farskip_compile.testing.strategies import parallel_cases
from farskip_compile.testing.strategies.architectures import GeneratedCase
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.distributed.test_rewire_ranks import TWO_RANKS, parallel_config, tokens_of


def compare_generated(rank: int, world_size: int, generated: tuple[GeneratedCase, ...]) -> list[tuple[bool, float]]:
    """For each case: outputs bit-equal?, and the largest difference of a gradient."""
    results = []
    for layout, case in zip(TWO_RANKS, generated, strict=True):
        torch.compiler.reset()
        parallel = parallel_config(layout, world_size)
        model = build_decoder(case.config, seed=case.seed, dtype=torch.float64, parallel=parallel)
        ids = dataclasses.replace(case, seed=case.seed + 10 * tokens_of(parallel)).ids()
        oracle = FarSkipForm(model, connectivity=case.connectivity, layers=case.layers)
        expected, expected_gradients = run_with_gradients(oracle, model, ids)
        options = case.options(inner="eager")
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        output, gradients = run_with_gradients(compiled, model, ids)
        assert gradients.keys() == expected_gradients.keys()
        worst = max(relative_difference(gradients[name], expected_gradients[name]) for name in gradients)
        results.append((torch.equal(output, expected), worst))
    return results


@settings(max_examples=2)
@given(generated=st.tuples(*map(parallel_cases, TWO_RANKS)))
def test_two_ranks_agree_with_the_oracle(generated: tuple[GeneratedCase, ...]) -> None:
    for results in run_ranks(compare_generated, 2, generated, timeout=300):
        for layout, case, (equal, gradient_difference) in zip(TWO_RANKS, generated, results, strict=True):
            assert equal, (layout, case)
            assert gradient_difference <= 1e-12, (layout, case)
