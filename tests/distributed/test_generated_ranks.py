"""Generated architectures on two real ranks, under expert and tensor parallelism, against the hand-written form."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.models import FarSkipForm, build_decoder
from tests.architectures import Case, cases
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.distributed.test_rewire_ranks import parallel_config
from tests.properties.test_architectures import nothing_to_leave_out

Generated = tuple[Case, str]


@st.composite
def parallel_cases(draw: st.DrawFn) -> Generated:
    """A case whose experts, heads and widths two ranks can share, and how they share them."""
    case = draw(cases(max_layers=3).filter(lambda case: not nothing_to_leave_out(case)))
    config = dataclasses.replace(case.config, heads=4, kv_heads=draw(st.sampled_from([2, 4])))
    layout = draw(st.sampled_from(["padded", "dropless", "tp"]))
    return dataclasses.replace(case, config=config), layout


def compare_generated(rank: int, world_size: int, generated: list[Generated]) -> list[tuple[bool, float]]:
    """For each case: outputs bit-equal?, and the largest difference of a gradient."""
    results = []
    for case, layout in generated:
        torch.compiler.reset()
        parallel = parallel_config(layout, world_size)
        model = build_decoder(case.config, seed=case.seed, dtype=torch.float64, parallel=parallel)
        own_tokens = case if layout == "tp" else dataclasses.replace(case, seed=case.seed + 10 * rank)
        oracle = FarSkipForm(model, connectivity=case.connectivity, layers=case.layers)
        expected, expected_gradients = run_with_gradients(oracle, model, own_tokens.ids())
        options = case.options(inner="eager")
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        output, gradients = run_with_gradients(compiled, model, own_tokens.ids())
        assert gradients.keys() == expected_gradients.keys()
        worst = max(relative_difference(gradients[name], expected_gradients[name]) for name in gradients)
        results.append((torch.equal(output, expected), worst))
    return results


@settings(max_examples=2)
@given(generated=st.lists(parallel_cases(), min_size=5, max_size=5))
def test_two_ranks_agree_with_the_oracle(generated: list[Generated]) -> None:
    for results in run_ranks(compare_generated, 2, generated):
        for (case, layout), (equal, gradient_difference) in zip(generated, results, strict=True):
            assert equal, (layout, case)
            assert gradient_difference <= 1e-12, (layout, case)
