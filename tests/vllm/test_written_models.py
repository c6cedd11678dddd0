# SPDX-License-Identifier: Apache-2.0
"""Graphs as vLLM has them, rewired: equal to the form by hand, bit for bit, with fake operators of its schemas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from farskip_compile.errors import FarSkipWarning, InseparableExpertsError, OriginalWiringError, UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.vllm.asked import Asked, ServingOptions
from farskip_compile.vllm.rewiring import ran, rewire
from tests.economy import examples
from tests.vllm import fake_operators
from tests.vllm.written_models import EXPERTS, Experts, Model, Norm, Style, by_hand

QWEN3 = Style()
MIXTRAL_ON_A_CPU = Style(fused=False, linear="handle", experts="open")
DEEPSEEK = Style(dense=1, shared=True, latent=True)
DEEPSEEK_ON_A_CPU = replace(DEEPSEEK, fused=False, linear="handle", experts="open")
GPT_OSS = Style(ranks=True)
QUANTISED = Style(shared=True, linear="quantised", float_type=torch.float32)
UNLISTED = Style(experts="schema", linear="handle")
STYLES = {
    "qwen3_moe": QWEN3,
    "mixtral on a CPU": MIXTRAL_ON_A_CPU,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3 on a CPU": DEEPSEEK_ON_A_CPU,
    "gpt_oss on ranks": GPT_OSS,
    "deepseek_v3 on ranks": replace(DEEPSEEK, ranks=True),
    "quantised": QUANTISED,
    "experts by schema": UNLISTED,
}


@pytest.fixture(autouse=True, scope="module")
def operators():
    fake_operators.register()


def served(model: Model, ids: torch.Tensor, **options: object) -> tuple[torch.Tensor, CompileReport, torch.fx.Graph]:
    """What the rewired graph of `model` computes, as vLLM compiles it: for any number of tokens."""
    found = []

    def backend(module, _):
        asked = Asked(ServingOptions(**options), None, "a test")
        _, report = rewire(module, asked, {"inner": "eager", "schedule": False}, order=False)
        found.append((report, module.graph))
        return module.forward

    torch._dynamo.reset()
    torch._dynamo.mark_dynamic(ids, 0)
    with torch.no_grad():
        output = torch.compile(model, backend=backend, fullgraph=True)(ids)
    return output, *found[0]


def ids(tokens: int) -> torch.Tensor:
    return torch.randint(32, (tokens,), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp"])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_equal_to_the_form_by_hand(style, connectivity):
    model = Model(style)
    with torch.no_grad():
        expected, plain = (by_hand(model, ids(7), form) for form in (connectivity, "none"))
        output, report, _ = served(model, ids(7), connectivity=connectivity)
        assert not torch.allclose(expected, plain), "the forms can't be told apart"
        if style.ranks and style.shared:  # C(s + r) is C(s) + C(r), in another order of additions
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(output, expected)
        assert report.outcome is Outcome.REWIRED


# Each example is a compile: a failure is short enough as it is.
@settings(max_examples=examples(12), phases=[Phase.generate])
@given(
    style=st.builds(
        Style,
        layers=st.integers(3, 4),
        dense=st.integers(0, 1),
        shared=st.booleans(),
        latent=st.booleans(),
        fused=st.booleans(),
        linear=st.sampled_from(["plain", "handle"]),
        experts=st.sampled_from(["opaque", "open", "schema"]),
        ranks=st.booleans(),
    ),
    connectivity=st.sampled_from(["full", "attention", "mlp"]),
    tokens=st.integers(2, 9),
)
def test_any_mixture_of_styles(style, connectivity, tokens):
    model = Model(style)
    with torch.no_grad():
        output, _, _ = served(model, ids(tokens), connectivity=connectivity)
        torch.testing.assert_close(output, by_hand(model, ids(tokens), connectivity), rtol=1e-12, atol=1e-12)


def test_what_is_read_and_what_is_said():
    _, report, graph = served(Model(DEEPSEEK), ids(5), connectivity="full")
    assert report.left_out == {"mlp.0": ("a0",), "moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2",)}
    declared = {fact.name: str(fact) for fact in report.declared}
    assert declared["vllm::moe_forward_shared"] == "(dense, routed)"
    assert declared["vllm::unified_mla_attention_with_output"] == "attention"
    assert report.beside == (), "a norm is not a product with weights"
    assert "verified" in ran[-1]["said"]
    assert [ops.op_name(node) for node in graph.nodes].count("farskip::served") == 1


@pytest.mark.parametrize(
    ("style", "connectivity", "split", "joined"),
    [
        (QWEN3, "none", 6, 6),
        (QWEN3, "full", 6, 5),  # the first experts read the embedding, which is not a sum
        (DEEPSEEK, "full", 6, 4),  # and after a dense layer two norms read one sum
        (MIXTRAL_ON_A_CPU, "full", 0, 0),
    ],
)
def test_adds_and_norms_are_joined_again(style, connectivity, split, joined):
    model = Model(style)
    output, report, graph = served(model, ids(6), connectivity=connectivity)
    assert (report.norms_split, report.norms_joined) == (split, joined)
    targets = [str(node.target) for node in graph.nodes]
    assert sum("fused_add_rms_norm" in target for target in targets) == joined
    with torch.no_grad():
        assert torch.equal(output, by_hand(model, ids(6), connectivity))


@pytest.mark.parametrize("connectivity", ["full", "mlp"])
def test_reductions_of_attention_and_experts_are_merged(connectivity):
    model = Model(replace(DEEPSEEK, ranks=True, layers=4))
    apart, merged = (
        served(model, ids(5), connectivity=connectivity, merge_reductions=wanted) for wanted in (False, True)
    )
    counts = [[ops.op_name(node) for node in one[2].nodes].count("vllm::all_reduce") for one in (apart, merged)]
    # `mlp`: one for each of 4 layers; `full`: attention and experts, of which shared and routed are split in 2 layers
    assert counts == ([8, 4] if connectivity == "mlp" else [10, 8])
    assert merged[1].reductions_merged == counts[0] - counts[1]
    with torch.no_grad():
        expected = by_hand(model, ids(5), connectivity)
    for output, _, _ in (apart, merged):
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_operator_is_refused(monkeypatch):
    monkeypatch.setattr(Experts, "_routed", lambda self, x, _: torch.ops.vllm.some_mixing_kernel(x))
    with pytest.raises(UnsupportedPatternError, match="vllm::some_mixing_kernel"):
        served(Model(QWEN3), ids(5), connectivity="full")


@pytest.mark.parametrize("router", ["shows", "inside"])
def test_experts_in_front_of_the_stream_are_refused(router):
    """Also where no weights show, as the operator finds them by the name of its layer."""

    class Front(Model):
        def forward(self, ids):
            hidden, residual = F.embedding(ids, self.embed_tokens), None
            experts = self.layers[0].mlp
            logits = experts.gate(hidden) if router == "shows" else hidden[:, :EXPERTS]
            hidden = torch.ops.vllm.moe_forward(hidden * 2, logits, None, None, experts.name, 0)
            for layer in self.layers[1:]:
                hidden, residual = layer(hidden, residual)
            return self.norm(hidden, residual)[0]

    with pytest.raises(UnsupportedPatternError, match="in front of the residual sum, with weights"):
        served(Front(replace(QWEN3, layers=4)), ids(5), connectivity="full")


def test_what_is_not_rewired_is_not_served(monkeypatch):
    """Not even where the passes are told that they may leave a model as it is."""
    monkeypatch.setattr(Experts, "_routed", lambda self, x, _: torch.ops.vllm.some_mixing_kernel(x))

    def backend(module, _):
        with pytest.warns(FarSkipWarning):
            rewire(module, Asked(ServingOptions(), None, "a test"), {"inner": "eager", "strict": False}, order=False)

    torch._dynamo.reset()
    with pytest.raises(OriginalWiringError, match="a test asks for a rewired model, and a part of it is refused"):
        torch.compile(Model(QWEN3), backend=backend, fullgraph=True)(ids(5))


def test_a_kernel_that_writes_over_the_residual_stream_is_refused(monkeypatch):
    """Though the model has kept a copy: a rewired one reads older sums later than it does."""
    from farskip_compile.declare import declare_op

    library = torch.library.Library("farskip_tests", "FRAGMENT")
    library.define("norm_over_the_stream(Tensor(a!) out, Tensor(b!) stream, Tensor weight) -> ()")
    library.impl("norm_over_the_stream", lambda out, stream, weight: out.copy_(stream * weight), "CPU")
    torch.library.register_fake("farskip_tests::norm_over_the_stream", lambda *_: None, lib=library)
    declare_op("farskip_tests::norm_over_the_stream", "dense")

    def forward(self, x, residual=None):
        total = x.clone() if residual is None else x + residual
        out, kept = torch.empty_like(total), total.clone()
        torch.ops.farskip_tests.norm_over_the_stream(out, total, self.weight.data)
        return out if residual is None else (out, kept)

    monkeypatch.setattr(Norm, "forward", forward)
    with pytest.raises(UnsupportedPatternError, match="norm_over_the_stream' writes into the residual stream"):
        served(Model(QWEN3), ids(5), connectivity="full")


def test_a_reduction_whose_data_does_not_come_first_is_refused(monkeypatch):
    """Nobody could tell shared from routed experts in it: both would be left out."""
    from farskip_compile.declare import declare_op

    library = torch.library.Library("farskip_tests", "FRAGMENT")
    library.define("backwards_reduction(int handle, Tensor data) -> Tensor")
    library.impl("backwards_reduction", lambda handle, data: data.clone(), "CPU")
    torch.library.register_fake(
        "farskip_tests::backwards_reduction", lambda handle, data: torch.empty_like(data), lib=library
    )
    declare_op("farskip_tests::backwards_reduction", "reduction")
    monkeypatch.setattr(
        "tests.vllm.written_models._reduced", lambda value, _: torch.ops.farskip_tests.backwards_reduction(0, value)
    )
    with pytest.raises(InseparableExpertsError, match="backwards_reduction"):
        served(Model(replace(DEEPSEEK, experts="open")), ids(5), connectivity="full")
