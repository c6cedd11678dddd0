# SPDX-License-Identifier: Apache-2.0
"""How a router decides by hand, and how tokens are picked for what it decided: the idioms of public code.

The class of fault: a decision or a pick in a form that detection does not know is refused, or taken for dense work.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.handwritten.decoder import EXPERTS, HIDDEN, WIDTH, Decoder, Experts, assert_is_the_form_by_hand

Pick = Callable[[Tensor], tuple[Tensor, Tensor]]


def _top_one(pick: Pick) -> type[Experts]:
    """Switch: one expert for each token, whose probability scales what it gives."""

    class TopOne(Experts):
        has_shared = False

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            gate, chosen = pick(self.router(flat).softmax(-1))
            y = flat.new_zeros(flat.shape)
            for number, expert in enumerate(self.experts):
                tokens = torch.eq(chosen, number).nonzero(as_tuple=True)[0]
                y[tokens, :] = expert(flat[tokens, :])
            return (y * gate.view(-1, 1)).view_as(x)

    return TopOne


def _max_by_members(p: Tensor) -> tuple[Tensor, Tensor]:
    best = p.max(dim=-1)
    return best.values, best.indices


def _last_of_running(p: Tensor) -> tuple[Tensor, Tensor]:
    best, where = torch.cummax(p, -1)
    return best[:, -1], where[:, -1]


def _least(p: Tensor) -> tuple[Tensor, Tensor]:
    least, where = torch.min(-p, -1)
    return -least, where


PICKS: list[list[Pick]] = [
    [lambda p: torch.max(p, -1), _max_by_members, _least],
    [lambda p: torch.kthvalue(p, EXPERTS), lambda p: torch.median(p, -1), _last_of_running],
]


@pytest.mark.parametrize("picks", PICKS)
def test_one_expert_for_each_token_by_the_index_of_an_extreme(picks: list[Pick]) -> None:
    report = assert_is_the_form_by_hand(Decoder([_top_one(pick) for pick in picks]))
    assert report.terms == ("e", "a0", "r0", "a1", "r1", "a2", "r2")


class SoftmaxByHand(nn.Module):
    """A dense block whose activation is a softmax over features, written out: it subtracts a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        largest, _ = h.max(-1, keepdim=True)
        e = (h - largest).exp()
        return self.down(e / e.sum(-1, keepdim=True))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self(x)


def test_the_values_of_a_maximum_decide_nothing() -> None:
    experts = _top_one(_max_by_members)
    report = assert_is_the_form_by_hand(Decoder([experts, SoftmaxByHand, experts]))
    assert report.terms == ("e", "a0", "r0", "a1", "m1", "a2", "r2")


class Copies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class WithoutComputation(Experts):
    """MoE++: experts that copy, that are constant and that are null beside one that computes, all on all tokens."""

    has_shared = False

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([self.experts[0], Copies(), Constant(), Nothing()])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        gates = [(weights * (chosen == number)).sum(-1, keepdim=True) for number in range(EXPERTS)]
        found = [gate * expert(x) for gate, expert in zip(gates, self.experts, strict=True)]
        return found[0] + found[1] + found[2] + found[3]


class Identities(Experts):
    """LongCat: tokens whose choice is no expert's index are added as they are, scaled, beside shared experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS + 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            y[tokens] += weights[tokens, place, None] * expert(flat[tokens])
        y = y + flat * weights.masked_fill(chosen < EXPERTS, 0.0).sum(-1, keepdim=True)
        return y.view_as(x) + self.shared(x)


def test_experts_without_computation_are_routed() -> None:
    """What they give is neither dense nor shared: the next attention does not read it, as it reads no expert's."""
    report = assert_is_the_form_by_hand(Decoder([WithoutComputation, Identities], layers=2))
    assert [term[:2] for term in report.terms if term[0] == "s"] == ["s1"]
    assert {term[:2] for term in report.left_out["attention.1"]} == {"r0"}


class Gathered(Experts):
    """torchtune: rows sorted by expert are gathered and scattered by an index that is repeated for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 4)

    def compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        found = []
        for number, part in enumerate(torch.split(rows, counts.tolist(), dim=0)):
            found.append(torch.matmul(F.silu(torch.matmul(part, self.gate_up[number])), self.down[number]))
        return torch.cat(found, dim=0)

    def repeated(self, tokens: Tensor, width: int) -> Tensor:
        return tokens.reshape(-1, 1).expand(-1, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        weights, chosen = torch.topk(torch.sigmoid(self.router(x.reshape(-1, width))), k=2, dim=1)
        counts = torch.histc(chosen.view(-1).float(), bins=EXPERTS, min=0, max=EXPERTS).long()
        order = torch.argsort(chosen.view(-1), stable=True)
        tokens = self.repeated(order // 2, width)
        rows = torch.gather(x.view(-1, width), dim=0, index=tokens)
        rows = self.compute(rows, counts) * weights.view(-1)[order].unsqueeze(-1)
        out = torch.zeros_like(x) if self.shared is None else self.shared(x)
        out = torch.scatter_add(input=out.reshape(-1, width), dim=0, index=tokens, src=rows)
        return out.reshape(batch, length, width)


class GatheredByARepeat(Gathered):
    """The index is copied for each feature, and there are no shared experts."""

    has_shared = False

    def repeated(self, tokens: Tensor, width: int) -> Tensor:
        return tokens.reshape(-1, 1).repeat(1, width)


class Modules(GatheredByARepeat):
    """A module for each expert, and the rows by `take_along_dim`."""

    def compute(self, rows: Tensor, counts: Tensor) -> Tensor:
        parts = rows.split(counts.tolist())
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])


def test_rows_that_are_gathered_by_an_index_for_each_feature() -> None:
    """The base of the sum is given by keyword: it is the shared experts' term, whoever names it."""
    report = assert_is_the_form_by_hand(Decoder([Gathered, Modules], layers=2))
    assert [term[0] for term in report.terms] == list("easrar")
    assert report.left_out["attention.1"] == ("r0",)


class Sliced(Experts):
    """Aria: a buffer is filled expert by expert, and its halves are gate and value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * HIDDEN) / 4)
        self.second = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 4)

    def products(self, rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        out = torch.zeros(rows.shape[0], weight.shape[-1], dtype=rows.dtype)
        ends = torch.cat((torch.zeros(1, dtype=torch.long), torch.cumsum(counts, dim=0)))
        for number in range(weight.shape[0]):
            start, end = ends[number], ends[number + 1]
            out[start:end] = torch.matmul(rows[start:end], weight[number])
        return out

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.view(-1, WIDTH)
        weights, chosen = torch.topk(self.router(flat), k=2, dim=1)
        counts = torch.histc(chosen.flatten().float(), bins=EXPERTS, min=0, max=EXPERTS - 1).long()
        order = torch.argsort(chosen.view(-1))
        value, gate = torch.chunk(self.products(flat.index_select(0, order // 2), self.first, counts), 2, dim=-1)
        found = self.products(F.silu(value) * gate, self.second, counts)
        rows = torch.zeros_like(found).index_copy_(0, order, found).view(-1, 2, WIDTH)
        return (rows * weights.softmax(-1).unsqueeze(-1)).sum(dim=1).view_as(x) + self.shared(x)


def test_halves_of_a_buffer_that_is_filled_expert_by_expert() -> None:
    """What a tuple of views shows is read after the writes, too."""
    report = assert_is_the_form_by_hand(Decoder([Sliced, GatheredByARepeat], layers=2))
    assert report.terms == ("e", "a0", "r0", "s0", "a1", "r1")
