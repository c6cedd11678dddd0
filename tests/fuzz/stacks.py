# SPDX-License-Identifier: Apache-2.0
"""A decoder with a second stack in front of it, beside it or behind it, as long as the first or not.

In:    a `TwoStacks`: the layers of both, how many rows the second one has, and how they meet.
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Demands under `full`: the model is refused; or each stack that has routed experts is rewired, to the bits of the form by
hand. A stack without experts may be rewired or stay as it is written. Under `none` the function is the model's.

The form by hand shares `meet`, in which the stacks meet, with the model; the loop over the layers is its own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from farskip_compile import FarSkipError
from tests.fuzz.captured import NotCaptured, capture
from tests.fuzz.demands import Broken, demand
from tests.fuzz.streams.blocks import FEED_FORWARDS, WIDTH, Attention
from tests.fuzz.streams.source import VOCABULARY, token_ids

Walk = Callable[..., Tensor]


class Stack(nn.Module):
    """Layers and a last norm; `cross`: each layer attends to rows of another stack first."""

    def __init__(self, feed_forwards: tuple[str, ...], cross: bool = False) -> None:
        super().__init__()
        count = len(feed_forwards)
        self.attention = nn.ModuleList([Attention() for _ in range(count)])
        self.feed_forward = nn.ModuleList([FEED_FORWARDS[name]() for name in feed_forwards])
        self.before = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(count)])
        self.between = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(count)])
        self.query = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(count if cross else 0)])
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(count if cross else 0)])
        self.last = nn.LayerNorm(WIDTH)

    def attend(self, layer: int, h: Tensor, other: Tensor | None) -> Tensor:
        """What attention adds; with `other`, also its rows are attended to."""
        added = self.attention[layer](h)
        if len(self.query) == 0 or other is None:
            return added
        return added + self.out[layer](F.scaled_dot_product_attention(self.query[layer](h), other, other))

    def forward(self, x: Tensor, other: Tensor | None = None, deep: Tensor | None = None) -> Tensor:
        """As written; `deep` is added to the first rows behind the first layer."""
        for layer in range(len(self.attention)):
            x = x + self.attend(layer, self.before[layer](x), other)
            x = x + self.feed_forward[layer](self.between[layer](x))
            if layer == 0 and deep is not None:
                x = x + F.pad(deep, (0, 0, 0, x.shape[1] - deep.shape[1]))
        return self.last(x)


def by_hand(stack: Stack, x: Tensor, other: Tensor | None = None, deep: Tensor | None = None) -> Tensor:
    """The same stack under `full`."""
    early = x
    for layer in range(len(stack.attention)):
        a = stack.attend(layer, stack.before[layer](early), other)
        added, shared = stack.feed_forward[layer].parts(stack.between[layer](x))
        early = x + a if shared is None else x + a + shared
        x = x + a + added
        if layer == 0 and deep is not None:
            more = F.pad(deep, (0, 0, 0, x.shape[1] - deep.shape[1]))
            early, x = early + more, x + more
    return stack.last(x)


@dataclass(frozen=True)
class TwoStacks:
    """The main stack, another one, and how they meet."""

    main: tuple[str, ...]
    other: tuple[str, ...]
    rows: int
    """Of the other stack."""
    meet: str
    seed: int = 0
    dynamo: bool = False


class Model(nn.Module):
    """Both stacks; `pixels` [batch, rows, width] is what the second one begins with."""

    def __init__(self, example: TwoStacks) -> None:
        super().__init__()
        self.meet = example.meet
        self.embed, self.patch = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.main = Stack(example.main, cross=example.meet == "cross attention")
        self.other = Stack(example.other, cross=example.meet == "decoder behind")
        self.project, self.join = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        return MEETINGS[self.meet](self, ids, pixels, self.main, self.other)


def _prefix(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    rows = model.project(other(model.patch(pixels)))
    return (model.head(main(torch.cat([rows, model.embed(ids)], 1))),)


def _embedded_ids(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    rows = other(model.embed(ids[:, : pixels.shape[1]]))
    return (model.head(main(torch.cat([rows, model.embed(ids)], 1))),)


def _in_place_of_rows(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    rows = model.project(other(model.patch(pixels)))
    x = torch.cat([rows, model.embed(ids)[:, rows.shape[1] :]], 1) if rows.shape[1] < ids.shape[1] else rows
    return (model.head(main(x)),)


def _pooled(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(main(model.embed(ids) + other(model.patch(pixels)).mean(1, keepdim=True))),)


def _cross(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(main(model.embed(ids), other=other(model.patch(pixels)))),)


def _deepstack(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    rows = model.project(other(model.patch(pixels)))[:, : ids.shape[1]]
    return (model.head(main(model.embed(ids), deep=rows)),)


def _beside(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return model.head(main(model.embed(ids))), model.head(other(model.patch(pixels)))


def _beside_first(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    rows = other(model.patch(pixels))
    return model.head(main(model.embed(ids))), model.head(rows)


def _summed(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(main(model.embed(ids)) + other(model.patch(pixels)).mean(1, keepdim=True)),)


def _next_token(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    h = main(model.embed(ids))
    both = model.join(torch.cat([h[:, :-1], model.embed(ids[:, 1:])], -1))
    return model.head(h), model.head(other(both))


def _next_token_alone(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (_next_token(model, ids, pixels, main, other)[1],)


def _decoder_behind(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(other(model.patch(pixels), other=main(model.embed(ids)))),)


def _chained(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(other(model.project(main(model.embed(ids)))[:, : pixels.shape[1]])),)


def _chained_last(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    return (model.head(other(main(model.embed(ids))[:, -1:])),)


def _ranked(model: Model, ids: Tensor, pixels: Tensor, main: Walk, other: Walk) -> tuple[Tensor, ...]:
    h = main(model.embed(ids))
    return model.head(h), model.head(other(torch.cat([model.patch(pixels), h], 1)))


MEETINGS = {
    "prefix": _prefix,
    "prefix of the same embedding": _embedded_ids,
    "in place of rows": _in_place_of_rows,
    "pooled": _pooled,
    "cross attention": _cross,
    "deepstack": _deepstack,
    "beside": _beside,
    "beside, first": _beside_first,
    "summed at the end": _summed,
    "next token": _next_token,
    "next token alone": _next_token_alone,
    "decoder behind": _decoder_behind,
    "chained": _chained,
    "chained, last row": _chained_last,
    "behind, with more rows": _ranked,
}


@st.composite
def two_stacks(draw: st.DrawFn) -> TwoStacks:
    """Two layers with experts, and one or two with or without."""
    main = tuple(draw(st.sampled_from(["routed", "shared"])) for _ in range(2))
    other = draw(
        st.sampled_from([("dense",), ("routed",), ("shared", "routed"), ("dense", "dense"), ("dense", "routed")])
    )
    rows = draw(st.sampled_from([6, 3, 4, 9]))
    meet = draw(st.sampled_from(sorted(MEETINGS)))
    return TwoStacks(main, other, rows, meet, draw(st.integers(0, 9)), draw(st.integers(0, 3)) == 0)


def check_two_stacks(example: TwoStacks) -> Counter[str]:
    """Check one model.

    Raises:
        Broken: a demand is not met.
    """
    torch.manual_seed(example.seed)
    model = Model(example).double()
    arguments = (token_ids(), torch.randn(2, example.rows, WIDTH, dtype=torch.float64))
    try:
        none, full = capture(model, arguments, [("none", None), ("full", None)], dynamo=example.dynamo)
    except NotCaptured:
        return Counter({"not captured": 1})
    with torch.no_grad():
        plain = model(*arguments)
        demand(not isinstance(none, FarSkipError), f"`none` is refused: {none}")
        demand(_same(none(*arguments), plain), "`none` changed the function")
        if isinstance(full, FarSkipError):
            return Counter({f"refused {type(full).__name__}": 1})
        found = full(*arguments)
        like = [
            both for both in itertools.product((False, True), repeat=2) if _same(found, _form(model, arguments, *both))
        ]
    torch.compiler.reset()
    said = {True: "rewired", False: "as written"}
    if not like:
        raise Broken("no form by hand of the two stacks")
    routed = any(name != "dense" for name in example.other)
    main, other = like[-1]
    demand(
        main and (other or not routed),
        f"the main stack is {said[main]}, the other one, with {'' if routed else 'no '}experts, is {said[other]}",
    )
    return Counter({"accepted": 1, "full: rewired": 1, f"the other stack: {said[other]}": 1})


def _form(model: Model, arguments: tuple[Tensor, Tensor], main: bool, other: bool) -> tuple[Tensor, ...]:
    """The function with each stack under `full` or as written."""

    def walk(stack: Stack, farskip: bool) -> Walk:
        return (lambda x, **more: by_hand(stack, x, **more)) if farskip else stack

    return MEETINGS[model.meet](model, *arguments, walk(model.main, main), walk(model.other, other))


def _same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))
