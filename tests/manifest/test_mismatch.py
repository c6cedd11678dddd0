# SPDX-License-Identifier: Apache-2.0
"""A graph that is not the manifest's is refused, and the first thing that differs is named with both values."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import CompileReport, FarSkipWarning, Manifest, Outcome, describe
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.check import check_as_written, check_rewired
from farskip_compile.manifest.graph_parameters import GraphParameters, graph_parameters
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.table import Table, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import ask
from tests.compile_each import compile_each
from tests.manifest.sample import IDS, SMALL, compiled, described, small


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return described()


class Renamed(nn.Module):
    """The same model, with one parameter under another name."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.decoder = small()
        norm = self.decoder.layers[layer].attention_norm
        norm.gain = norm.weight
        norm.register_parameter("weight", None)
        norm.forward = lambda x: nn.functional.rms_norm(x, norm.gain.shape, norm.gain, 1e-6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(ids)


class MixesByConvolution(nn.Module):
    """Takes the place of an attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=2, dtype=torch.float64)

    def forward(self, h: torch.Tensor, rope: Any) -> torch.Tensor:
        return self.conv(h.transpose(1, 2))[..., : h.shape[1]].transpose(1, 2)


def mixing() -> nn.Module:
    model = small()
    model.layers[1].attention = MixesByConvolution(32)
    return model


def without_a_norm() -> nn.Module:
    """The graph uses fewer parameters: nothing is there that the manifest does not have."""
    model = small()
    model.layers[2].attention.kv_norm = nn.Identity()
    return model


MODELS: list[tuple[Any, list[str]]] = [
    (
        lambda: small(layers=("dense", "moe", "moe", "moe")),
        ["the model has a sub-block attention.3 (attention, layer 3) after the 6 of the manifest"],
    ),
    (
        lambda: small(layers=("dense", "moe")),
        ["the model ends after 4 sub-blocks; the manifest has 6", "attention.2 (attention, layer 2)"],
    ),
    (
        lambda: small(layers=("dense", "dense", "moe")),
        ["a sub-block mlp.1 (dense, layer 1) where the manifest has moe.1 (routed, layer 1)"],
    ),
    (
        lambda: small(layers=("dense", "dense", "dense")),
        ["a sub-block mlp.1 (dense, layer 1) where the manifest has moe.1 (routed, layer 1)"],
    ),
    (mixing, ["a sub-block mixer.1 (mixer, layer 1) where the manifest has attention.1 (attention, layer 1)"]),
    (lambda: small(shared_experts=0), ["moe.1 adds r1 to the stream; in the manifest it adds r1, s1"]),
    (
        lambda: small(moe_intermediate_size=48),
        ["'layers.1.feed_forward.", "has shape [", "48", "in the manifest it has shape ["],
    ),
    (lambda: small(vocab_size=64), ["'token_embedding.weight' has shape [64, 32] in the model", "shape [32, 32]"]),
    (
        lambda: Renamed(1),
        ["a parameter 'layers.1.attention_norm.gain' of shape [32]", "it has 'layers.1.attention_norm.weight'"],
    ),
    (
        lambda: Renamed(0),
        ["a parameter 'layers.0.attention_norm.gain' of shape [32]", "it has 'layers.0.attention_norm.weight'"],
    ),
    (without_a_norm, ["no sub-block of the model uses a parameter 'layers.2.attention.kv_norm.weight'", "[32]"]),
    (
        lambda: FarSkipForm(small(), connectivity="attention"),
        ["attention.2 reads e..a1, s1 in the model as written; in the manifest it reads e..s1 there"],
    ),
    (
        lambda: small(parallel_block=True),
        ["mlp.0 reads e in the model as written; in the manifest it reads e..a0 there"],
    ),
]


NOT_STRICT = [MODELS[index][1][0] for index in (0, 2, 9, 11)]
"""A sub-block more, one of another kind, a renamed parameter, other reads."""


@pytest.mark.parametrize(("build_other", "says"), MODELS, ids=[says[0][:60] for _, says in MODELS])
def test_another_model(manifest: Manifest, build_other: Any, says: list[str]) -> None:
    other = build_other()
    wishes: list[dict[str, Any]] = [{"strict": True}, *([{"strict": False}] if says[0] in NOT_STRICT else [])]
    torch.compiler.reset()
    reports: list[CompileReport] = []
    options = {"inner": "eager", "manifest": manifest, "on_report": reports.append}
    run, *not_strict = compile_each(other, [{**options, **wish} for wish in wishes])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ManifestError) as caught:
            run(IDS)
    for text in says:
        assert text in caught.value.reason
    assert "describe" in caught.value.way_out
    # not strict: one warning, and the model as it is, never with another wiring
    for unchanged in not_strict:
        assert torch.equal(unchanged(IDS), other(IDS))
    told = [str(one.message) for one in seen if issubclass(one.category, FarSkipWarning)]
    assert len(told) == len(not_strict)
    assert all(says[0] in one for one in told)
    assert [report.outcome for report in reports] == [Outcome.REFUSED] * len(not_strict)


def row_changed(manifest: Manifest, row_name: str, **changes: Any) -> Manifest:
    table = manifest.table
    if "terms" in changes:
        changes["terms"] = tuple(table.term(name).index for name in changes["terms"])
    rows = [dataclasses.replace(row, **changes) if row.name == row_name else row for row in table.rows]
    changed = dataclasses.replace(table, rows=tuple(rows))
    return dataclasses.replace(manifest, table=changed, origin="weights/farskip.json")


Graph = tuple[Table, GraphParameters]


@pytest.fixture(scope="module")
def graph() -> Graph:
    """What is read off the graph of the manifest's own model."""
    return read_off(small(), dynamic=False)


def read_off(model: nn.Module, *, dynamic: bool) -> Graph:
    found: list[Graph] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        normalize(module)
        reading = read_table(module.graph)
        assert reading is not None
        found.append((reading.table, graph_parameters(reading)))
        return module.forward

    torch.compile(model, backend=look, fullgraph=True, dynamic=dynamic)(IDS)
    return found[0]


def check(graph: Graph, manifest: Manifest) -> None:
    """As the backend does it."""
    table, parameters = graph
    check_as_written(manifest, table, parameters)
    check_rewired(manifest, ask(table, manifest.connectivity, manifest.layers).wanted(table))


def test_its_own_graph_is_taken(manifest: Manifest, graph: Graph) -> None:
    check(graph, manifest)
    check(graph, Manifest("mlp"))


class Expanded(nn.Module):
    """A network whose result is scaled by one number, given to each token: in a shape that depends on the input."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain
        self.sinks = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(x) * self.sinks.expand(x.shape[0], x.shape[1]).unsqueeze(-1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_parameters_in_a_shape_that_depends_on_the_input_are_used(dynamic: bool) -> None:
    model = small()
    model.layers[1].feed_forward = Expanded(model.layers[1].feed_forward)
    _, parameters = read_off(model, dynamic=dynamic)
    assert "self.layers.1.feed_forward.sinks" in parameters.used


def test_another_connectivity_than_the_rows_say(manifest: Manifest, graph: Graph) -> None:
    """As it would be if another version of this package had other rules."""
    for other in (
        dataclasses.replace(manifest, connectivity="mlp"),
        dataclasses.replace(manifest, layers=(0, 1)),
        dataclasses.replace(manifest, connectivity={"moe.1": ["a1"]}),
    ):
        with pytest.raises(ManifestError, match="rewired, ") as caught:
            check(graph, other)
        assert "was made with farskip-compile" in caught.value.way_out
    changed = row_changed(manifest, "attention.2", reads=TermSet.of([0, 1]), left_out=TermSet.of([2, 3, 4, 5]))
    with pytest.raises(ManifestError, match=r"rewired, attention\.2 would read e\.\.a1, s1") as caught:
        check(graph, changed)
    assert "in the manifest weights/farskip.json it reads e..a0" in caught.value.reason
    assert caught.value.where.layer == 2
    with pytest.raises(ManifestError, match="rewired, "):  # the backend asks, too
        compiled(small(), manifest=dataclasses.replace(manifest, connectivity="mlp"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"kind": TermKind.DENSE},
            "sub-block moe.1 (routed, layer 1) where the manifest weights/farskip.json has moe.1 (dense",
        ),
        ({"layer": 2}, "has moe.1 (routed, layer 2)"),
        ({"name": "moe.1.1"}, "has moe.1.1 (routed, layer 1)"),
        ({"terms": ("r1",)}, "moe.1 adds r1, s1 to the stream; in the manifest weights/farskip.json it adds r1"),
        ({"left_out": TermSet()}, "moe.1 reads e..a1 in the model as written"),
    ],
    ids=str,
)
def test_a_row_that_differs(manifest: Manifest, graph: Graph, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check(graph, row_changed(manifest, "moe.1", **changes))
    assert says in caught.value.reason
    assert caught.value.where.layer == 1
    assert "decoder.py:" in str(caught.value.where.source) or caught.value.where.node


def test_fewer_parameters_of_what_is_no_sub_block(manifest: Manifest) -> None:
    """Without its head the model is still the one that the sub-blocks are of."""

    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = small()
            self.decoder.lm_head = nn.Identity()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.decoder(ids)

    model = Headless()
    with torch.no_grad():
        assert torch.equal(compiled(model, manifest=manifest), FarSkipForm(model.decoder)(IDS))


def test_order_of_terms_plays_no_role(manifest: Manifest) -> None:
    """Another kernel for experts may put the shared ones first in the graph."""
    swap = {"r1": "s1", "s1": "r1", "r2": "s2", "s2": "r2"}
    table = manifest.table
    terms = [table.term(swap.get(term.name, term.name)) for term in table.terms]
    position = {term.name: index for index, term in enumerate(terms)}

    def moved(terms: Iterable[int]) -> TermSet:
        return TermSet.of(position[name] for name in table.names(terms))

    rows = tuple(
        dataclasses.replace(r, terms=tuple(moved(r.terms)), reads=moved(r.reads), left_out=moved(r.left_out))
        for r in table.rows
    )
    moved_terms = tuple(dataclasses.replace(term, index=index) for index, term in enumerate(terms))
    other = dataclasses.replace(manifest, table=Table(moved_terms, rows))
    assert other != manifest
    model = small()
    with torch.no_grad():
        assert torch.equal(compiled(model, manifest=other), FarSkipForm(model)(IDS))


# On a rank of several


@pytest.mark.parametrize("layout", ["tp", "ep"])
def test_shards_divide_the_whole(two_ranks: Any, layout: str) -> None:
    whole = describe(build("deepseek_v3", **SMALL), IDS)
    parallel = ParallelConfig(tp_group=two_ranks) if layout == "tp" else ParallelConfig(ep_group=two_ranks)
    shard = build("deepseek_v3", parallel=parallel, **SMALL)
    assert {tuple(p.shape) for p in shard.parameters()} != {
        tuple(p.shape) for p in build("deepseek_v3", **SMALL).parameters()
    }
    assert describe(shard, IDS, connectivity="full").connectivity == "full"
    options = {"inner": "eager", "manifest": whole}
    with torch.no_grad():
        torch.compile(shard, backend="farskip", fullgraph=True, options=options)(IDS)
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED


def test_shards_of_another_width(two_ranks: Any) -> None:
    whole = describe(build("deepseek_v3", **SMALL), IDS)
    wider = build("deepseek_v3", parallel=ParallelConfig(tp_group=two_ranks), **{**SMALL, "moe_intermediate_size": 96})
    with pytest.raises(ManifestError, match="or a shard of it"):
        compiled(wider, manifest=whole)


def test_one_rank_alone_has_no_shards() -> None:
    """Half of every width would divide too."""
    with pytest.raises(ManifestError, match="has shape"):
        compiled(small(moe_intermediate_size=16), manifest=described())
