# SPDX-License-Identifier: Apache-2.0
"""A model is rewired as a whole, or refused: whatever form one of its layers has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import CompileReport, FarSkipError, Outcome
from farskip_compile.errors import NotASumError, PartialModelError, UnsupportedPatternError
from farskip_compile.tools.explain import explain
from tests.verify import nets
from tests.verify.nets import ADDS, MIXERS, SELECTIONS, Attention, Experts, Mixer, Net, inputs


def report_of(model: nn.Module, *args: torch.Tensor, **options: object) -> CompileReport:
    """What the backend says of one call."""
    torch.compiler.reset()
    found: list[CompileReport] = []
    options = {"inner": "eager", "on_report": found.append, **options}
    torch.compile(model, backend="farskip", fullgraph=True, options=options)(*(args or (inputs(),)))
    return found[-1]


def refusal_of(model: nn.Module, *args: torch.Tensor, **options: object) -> FarSkipError:
    with pytest.raises(FarSkipError) as caught:
        report_of(model, *args, **options)
    return caught.value


def test_the_plain_net_is_rewired() -> None:
    report = report_of(Net())
    assert report.terms == ("e", "a0", "r0", "a1", "r1", "a2", "r2")
    assert report.outcome is Outcome.REWIRED
    (head,) = report.beside
    assert "behind the stack: 1 products with weights, works on each token by itself" in head


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("how", ADDS)
def test_a_layer_that_adds_in_another_way_is_refused_at_its_add(how: str, layer: int) -> None:
    error = refusal_of(Net(add={layer: ADDS[how]}))
    assert isinstance(error, UnsupportedPatternError | NotASumError)
    source = "sum" if how == "stack" else "add" if how == "alpha" else how
    assert source in error.reason or isinstance(error, NotASumError)
    assert "nets.py" in str(error.where), error


class OneMore(Net):
    """Behind its layers a dense network, added over a dimension of its own."""

    def __init__(self) -> None:
        super().__init__(2)
        self.more = nn.Linear(nets.WIDTH, nets.WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.layer(1, self.layer(0, self.embed(ids)))
        return self.head(ADDS["stack"](h, self.more(self.norms[-1](h))))


def test_a_dense_network_that_is_added_in_another_shape_is_a_layer() -> None:
    assert "'sum' combines a value and what is computed from it with weights" in refusal_of(OneMore()).reason


@pytest.mark.parametrize("how", MIXERS)
def test_a_mixer_that_nobody_knows_is_no_dense_block(how: str) -> None:
    error = refusal_of(Net(mixers={1: Mixer(MIXERS[how])}))
    assert isinstance(error, UnsupportedPatternError)
    assert "was taken for dense" in error.reason
    assert "declare_op" in error.way_out
    assert f"nets.py:{MIXERS[how].__code__.co_firstlineno}"[:8] in str(error.where)


def test_a_block_that_is_scaled_by_how_many_entries_are_chosen_is_not_dense() -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        error = refusal_of(Net(mixers={1: Mixer(nets.count)}))
    assert isinstance(error, UnsupportedPatternError)
    assert "a decision is made about whole rows of it" in error.reason


@pytest.mark.parametrize("how", SELECTIONS)
def test_experts_chosen_by_no_selection_that_is_known_are_no_dense_block(how: str) -> None:
    error = refusal_of(Net(experts={1: Experts(SELECTIONS[how])}))
    assert "m1 was taken for dense" in error.reason


def test_top_p_is_a_selection() -> None:
    assert "r1" in report_of(Net(experts={1: Experts(nets.top_p)})).terms


def test_experts_that_choose_their_tokens_are_routed() -> None:
    assert "r1" in report_of(Net(experts={1: nets.ExpertsChoose()})).terms


@pytest.mark.parametrize("how", nets.CHANGES)
def test_tokens_that_were_picked_may_not_be_mixed(how: str) -> None:
    error = refusal_of(Net(experts={1: nets.ExpertsChoose(nets.CHANGES[how])}))
    assert "mixes rows in it" in error.reason or "nothing is known of" in error.reason or "mixes tokens" in error.reason
    assert "nets.py" in str(error.where)


def test_soft_experts_are_no_attention() -> None:
    error = refusal_of(Net(experts={1: nets.SoftExperts()}))
    assert "'softmax' mixes its rows, and is not a known mixer" in error.reason


@pytest.mark.parametrize("where", [0, 2])
def test_a_layer_inside_of_cond_is_refused(where: int) -> None:
    with torch.no_grad():
        error = refusal_of(nets.NetWithCond(where))
    assert "cond" in error.reason


def test_what_is_refused_is_compiled_unchanged_under_none_and_the_report_says_why() -> None:
    model = Net(mixers={1: Mixer(nets.fourier)})
    report = report_of(model, connectivity="none")
    assert report.outcome is Outcome.FRAGMENT
    assert "m0 was taken for dense" in report.reason
    compiled = torch.compile(model, backend="farskip", options={"inner": "eager", "connectivity": "none"})
    assert torch.equal(compiled(inputs()), model(inputs()))


def test_a_module_may_be_declared_a_mixer() -> None:
    model = Net(mixers={1: Mixer(nets.token_mlp)}).double()
    report = report_of(model, kinds={"mixers.1": "mixer"})
    assert report.terms == ("e", "a0", "r0", "a1", "r1", "a2", "r2")
    assert report.left_out["mixer.1"] == ("r0",)
    assert report.config["kinds"] == {"mixers.1": "mixer"}


def test_an_operator_of_torch_may_be_declared_a_mixer() -> None:
    report = report_of(Net(mixers={1: Mixer(nets.fourier)}), kinds={"fft_fft": "mixer"})
    assert report.left_out["mixer.1"] == ("r0",)


def test_explain_shows_what_stands_beside_and_what_is_refused() -> None:
    found = explain(Net(mixers={1: Mixer(nets.pool)}), inputs())
    assert found.refusal is not None
    assert "avg_pool1d" in found.refusal.reason
    assert found.report is not None, "the table as written"


# Parts of a model


@pytest.mark.parametrize("part", ["attention", "experts", "layer", "half"])
def test_a_part_of_a_layer_is_refused(part: str) -> None:
    net = Net()
    x = torch.randn(2, 6, nets.WIDTH)
    parts = {
        "attention": lambda: report_of(WrittenOut(), x),
        "experts": lambda: report_of(net.experts[0], x),
        "layer": lambda: report_of(Layer(net), x),
        "half": lambda: report_of(HalfLayer(), x),
    }
    with pytest.raises((PartialModelError, UnsupportedPatternError)):
        parts[part]()


@pytest.mark.parametrize("part", ["head", "embedding", "loss", "sampler"])
def test_what_holds_no_layer_is_compiled(part: str) -> None:
    net = Net()
    x, logits = torch.randn(2, 6, nets.WIDTH), torch.randn(2, 6, nets.VOCABULARY)
    reports = {
        "head": lambda: report_of(nn.Sequential(net.norms[-1], net.head), x),
        "embedding": lambda: report_of(net.embed, inputs()),
        "loss": lambda: report_of(Loss(), logits, inputs()),
        "sampler": lambda: report_of(Sampler(), logits),
    }
    assert reports[part]().outcome is Outcome.NO_STACK


class WrittenOut(nn.Module):
    """Attention without a fused operator, and without its residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inner.qkv(x).chunk(3, -1)
        return self.inner.out((q @ k.transpose(1, 2)).softmax(-1) @ v)


class Layer(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.layer(0, x)


class HalfLayer(nn.Module):
    """A residual add of attention that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = WrittenOut()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x)


class Loss(nn.Module):
    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Sampler(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].softmax(-1).topk(3, -1).indices


def test_a_layer_under_none_is_compiled_and_called_a_part() -> None:
    layer = Layer(Net())
    report = report_of(layer, torch.randn(2, 6, nets.WIDTH), connectivity="none")
    assert report.outcome is Outcome.FRAGMENT
    assert "not a whole residual stack" in report.summary()
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.FRAGMENT


# Decisions and memory that come with the call


class Hashed(Net):
    """The experts of layer 1 are chosen by a hash of the token id."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        for number in range(3):
            h = self.hashed(h, ids) if number == 1 else self.layer(number, h)
        return self.head(self.norms[-1](h))

    def hashed(self, h: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        h = h + self.mixers[1](self.norms[2](h))
        experts, x, chosen = self.experts[1], self.norms[3](h), ids % nets.EXPERTS
        if self.how == "weights":
            return h + torch.einsum("bsd,bsdf,bsfe->bse", x, experts.up[chosen], experts.down[chosen])
        y = torch.einsum("bsef,efd->bsed", torch.einsum("bsd,edf->bsef", x, experts.up), experts.down)
        return h + (y * nn.functional.one_hot(chosen, nets.EXPERTS).to(y.dtype).unsqueeze(-1)).sum(2)


@pytest.mark.parametrize("how", ["weights", "masks"])
def test_experts_chosen_by_a_hash_of_the_token_are_no_dense_block(how: str) -> None:
    assert "a decision is made about whole rows of it" in refusal_of(Hashed(how)).reason


class WithState(Net):
    """The dense block of layer 1 keeps a state between calls, which is an input of the call."""

    def forward(self, ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        for number in range(3):
            if number == 1:
                h = h + self.mixers[1](self.norms[2](h))
                x = self.experts[1].router(self.norms[3](h))
                h = h + (x + state) @ self.experts[1].router.weight
                state.copy_(x.detach())
            else:
                h = self.layer(number, h)
        return self.head(self.norms[-1](h))


def test_a_dense_block_that_keeps_a_state_is_refused_also_when_it_decodes_one_token() -> None:
    with torch.no_grad():
        error = refusal_of(WithState(), inputs()[:1, :1], torch.zeros(1, 1, nets.EXPERTS))
    assert "reads or writes a cache in it" in error.reason


@torch.library.custom_op("farskip_tests::add_and_norm", mutates_args=())
def add_and_norm(h: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = h + y
    return torch.nn.functional.layer_norm(total, total.shape[-1:], weight), total


@add_and_norm.register_fake
def _(h: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(h), torch.empty_like(h)


@torch.library.custom_op("farskip_tests::add_and_norm_", mutates_args=("h", "y"))
def add_and_norm_(h: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
    h += y
    y.copy_(torch.nn.functional.layer_norm(h, h.shape[-1:], weight))


class Fused(Net):
    """Some layers add and normalise in one operator, which nobody declared, with a weight of one dimension."""

    def __init__(self, fused: tuple[int, ...], in_place: bool) -> None:
        super().__init__()
        self.fused, self.in_place = fused, in_place

    def layer(self, number: int, h: torch.Tensor) -> torch.Tensor:
        if number not in self.fused:
            return super().layer(number, h)
        y, norm = self.mixers[number](self.norms[2 * number](h)), self.norms[2 * number + 1]
        if self.in_place:
            h, f = h.clone(), y.clone()
            add_and_norm_(h, f, norm.weight)
        else:
            f, h = add_and_norm(h, y, norm.weight)
        return h + self.experts[number](f)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fused", [(0,), (0, 1), (1,), (2,)])
def test_layers_that_a_fused_operator_hides_are_refused(fused: tuple[int, ...], in_place: bool) -> None:
    """Class: a sum inside an operator; the layers on its other side would stay as they are."""
    refusal_of(Fused(fused, in_place))


def test_a_sub_block_that_read_the_embedding_before_it_was_written_to_is_no_embedding() -> None:
    """Class: a term that nothing of the stream reaches, since the stream begins behind what it reads."""

    class Written(Net):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            h = self.embed(ids)
            y = self.mixers[0](self.norms[0](h))
            h = h.clone()
            h[..., 2] = 0.0
            h = h + y
            h = h + self.experts[0](self.norms[1](h))
            return self.head(self.norms[-1](self.layer(1, h)))

    assert "is computed from it, with weights" in refusal_of(Written()).reason
