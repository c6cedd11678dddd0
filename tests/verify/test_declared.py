# SPDX-License-Identifier: Apache-2.0
"""What a user declares of an operator or a module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import farskip_compile
from farskip_compile import (
    ConfigError,
    Manifest,
    Outcome,
    declare,
    declare_op,
    describe,
    load_manifest,
    save_manifest,
    testing,
)
from farskip_compile.errors import ManifestError, UnsupportedPatternError
from farskip_compile.passes.graph.declared import Declared
from tests.verify import nets
from tests.verify.nets import WIDTH, Net
from tests.verify.test_account import inputs, refusal_of, report_of


@torch.library.custom_op("farskip_tests::wkv", mutates_args=())
def wkv(x: Tensor, weight: Tensor) -> Tensor:
    """Each token sees the mean of those before it."""
    steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
    return x.cumsum(1) / steps @ weight


@wkv.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("farskip_tests::experts", mutates_args=())
def experts(x: Tensor, router: Tensor, weight: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """The shared expert, and the better of two."""
    chosen = (x @ router).argmax(-1)
    return x @ shared, torch.einsum("bsd,bsde->bse", x, weight[chosen])


@experts.register_fake
def _(x: Tensor, router: Tensor, weight: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


class Custom(nn.Module):
    """A mixer in one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return wkv(x, self.weight)


class CustomExperts(nn.Module):
    """Shared and routed experts in one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(WIDTH, 2))
        self.weight = nn.Parameter(torch.randn(2, WIDTH, WIDTH) * 0.2)
        self.shared = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        shared, routed = experts(x, self.router, self.weight, self.shared)
        return shared + routed


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})


def test_an_operator_that_nobody_declared_is_refused_by_name() -> None:
    error = refusal_of(Net(mixers={1: Custom()}))
    assert isinstance(error, UnsupportedPatternError)
    assert "nothing is known of 'farskip_tests::wkv'" in error.reason


@pytest.mark.parametrize("how", ["declare_op", "kinds"])
def test_a_declared_mixer_begins_a_layer(how: str) -> None:
    options = {}
    if how == "kinds":
        options["kinds"] = {"farskip_tests::wkv": "mixer"}
    else:
        declare_op("farskip_tests::wkv", "mixer")
    with torch.no_grad():
        report = report_of(Net(mixers={1: Custom()}), **options)
    assert report.outcome is Outcome.REWIRED
    assert report.left_out["mixer.1"] == ("r0",)
    assert report.config["declared"]["farskip_tests::wkv"] == "mixer"
    assert report.declared == (Declared("farskip_tests::wkv", "mixer"),)


def test_outputs_that_differ_are_terms_of_their_own() -> None:
    declare_op("farskip_tests::experts", outputs=("dense", "routed"))
    with torch.no_grad():
        report = report_of(Net(experts={1: CustomExperts()}))
    assert "s1" in report.terms
    assert report.left_out["attention.2"] == ("r1",)


def test_a_fact_is_part_of_the_identity_of_a_configuration() -> None:
    plain = farskip_compile.FarSkipConfig().to_json()
    declare_op("farskip_tests::wkv", "mixer")
    assert farskip_compile.FarSkipConfig().to_json() != plain


def test_an_operator_is_one_thing() -> None:
    declare_op("farskip_tests::wkv", "mixer")
    declare_op("farskip_tests::wkv", "mixer")
    with pytest.raises(ConfigError, match="was declared before as mixer, and is now declared as attention"):
        declare_op("farskip_tests::wkv", "attention")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("wkv", "mixer", "not the name of an operator"), ("a::b", "mlp", "'mlp' is no kind"), ("a::b", None, "either")],
)
def test_what_is_no_declaration(name: str, kind: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        declare_op(name, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [{"a::b": "mlp"}, {"a b": "mixer"}, {3: "mixer"}, ["a::b"]])
def test_options_that_declare_nothing(kinds: object) -> None:
    with pytest.raises(ConfigError):
        farskip_compile.FarSkipConfig(kinds=kinds)  # type: ignore[arg-type]


def test_facts_come_in_one_order() -> None:
    declare_op("b::b", "mixer")
    declare_op("a::a", "dense")
    assert declare.all_declared({"c": "mixer"}) == (
        Declared("a::a", "dense"),
        Declared("b::b", "mixer"),
        Declared("c", "mixer"),
    )


def test_a_manifest_holds_what_its_table_rests_on(tmp_path: Path) -> None:
    model = Net(mixers={1: Custom()}, experts={1: CustomExperts()})
    declare_op("farskip_tests::wkv", "mixer")
    declare_op("farskip_tests::experts", outputs=("dense", "routed"))
    declare_op("farskip_tests::other", "dense")  # of another model
    save_manifest(describe(model, inputs()), tmp_path)
    declare._declared.clear()
    manifest = load_manifest(tmp_path)
    assert [str(fact) for fact in manifest.declared] == ["(dense, routed)", "mixer"]
    with torch.no_grad():
        report = report_of(model, manifest=tmp_path)
    assert report.declared == manifest.declared
    assert report.left_out["mixer.1"] == ("r0",)
    declare_op("farskip_tests::wkv", "attention")
    with pytest.raises(ConfigError, match="is declared as attention, and the manifest was made where it is mixer"):
        farskip_compile.backend(manifest=tmp_path)


def test_a_kind_that_is_given_to_explain_and_describe() -> None:
    model, kinds = Net(mixers={1: Custom()}), {"farskip_tests::wkv": "mixer"}
    assert not farskip_compile.explain(model, inputs(), kinds=kinds).refusal
    assert describe(model, inputs(), kinds=kinds).declared == (Declared("farskip_tests::wkv", "mixer"),)
    testing.assert_rewired(model, inputs(), kinds=kinds)
    with pytest.raises(AssertionError, match="nothing is known of"):
        testing.assert_rewired(model, inputs())


@pytest.mark.parametrize("name", ["farskip_tests::wvk", "layers.*.mixer"])
def test_a_kind_of_something_that_is_not_there_is_refused(name: str) -> None:
    error = refusal_of(Net(), kinds={name: "mixer"})
    assert isinstance(error, ConfigError)
    assert f"kinds names {name!r}, and the model has no such" in error.reason


@pytest.mark.parametrize("kinds", ["mlp", ["mixer", 3], [], None, {"a": "b"}])
def test_a_manifest_that_declares_nothing(kinds: object) -> None:
    data = Manifest("full").to_json() | {"declared": {"mylib::wkv": kinds}}
    with pytest.raises(ManifestError, match="declared"):
        Manifest.from_json(data)


# What rows refute


class Shared(nn.Module):
    """A shared expert beside routed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.routed = nn.Linear(WIDTH, WIDTH), nets.Experts(nets.top_2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.routed(x)


class WrittenOut(nn.Module):
    """An attention without a fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize(
    ("net", "name", "kind", "shown"),
    [
        ({"experts": {1: Shared}}, "experts.1.shared", "mixer", "each row of it is computed by itself"),
        ({}, "experts.1", "attention", "each row of it is computed by itself"),
        ({}, "mixers.1", "dense", "'scaled_dot_product_attention' in it mixes rows"),
        ({}, "scaled_dot_product_attention", "dense", "'scaled_dot_product_attention' in it mixes rows"),
        ({"mixers": {1: WrittenOut}}, "mixers.1", "dense", "'matmul' in it mixes rows"),
        ({"mixers": {1: lambda: nets.Mixer(nets.running_mean)}}, "mixers.1", "dense", "'mean' in it mixes rows"),
        ({"mixers": {1: lambda: nets.Mixer(nets.shift)}}, "mixers.1", "dense", "'pad' in it moves rows"),
        (
            {"experts": {1: lambda: nets.Experts(nets.top_2)}},
            "experts.1",
            "dense",
            "a decision is made about whole rows",
        ),
        (
            {"experts": {1: lambda: nets.Experts(nets.over_threshold)}},
            "experts.1",
            "dense",
            "a decision is made about whole rows",
        ),
        ({}, "mixers.1", "routed", "'scaled_dot_product_attention' in it mixes rows"),
        (
            {"experts": {1: lambda: nn.Linear(WIDTH, WIDTH)}},
            "experts.1",
            "routed",
            "no decision is made about its rows",
        ),
    ],
)
def test_a_declaration_that_rows_refute_is_an_error_that_names_it(
    net: dict[str, Any], name: str, kind: str, shown: str
) -> None:
    changed = {part: {layer: make() for layer, make in layers.items()} for part, layers in net.items()}
    error = refusal_of(Net(2, **changed), kinds={name: kind})
    assert isinstance(error, UnsupportedPatternError)
    assert f"{name!r} was declared as {kind}, but {shown}" in error.reason
    assert name in error.way_out


def test_a_module_with_experts_that_was_declared_a_mixer_is_named() -> None:
    error = refusal_of(Net(2), kinds={"experts.1": "mixer"})
    assert "einsum in experts.1, declared as a mixer" in error.reason
    assert "drop 'experts.1' from `kinds`" in error.way_out


@pytest.mark.parametrize("how", nets.MIXERS)
def test_a_mixer_of_any_form_may_be_declared(how: str) -> None:
    model = Net(2, mixers={1: nets.Mixer(nets.MIXERS[how])})
    assert report_of(model, kinds={"mixers.1": "mixer"}).left_out["mixer.1"] == ("r0",)


class PickedFeatures(nn.Module):
    """Each token keeps the largest of its own features."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.down, self.how = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        values, chosen = h.topk(4, -1)
        if self.how == "scatter":
            return self.down(torch.zeros_like(h).scatter(-1, chosen, values))
        return self.down(h * (h >= values[..., -1:]))


@pytest.mark.parametrize("how", ["scatter", "threshold"])
def test_features_that_are_picked_are_dense_if_it_is_said_and_the_error_says_how(how: str) -> None:
    model = Net(2, experts={1: PickedFeatures(how)})
    error = refusal_of(model)
    assert "features that are picked, as by top-k, look the same" in error.reason
    (path,) = re.findall(r'"kinds": {"(.*?)": "dense"}', error.way_out)
    for said in (path, "experts.1"):
        assert report_of(model, kinds={said: "dense"}).outcome is Outcome.REWIRED


class ByToken(Net):
    """A router that reads the token ids, through a table of its own."""

    def __init__(self) -> None:
        super().__init__(2)
        self.table = nn.Embedding(nets.VOCABULARY, nets.EXPERTS)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.layer(0, self.embed(ids))
        h = h + self.mixers[1](self.norms[2](h))
        hidden = torch.einsum("bsd,edf->bsef", self.norms[3](h), self.experts[1].up).relu()
        gates = nets.top_2(self.table(ids)).unsqueeze(-1)
        h = h + (torch.einsum("bsef,efd->bsed", hidden, self.experts[1].down) * gates).sum(2)
        return self.head(self.norms[-1](h))


def test_a_router_that_reads_the_token_is_refused_with_the_reason() -> None:
    assert "a router that reads token ids through a table of its own" in refusal_of(ByToken()).reason


@pytest.mark.parametrize("how", ["another name", "a function"])
def test_the_path_of_a_module_depends_on_nothing_around_the_model(how: str) -> None:
    class Named(Net):
        def forward(model, ids: Tensor) -> Tensor:
            return Net.forward(model, ids)

    model = Named(2, mixers={1: Custom()})
    called: Any = (lambda ids: model(ids)) if how == "a function" else model
    assert report_of(called, kinds={"mixers.1": "mixer"}).left_out["mixer.1"] == ("r0",)
