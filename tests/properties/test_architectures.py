# SPDX-License-Identifier: Apache-2.0
"""Generated architectures against the hand-written FarSkip form: the central claim of the package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import example, given, settings

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.errors import LayerRangeError
from farskip_compile.models import ModelConfig
from farskip_compile.testing.strategies import cases, nothing_to_leave_out
from farskip_compile.testing.strategies.architectures import GeneratedCase
from tests.compare import assert_gradients_close, relative_difference, run_with_gradients
from tests.economy import examples, scalar_kernels
from tests.one_build import kernels_in_one_build


def compiled(case: GeneratedCase, model: torch.nn.Module, inner: str):
    torch.compiler.reset()
    return torch.compile(model, backend="farskip", fullgraph=True, options=case.options(inner=inner))


@settings(max_examples=examples(25))
@given(case=cases())
def test_bit_equal_to_the_oracle(case: GeneratedCase) -> None:
    model = case.model()
    if nothing_to_leave_out(case):
        with pytest.raises(LayerRangeError):
            compiled(case, model, "eager")(case.ids())
        return
    expected, expected_gradients = run_with_gradients(case.oracle(model), model, case.ids())
    output, gradients = run_with_gradients(compiled(case, model, "eager"), model, case.ids())
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-12)


@settings(max_examples=5)
@given(case=cases(max_layers=4))
def test_aot_eager_is_close_to_the_oracle(case: GeneratedCase) -> None:
    if nothing_to_leave_out(case):
        return
    model = case.model()
    expected, expected_gradients = run_with_gradients(case.oracle(model), model, case.ids())
    output, gradients = run_with_gradients(compiled(case, model, "aot_eager"), model, case.ids())
    assert relative_difference(output, expected) < 1e-12
    assert_gradients_close(gradients, expected_gradients, 1e-10)


INDUCTOR_CASES = [
    GeneratedCase(ModelConfig(vocab_size=17, hidden_size=16, layers=("moe", "dense"), head_dim=8, heads=2, kv_heads=1,
                     intermediate_size=24, moe_intermediate_size=8, experts=4, shared_experts=1, qk_norm=True),
         "full", None, 2, 5, 0),
    GeneratedCase(ModelConfig(vocab_size=17, hidden_size=16, layers=("moe", "moe"), attention="mla", heads=2, kv_rank=8,
                     query_rank=8, nope_head_dim=4, rope_head_dim=4, value_head_dim=4, experts=4, shared_experts=2,
                     moe_intermediate_size=8, router="sigmoid_groups", router_groups=2, router_top_groups=1,
                     residual_scale=0.22), "full", None, 1, 4, 1),
    GeneratedCase(ModelConfig(vocab_size=17, hidden_size=16, layers=("dense", "moe"), head_dim=8, heads=2, kv_heads=2,
                     intermediate_size=24, moe_intermediate_size=8, experts=4, router="sigmoid_top1", top_k=1,
                     norm="layer"), "mlp", (1, 1), 2, 3, 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kernels"),
    [(INDUCTOR_CASES[1], scalar_kernels), (INDUCTOR_CASES[2], kernels_in_one_build)],  # each takes long to build
    ids=["mla", "llama"],
)
def test_inductor_is_close_to_the_oracle(
    case: GeneratedCase, kernels: Callable[[], AbstractContextManager[None]]
) -> None:
    model = case.model()
    expected, expected_gradients = run_with_gradients(case.oracle(model), model, case.ids())
    with kernels():
        output, gradients = run_with_gradients(compiled(case, model, "inductor"), model, case.ids())
    assert relative_difference(output, expected) < 1e-10
    assert_gradients_close(gradients, expected_gradients, 1e-9)
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED


@settings(max_examples=examples(10))
@given(case=cases(max_layers=4))
def test_none_changes_no_bit(case: GeneratedCase) -> None:
    model = case.model()
    case = GeneratedCase(case.config, "none", case.layers, case.batch, case.sequence, case.seed)
    expected, expected_gradients = run_with_gradients(model, model, case.ids())
    output, gradients = run_with_gradients(compiled(case, model, "eager"), model, case.ids())
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, 0.0)


@settings(max_examples=examples(10))
@given(case=cases(max_layers=4))
def test_without_routed_output_attention_connectivity_is_the_original(case: GeneratedCase) -> None:
    """If every routed expert returns zero, leaving the routed experts out changes nothing."""
    case = GeneratedCase(case.config, "attention", case.layers, case.batch, case.sequence, case.seed)
    if nothing_to_leave_out(case):
        return
    model = case.model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name and "down" in name:
                parameter.zero_()
    with torch.no_grad():
        assert torch.equal(compiled(case, model, "eager")(case.ids()), model(case.ids()))


@settings(max_examples=examples(10))
@given(case=cases(max_layers=4))
@example(case=INDUCTOR_CASES[0])
def test_rewiring_is_no_identity(case: GeneratedCase) -> None:
    """The checks above could not fail if the rewired model computed the same as the plain one."""
    case = GeneratedCase(case.config, "full", None, case.batch, case.sequence, case.seed)
    model = case.model()
    with torch.no_grad():
        rewired, plain = compiled(case, model, "eager")(case.ids()), model(case.ids())
    changes = farskip_compile.reports().compiles[-1].rewired_rows
    assert bool(changes) == (not torch.equal(rewired, plain))
