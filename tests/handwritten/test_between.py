# SPDX-License-Identifier: Apache-2.0
"""Steps between two layers: rows of the stream that are written to, picked, repeated, moved or padded.

The class of fault: a step that is linear in the stream, and reads it where neither the rewriter nor its proof looks
(the value of a write, a row that goes on), leaves layers in their old wiring, or feeds them the old stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farskip_compile import CompileReport, FarSkipError
from farskip_compile.errors import VerificationError
from tests.handwritten.decoder import MLP, TOKENS, VOCABULARY, WIDTH, Decoder, token_ids
from tests.handwritten.test_adds import TwoBranches

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The stream after a step, from the stream, a mask of tokens, and features `[batch, tokens, width]` from elsewhere."""


class Stepping(Decoder):
    """A decoder with a step after its layer `at`."""

    def __init__(self, step: Step, at: int) -> None:
        super().__init__(TwoBranches)
        self.step, self.at = step, at
        self.features = nn.Embedding(VOCABULARY, WIDTH)

    def between_layers(self, h: Tensor, ids: Tensor) -> Tensor:
        return self.step(h, ids % 3 == 0, self.features(ids))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for number, attention in enumerate(self.attentions):
            h = h + attention(self.before[number](h))
            h = h + self.experts[number](self.between[number](h))
            if number == self.at:
                h = self.between_layers(h, ids)
        return self.head(self.last(h))


def farskip_form(model: Stepping, ids: Tensor) -> Tensor:
    """FarSkip by hand: the step is linear, so both streams take it."""
    whole = early = model.embed(ids)
    for number, attention in enumerate(model.attentions):
        a = attention(model.before[number](early))
        x, s = model.experts[number].parts(model.between[number](whole))
        early, whole = whole + a + s, whole + a + x
        if number == model.at:
            early, whole = model.between_layers(early, ids), model.between_layers(whole, ids)
    return model.head(model.last(whole))


def written(write: Callable[[Tensor, Tensor, Tensor], object]) -> Step:
    """A step that writes into a copy of the stream."""

    def step(h: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        h = h.clone()
        write(h, mask, features)
        return h

    return step


def put_sum(h: Tensor, mask: Tensor, features: Tensor) -> None:
    h[mask] = h[mask] + features[mask]


def add_to_rows(h: Tensor, mask: Tensor, features: Tensor) -> None:
    h[mask] += features[mask]


def subtract_from_rows(h: Tensor, mask: Tensor, features: Tensor) -> None:
    h[mask] -= features[mask]


def deepstack(h: Tensor, mask: Tensor, features: Tensor) -> None:
    local = h[mask, :].clone() + features[mask, :]
    h[mask, :] = local


def add_at_positions(h: Tensor, mask: Tensor, features: Tensor) -> None:
    h[:, torch.tensor([0, 2, 2])] += features[:, :3]


def add_to_a_view(h: Tensor, mask: Tensor, features: Tensor) -> None:
    h.view(-1, WIDTH)[mask.flatten()] += features.flatten(0, 1)[mask.flatten()]


def pad_again(h: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    rows = h.new_zeros(2 * TOKENS, WIDTH)
    rows[torch.arange(2 * TOKENS - 1, -1, -1)] = h.reshape(-1, WIDTH)
    return rows.view(2, TOKENS, WIDTH)


STEPS: dict[str, Step] = {
    "put of a sum": written(put_sum),
    "+= at a mask": written(add_to_rows),
    "-= at a mask": written(subtract_from_rows),
    "deepstack": written(deepstack),
    "+= at positions": written(add_at_positions),
    "+= at a mask of a view": written(add_to_a_view),
    "every second token": lambda h, mask, features: h[:, ::2],
    "last token": lambda h, mask, features: h[:, -1].unsqueeze(1),
    "one token of each sequence": lambda h, mask, features: h[torch.arange(2), torch.tensor([3, 2])].unsqueeze(1),
    "gather": lambda h, mask, features: h.gather(1, torch.tensor([[[0], [2]]] * 2).expand(2, 2, WIDTH)),
    "registers": lambda h, mask, features: torch.cat([features[:, :2], h], 1),
    "repeat": lambda h, mask, features: h.repeat_interleave(2, 1),
    "pad": lambda h, mask, features: F.pad(h, (0, 0, 1, 2)),
    "pad by indices": pad_again,
    "shift": lambda h, mask, features: h.roll(1, 1),
    "tokens chosen by their features": lambda h, mask, features: h.index_select(1, features.sum((0, 2)).topk(3)[1]),
    "twice": lambda h, mask, features: torch.cat([features[:, :2], h], 1)[:, 1:].flip(1),
}


def compiled(model: Stepping) -> tuple[Tensor, CompileReport]:
    torch.compiler.reset()
    found: list[CompileReport] = []
    full = torch.compile(
        model, backend="farskip", fullgraph=True, options={"inner": "eager", "on_report": found.append}
    )
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        return full(token_ids()), found[-1]


@pytest.mark.parametrize("how", STEPS)
def test_the_stream_goes_on_through_the_step(how: str) -> None:
    torch.manual_seed(0)
    model = Stepping(STEPS[how], at=len(how) % 2).double()
    hand = copy.deepcopy(model)
    ours, report = compiled(model)
    expected = farskip_form(hand, token_ids())
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, model(token_ids()))
    assert report.wiring_after == "full"
    for output in (ours, expected):
        (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), hand.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert (one.grad - other.grad).abs().max() <= 1e-12 * max(1.0, float(other.grad.abs().max())), name


REFUSED: dict[str, Step] = {
    "overwritten rows": written(lambda h, mask, features: h.__setitem__(mask, features[mask])),
    "scaled rows": written(lambda h, mask, features: h.__setitem__(mask, h[mask] * 2 + features[mask])),
    "+= at a slice": written(lambda h, mask, features: h[:, :2].add_(features[:, :2])),
    "two halves in another order": lambda h, mask, features: torch.cat([h[:, 2:], h[:, :2]], 1),
    "one of several parts": lambda h, mask, features: h.split([2, 3], 1)[1],
    "means of tokens": lambda h, mask, features: h[:, :4].unflatten(1, (2, 2)).mean(2),
    "tokens chosen by the stream": lambda h, mask, features: h.index_select(1, h.norm(dim=-1).sum(0).topk(3)[1]),
    "tokens numbered by the stream": lambda h, mask, features: h.index_select(1, h[0, :3, 0].abs().long().clamp(0, 4)),
    "moved by the stream": lambda h, mask, features: h.gather(1, (h > 0).long()),
}


@pytest.mark.parametrize("how", REFUSED)
def test_any_other_step_is_refused(how: str) -> None:
    """In front of the longest sum or behind it: the rest of the layers would stay as written."""
    for at in (0, 1):
        with pytest.raises(FarSkipError) as caught:
            compiled(Stepping(REFUSED[how], at))
        assert not isinstance(caught.value, VerificationError), "it was refused, not done wrong and then seen"


def test_a_stream_that_grows_in_place_and_is_read_by_its_layout_is_refused() -> None:
    """No new value need have the layout of the old memory."""

    class InPlace(Stepping):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids).clone()
            for number, attention in enumerate(self.attentions):
                h.add_(attention(self.before[number](h)))
                h.add_(self.experts[number](self.between[number](h)))
            h.as_strided((2, WIDTH), (WIDTH, 1)).mul_(0.5)
            return self.head(self.last(h))

    with pytest.raises(FarSkipError) as caught:
        compiled(InPlace(lambda h, mask, features: h, 0))
    assert not isinstance(caught.value, VerificationError), "it was refused, not done wrong and then seen"


class LastDense(Stepping):
    """The step stands between the last attention and a dense feed-forward."""

    def __init__(self, step: Step) -> None:
        super().__init__(step, at=2)
        self.experts[2] = MLP()

    def halves(self, h: Tensor, early: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The stream in front of a feed-forward, and without the attention of its layer."""
        both = h + self.attentions[number](self.before[number](early)), h
        if number < self.at:
            return both
        mask, features = token_ids() % 3 == 0, self.features(token_ids())
        return self.step(both[0], mask, features), self.step(both[1], mask, features)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for number in range(3):
            h, _ = self.halves(h, h, number)
            h = h + self.experts[number](self.between[number](h))
        return self.head(self.last(h))

    def by_hand(self, ids: Tensor) -> Tensor:
        h = early = self.embed(ids)
        for number in range(3):
            h, read = self.halves(h, early, number)
            read = self.between[number](read)
            x, s = self.experts[number].parts(read) if number < 2 else (self.experts[number](read), None)
            h, early = h + x, h if s is None else h + s
        return self.head(self.last(h))


def test_a_feed_forward_behind_rows_that_were_chosen_after_its_attention() -> None:
    """The layer began in front of the choice, although nothing behind that mixes tokens."""
    model = LastDense(lambda h, mask, features: h[:, -1:]).double()
    ours, report = compiled(model)
    assert torch.equal(ours, model.by_hand(token_ids()))
    assert not torch.equal(ours, model(token_ids()))
    assert len(report.table.rows) == 6


def test_a_feed_forward_that_is_added_behind_a_change_that_is_no_sum_is_refused() -> None:
    class Scattered(LastDense):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids)
            for number in range(3):
                h = h + self.attentions[number](self.before[number](h))
                read = self.between[number](h)
                h = h if number < self.at else h.select_scatter(torch.ones_like(h[:, 0]), 1, 0)
                h = h + self.experts[number](read)
            return self.head(self.last(h))

    with pytest.raises(FarSkipError, match="behind the residual sum stands a layer"):
        compiled(Scattered(lambda h, mask, features: h))


WRITTEN_FIRST: dict[str, Callable[[Tensor], Tensor]] = {
    "+= at a slice": lambda h: h.__setitem__((slice(None), slice(1, 3)), h[:, 1:3].add_(0.5)) or h,
    "a view, then rows of its own": lambda h: (
        h.unbind(1)[1].mul_(0.5) is h or h.index_copy_(1, torch.tensor([2]), 2 * h[:, 2:3])
    ),
    "a sequence, then fewer rows": lambda h: h[0].mul_(0.5) is h or h.narrow(1, 1, 3),
}


@pytest.mark.parametrize("how", WRITTEN_FIRST)
def test_an_embedding_that_is_written_to_first(how: str) -> None:
    """A value or view that was made after the last write shows that it was: its readers need not."""

    class First(Stepping):
        def __init__(self) -> None:
            super().__init__(lambda h, mask, features: h, 0)
            self.plain, self.embed = self.embed, Written(self.embed)  # type: ignore[assignment]

    class Written(nn.Module):
        def __init__(self, embed: nn.Module) -> None:
            super().__init__()
            self.embed = embed

        def forward(self, ids: Tensor) -> Tensor:
            return WRITTEN_FIRST[how](self.embed(ids))

    model = First().double()
    with torch.no_grad():
        ours, report = compiled(model)
        assert torch.equal(ours, farskip_form(model, token_ids()))
    assert report.wiring_after == "full"


CHANGED_BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "data": lambda h: h.data.mul_(0.5) is None or h,
    "scattered": lambda h: h.select_scatter(torch.ones_like(h[:, 0]), 1, 0),
}


@pytest.mark.parametrize("how", CHANGED_BEHIND)
def test_an_attention_in_front_of_a_change_of_the_embedding_is_refused(how: str) -> None:
    """Weights make the term of what the stream begins with, although it reads no residual value."""

    class Early(Stepping):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids)
            read = self.before[0](h)
            h = CHANGED_BEHIND[how](h)
            for number, attention in enumerate(self.attentions):
                h = h + attention(self.before[number](h) if number else read)
                h = h + self.experts[number](self.between[number](h))
            return self.head(self.last(h))

    with torch.no_grad(), pytest.raises(FarSkipError) as caught:
        compiled(Early(lambda h, mask, features: h, 0))
    assert not isinstance(caught.value, VerificationError), "it was refused, not done wrong and then seen"


def test_a_head_with_a_skip_connection_stays_as_it_is() -> None:
    class Head(Stepping):
        def __init__(self) -> None:
            super().__init__(lambda h, mask, features: h, 0)
            self.mlp = MLP()
            self.last = Skip(self.mlp)  # type: ignore[assignment]

    class Skip(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, h: Tensor) -> Tensor:
            h = h[:, -1]
            return h + self.mlp(h)

    model = Head().double()
    ours, report = compiled(model)
    assert torch.equal(ours, farskip_form(model, token_ids()))
    assert len(report.table.rows) == 6


def test_a_sub_block_that_takes_rows_as_later_layers_do_is_refused() -> None:
    """It mixes tokens, and the row map of the stream would hide that."""

    class Shifted(TwoBranches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.roll(1, 1))

    class Early(Stepping):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids)
            for number, attention in enumerate(self.attentions):
                h = h + attention(h)
                h = h + self.experts[number](h)
                h = h.roll(1, 1) if number == 1 else h
            return self.head(self.last(h))

    model = Early(lambda h, mask, features: h, 1)
    model.experts[0] = Shifted()
    with pytest.raises(FarSkipError, match="the rows that later layers have"):
        compiled(model)
