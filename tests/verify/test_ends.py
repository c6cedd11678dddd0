# SPDX-License-Identifier: Apache-2.0
"""A part of a model that looks whole is told from a model by proof: how the stream begins, and how it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import farskip_compile
from farskip_compile import Outcome, explain
from farskip_compile.errors import PartialModelError
from tests.verify.nets import TOKENS, VOCABULARY, WIDTH, Net, inputs
from tests.verify.test_account import refusal_of, report_of

WHOLE = {"x": "embedding", "return": "final"}


@torch.library.custom_op("farskip_tests::handed_on", mutates_args=())
def handed_on(x: Tensor) -> Tensor:
    """An operator that nothing is known about, and no weights are given to."""
    return x.clone()


handed_on.register_fake(torch.empty_like)


class Cut(nn.Module):
    """Something between the embedding and the head of a net."""

    def __init__(self, forward: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.net, self.call = Net(2), forward
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("memory", torch.zeros(2, TOKENS, WIDTH))

    def forward(self, x: Tensor) -> object:
        return self.call(self, x)  # type: ignore[arg-type]


def hidden() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH)


def layers(net: Net, h: Tensor, first: int = 0, last: int = 2) -> Tensor:
    for number in range(first, last):
        h = net.layer(number, h)
    return h


def ended(net: Net, h: Tensor) -> Tensor:
    return net.head(net.norms[-1](h))


def attended(net: Net, h: Tensor, number: int = 0) -> Tensor:
    return net.mixers[number](net.norms[2 * number](h))


def kept(cut: Cut, h: Tensor) -> Tensor:
    cut.memory.copy_(h.detach())
    return ended(cut.net, h)


def _post_norm(net: Net, x: Tensor) -> Tensor:
    return net.norms[0](x + net.mixers[0](x) + net.experts[0](x))


def gated(cut: Cut, x: Tensor) -> Tensor:
    return x * torch.sigmoid(cut.gate(x))


FIRST: dict[str, Callable[..., object]] = {
    "half": lambda m, ids: layers(m.net, m.net.embed(ids), 0, 1),
    "and a half": lambda m, ids: (h := layers(m.net, m.net.embed(ids), 0, 1), attended(m.net, h, 1)),
    "and its next norm": lambda m, ids: (h := layers(m.net, m.net.embed(ids), 0, 1), m.net.norms[2](h)),
    "and its next projection": lambda m, ids: (h := layers(m.net, m.net.embed(ids), 0, 1), m.net.mixers[1].qkv(h)),
    "half a layer": lambda m, ids: (h := m.net.embed(ids)) + attended(m.net, h),
    "in another type": lambda m, ids: layers(m.net, m.net.embed(ids)).to(torch.bfloat16),
    "scaled and flat": lambda m, ids: (layers(m.net, m.net.embed(ids)) * 0.5 + 1.0).flatten(0, 1),
    "clamped": lambda m, ids: layers(m.net, m.net.embed(ids)).clamp(-9, 9),
    "stacked": lambda m, ids: torch.stack([h := layers(m.net, m.net.embed(ids)), h * 2]),
    "last token": lambda m, ids: layers(m.net, m.net.embed(ids))[:, -1],
    "in memory": lambda m, ids: kept(m, layers(m.net, m.net.embed(ids))),
    "and a loss": lambda m, ids: (h := layers(m.net, m.net.embed(ids)), h.pow(2).mean()),
    "handed on": lambda m, ids: torch.ops.farskip_tests.handed_on(layers(m.net, m.net.embed(ids))),
}
"""Parts that end with the stream as it is."""
LAST: dict[str, Callable[..., object]] = {
    "half": lambda m, x: ended(m.net, layers(m.net, x, 1)),
    "positions": lambda m, x: ended(m.net, layers(m.net, x + m.positions)),
    "scaled": lambda m, x: ended(m.net, layers(m.net, (x * 4.0).clone())),
    "normed": lambda m, x: ended(m.net, layers(m.net, m.net.norms[0](x))),
    "gated": lambda m, x: ended(m.net, layers(m.net, gated(m, x))),
    "sliced": lambda m, x: ended(m.net, layers(m.net, x[:, 1:])),
    "post-norm layer": lambda m, x: _post_norm(m.net, x),
}
"""Parts that begin with the stream as it is."""


@pytest.mark.parametrize("how", FIRST)
def test_a_first_part_is_refused_however_the_stream_leaves_it(how: str) -> None:
    error = refusal_of(Cut(FIRST[how]), inputs())
    assert isinstance(error, PartialModelError), error
    assert "the raw residual stream is returned" in error.reason
    assert '{"return": "final"}' in error.way_out


@pytest.mark.parametrize("how", LAST)
def test_a_last_part_is_refused_however_the_stream_enters_it(how: str) -> None:
    error = refusal_of(Cut(LAST[how]), hidden())
    assert isinstance(error, PartialModelError), error
    assert "the residual stream begins with an input of the call, 'x'" in error.reason
    assert '{"x": "embedding"}' in error.way_out


def test_the_second_half_of_a_layer_is_refused() -> None:
    class Half(Cut):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return ended(self.net, layers(self.net, x + self.net.mixers[0].out(y), 1))

    assert "'x'" in refusal_of(Half(layers), hidden(), hidden()).reason


def test_a_layer_that_returns_its_stream_and_a_loss_is_refused() -> None:
    error = refusal_of(Cut(lambda m, x: (h := m.net.layer(0, x), h.pow(2).mean())), hidden())
    assert "begins and ends with the raw residual stream" in error.reason


@pytest.mark.parametrize("how", ["half", "and a loss"])
def test_an_end_that_was_declared_is_one(how: str) -> None:
    assert report_of(Cut(FIRST[how]), inputs(), kinds={"return": "final"}).outcome is Outcome.REWIRED


@pytest.mark.parametrize("how", ["half", "positions", "normed"])
def test_an_input_that_was_declared_an_embedding_is_one(how: str) -> None:
    assert report_of(Cut(LAST[how]), hidden(), kinds={"x": "embedding"}).outcome is Outcome.REWIRED


def test_layers_alone_are_a_model_if_both_ends_were_declared() -> None:
    cut = Cut(lambda m, x: layers(m.net, x))
    assert all(f'"{name}": "{kind}"' in refusal_of(cut, hidden()).way_out for name, kind in WHOLE.items())
    assert report_of(cut, hidden(), kinds=WHOLE).outcome is Outcome.REWIRED
    assert not explain(cut, hidden(), kinds=WHOLE).refusal


class Called(Net):
    """Takes token ids or what they are embedded as, as models of transformers do."""

    def forward(self, ids: Tensor | None = None, **kwargs: Tensor) -> Tensor:
        h = self.embed(ids) if ids is not None else kwargs["inputs_embeds"]
        return ended(self, layers(self, h, 0, len(self.mixers)))


def test_one_declaration_holds_for_both_ways_to_call_a_model() -> None:
    torch.compiler.reset()
    model = Called()
    compiled = torch.compile(
        model, backend="farskip", options={"inner": "eager", "kinds": {"inputs_embeds": "embedding"}}
    )
    with torch.no_grad():
        assert torch.equal(compiled(inputs()), compiled(inputs_embeds=model.embed(inputs())))
    assert {report.outcome for report in farskip_compile.reports().compiles} == {Outcome.REWIRED}


class Begun(Net):
    """A stream of more than token ids."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.patches = how, nn.Linear(5, WIDTH)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        if self.how == "projection":
            h = self.patches(features)
        elif self.how == "one-hot":
            h = nn.functional.one_hot(ids, VOCABULARY).float() @ self.embed.weight
        elif self.how == "images among tokens":
            h = self.embed(ids).masked_scatter((ids == 3).unsqueeze(-1), features)
        elif self.how == "images before tokens":
            h = torch.cat([features, self.embed(ids)], 1)
        elif self.how == "masked":
            h = self.embed(ids) * features[..., :1]
        else:
            h = self.embed.weight.expand(2, -1, -1)[:, :TOKENS] + self.norms[0].weight
        return ended(self, layers(self, h, 0, 3))


@pytest.mark.parametrize(
    "how", ["projection", "one-hot", "images among tokens", "images before tokens", "masked", "learned queries"]
)
def test_what_weights_make_begins_a_stream(how: str) -> None:
    width = WIDTH if how.startswith("images") else 5
    assert report_of(Begun(how), inputs(), torch.randn(2, TOKENS, width)).outcome is Outcome.REWIRED


class Ended(Net):
    """A stream whose end is normed in another way."""

    def __init__(self, end: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end

    def forward(self, ids: Tensor) -> Tensor:
        return self.end(self, layers(self, self.embed(ids), 0, 3))


ENDS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "head alone": lambda net, h: net.head(h),
    "norm alone": lambda net, h: net.norms[-1](h),
    "written out": lambda net, h: h * (h.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "layer norm written out": lambda net, h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True),
    "unit length": lambda net, h: nn.functional.normalize(h, dim=-1),
    "mean of tokens": lambda net, h: h.mean(1),
    "last token": lambda net, h: net.head(h[:, -1]),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_end_that_is_normed_is_one(how: str) -> None:
    assert report_of(Ended(ENDS[how])).outcome is Outcome.REWIRED


def test_a_refused_model_does_not_end_in_parts_that_look_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `suppress_errors`, Dynamo compiles what a refused model calls, part by part."""
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", True)
    torch.compiler.reset()
    farskip_compile.reports().clear()

    class Block(nn.Module):
        def __init__(self, net: Net, number: int) -> None:
            super().__init__()
            self.net, self.number = net, number

        def forward(self, h: Tensor) -> Tensor:
            return self.net.norms[0](self.net.layer(self.number, h))

    class Refused(Net):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids)
            for block in blocks:
                h = block(h)
            return self.head(h)

    net = Refused()
    blocks = [Block(net, number) for number in range(3)]
    expected = net(inputs())
    assert torch.equal(torch.compile(net, backend="farskip", options={"inner": "eager"})(inputs()), expected)
    assert Outcome.REWIRED not in {report.outcome for report in farskip_compile.reports().compiles}
