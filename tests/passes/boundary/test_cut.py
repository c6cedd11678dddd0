# SPDX-License-Identifier: Apache-2.0
"""A stream that is cut: what leaves apart, what is late, what the tail is called, and what the proof notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import PartialModelError, VerificationError
from farskip_compile.passes.boundary.markers import arrive, depart
from farskip_compile.passes.boundary.tail import Departure, StreamTail, tail_of
from farskip_compile.records.compile import CompileReport
from farskip_compile.verify.boundary import _with_tail, record, verify_cut
from tests.graphs import Dense, Layer, MoE, dynamo

torch.compiler.allow_in_graph(arrive)
torch.compiler.allow_in_graph(depart)
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def layer_of(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def cut(
    layer: nn.Module, *parts: Any, key: str = "", connectivity: Any = "full", here: bool = True, later: bool = True
) -> tuple[CompileReport, list[Any]]:
    """The report of a layer that is compiled by itself, and what its graph returns; with `key`, the stream comes in
    parts."""
    reports: list[CompileReport] = []
    outputs: list[Any] = []

    def forward(*given: torch.Tensor) -> torch.Tensor:
        x = arrive(key, *given) if key else given[0]
        return depart(layer(x), here, later)

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        reports.append(run(module, FarSkipConfig(inner="eager", connectivity=connectivity)))

        def call(*args: Any) -> Any:
            outputs[:] = module.forward(*args)
            return tuple(outputs)

        return call

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(forward, backend=backend, fullgraph=True)(*(parts or (X,)))
    return reports[0], outputs


def test_the_parts_are_the_stream_once_their_tail_has_run() -> None:
    layer = layer_of(lambda: Layer(MoE()))
    report, parts = cut(layer, connectivity="attention")  # of a first layer, this rewires nothing
    assert report.departure is not None
    assert report.departure.extra == len(parts) - 1 > 0
    with torch.no_grad():
        stream = layer(X)
        assert torch.equal(tail_of(report.departure.tail)(*parts), stream)
        assert not torch.equal(parts[0], stream)


@pytest.mark.parametrize(
    ("connectivity", "apart"),
    [("full", ["r0"]), ("attention", ["r0"]), ("mlp", []), ("none", []), ("ladder", ["r0", "s0"])],
)
def test_what_leaves_apart(connectivity: str, apart: list[str]) -> None:
    report, _ = cut(layer_of(lambda: Layer(MoE())), connectivity=connectivity)
    table = report.table
    assert sorted(table.names(report.departure.apart)) == apart
    assert bool(report.departure.tail) == bool(apart)


def test_nothing_leaves_a_layer_whose_successor_reads_it() -> None:
    report, _ = cut(layer_of(lambda: Layer(MoE())), later=False)
    assert report.departure == Departure((0,))


def test_where_the_connectivity_does_not_apply() -> None:
    report, _ = cut(layer_of(lambda: Layer(MoE())), here=False)
    assert not report.left_out
    assert report.departure.tail


def test_a_mixer_without_its_feed_forward_leaves_apart() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.RMSNorm(8), Layer(Dense()).attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.attention(self.norm(x))

    report, _ = cut(layer_of(Half))
    assert report.table.names(report.departure.apart) == ["a0"]


class Scaled(Layer):
    """A layer whose feed-forward part is multiplied, after its last wait."""

    def __init__(self, factor: float) -> None:
        super().__init__(MoE())
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x)) * self.factor


def test_tails_are_known_by_what_they_do() -> None:
    def tail(factor: float) -> StreamTail:
        departure = cut(layer_of(lambda: Scaled(factor)))[0].departure
        assert departure is not None
        return tail_of(departure.tail)

    half = tail(0.5)
    assert tail(0.5) is half
    assert tail(0.25).key != half.key


def test_the_next_layer_knows_what_came_in() -> None:
    layer = layer_of(lambda: Layer(MoE()))
    first, parts = cut(layer)
    second, _ = cut(layer, *parts, key=first.departure.tail)
    assert [term.name for term in second.table.terms][:2] == ["e", "r-1"]
    assert second.table.text(second.table.row("attention.0").left_out) == "r-1"
    assert "r-1" in second.table.names(second.table.row("moe.0").reads)


def test_weights_are_not_taken_along() -> None:
    """What stands behind the last wait and needs a matrix is finished here."""

    class Latent(MoE):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 8, bias=False)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            routed = torch.ops._c10d_functional.wait_tensor(self.routed(h))
            return self.up(routed) + self.shared(h)

    class Gated(MoE):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            routed = torch.ops._c10d_functional.wait_tensor(self.routed(h))
            return routed * 0.5 + self.shared(h)

    report, _ = cut(layer_of(lambda: Layer(Latent())))
    assert "needs a weight" in report.departure.stays["r0"]
    report, _ = cut(layer_of(lambda: Layer(Gated())))
    assert report.departure.stays == {}
    assert [flight is not None for flight in tail_of(report.departure.tail).flights].count(True) == 1


def test_a_stream_that_is_asked_for_twice_comes_in_once() -> None:
    """As where a hook in the same graph reads it; two different ones are refused."""
    layer = layer_of(lambda: Layer(MoE()))
    first, parts = cut(layer)
    key, reports = first.departure.tail, []

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        reports.append(run(module, FarSkipConfig(inner="eager")))
        return module.forward

    def compiled(twice: Callable[..., Any]) -> None:
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(twice, backend=backend, fullgraph=True)(*parts)

    compiled(lambda *given: (depart(layer(arrive(key, *given)), True, False), arrive(key, *given).mean()))
    assert [term.name for term in reports[0].table.terms][:2] == ["e", "r-1"]
    with pytest.raises(PartialModelError, match="two residual streams"):
        compiled(lambda *given: depart(layer(arrive(key, *given)) + arrive(key, *reversed(given)), True, False))


def test_vectors_of_the_layer_are_copied() -> None:
    """They may be sharded again, or changed by an optimizer, before the next layer runs."""

    class Normed(MoE):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(8)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.norm(torch.ops._c10d_functional.wait_tensor(self.routed(h))) + self.shared(h)

    layer = layer_of(lambda: Layer(Normed()))
    report, parts = cut(layer)
    assert report.departure.stays == {}
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    assert any(part.shape == (8,) for part in parts)
    assert not any(part.data_ptr() in own for part in parts)
    with torch.no_grad():
        assert tail_of(report.departure.tail)(*parts).shape == X.shape


def test_what_is_read_here_has_landed_here() -> None:
    class Read(MoE):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            routed = torch.ops._c10d_functional.wait_tensor(self.routed(h))
            self.seen = routed.mean()
            return routed + self.shared(h)

    report, _ = cut(layer_of(lambda: Layer(Read())))
    assert "reads its result" in report.departure.stays["r0"]


# The proof


def test_a_part_that_is_another_is_noticed() -> None:
    layer = layer_of(lambda: Layer(MoE()))
    reports = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        return depart(layer(x), True, True)

    def edit(module: fx.GraphModule) -> None:
        reports.append(run(module, FarSkipConfig(inner="eager")))

    module, _ = dynamo(forward, X, edit=edit)
    departure = reports[0].departure
    before = record(_with_tail(module.graph, departure))
    verify_cut(module.graph, departure, before)
    (output,) = module.graph.find_nodes(op="output")
    base, *others = output.args[0]
    output.args = ((base, *[base for _ in others]),)
    with pytest.raises(VerificationError, match="the stream is not what it was"):
        verify_cut(module.graph, departure, before)
    output.args = ((base, *others),)
    verify_cut(module.graph, departure, before)
    with module.graph.inserting_before(output):
        noise = module.graph.call_function(torch.rand_like, (base,))
    noise.meta["example_value"] = base.meta["example_value"]
    with pytest.raises(VerificationError, match="besides computing values"):
        verify_cut(module.graph, departure, before)


def test_dropout_is_drawn_here() -> None:
    class Dropped(MoE):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            routed = torch.ops._c10d_functional.wait_tensor(self.routed(h))
            return F.dropout(routed, 0.5, training=True) + self.shared(h)

    report, _ = cut(layer_of(lambda: Layer(Dropped())))
    assert "does more than compute a value" in report.departure.stays["r0"]
