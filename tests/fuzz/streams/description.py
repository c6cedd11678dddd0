# SPDX-License-Identifier: Apache-2.0
"""A decoder as data: its layers, and the changes of the stream between and inside them.

Contract: `Description` is plain data; `placed` gives each change its inputs, for the shape that the stream has there.
Changes stand at places: layer `k` has `4 k` (in front of it), `4 k + 1` (attention has read, and not added yet),
`4 k + 2` (in front of the feed-forward) and `4 k + 3`; `4 n` is behind the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.fuzz.streams.forms import WIDTH, Form, Inputs, make_inputs
from tests.fuzz.streams.rows import ROWS
from tests.fuzz.streams.writes import WRITES

FORMS: dict[str, Form] = {**WRITES, **{f"rows: {name}": form for name, form in ROWS.items()}}
BATCH, TOKENS = 2, 6
ADDS = {
    "+": "x = x + {}",
    "+=": "x += {}",
    "add_": "x.add_({})",
    "reversed": "x = {} + x",
    "add": "x = torch.add(x, {})",
}


@dataclass(frozen=True)
class Change:
    """One change of the stream."""

    place: int
    form: str
    seed: int = 0


@dataclass(frozen=True)
class Description:
    """A decoder."""

    feed_forwards: tuple[str, ...]
    """Layer by layer: keys of `FEED_FORWARDS`."""
    adds: tuple[str, ...]
    """Layer by layer: keys of `ADDS`."""
    changes: tuple[Change, ...]
    """In the order of their places."""
    seed: int = 0

    def at(self, place: int) -> list[tuple[int, Change]]:
        """The changes at a place, with their numbers."""
        return [(number, change) for number, change in enumerate(self.changes) if change.place == place]


@dataclass(frozen=True)
class Placed:
    """A change, and what it is given."""

    number: int
    form: Form
    inputs: Inputs


class Unfit(Exception):
    """A change can't be applied to the stream at its place."""


def placed(description: Description) -> dict[int, list[Placed]]:
    """The changes by place.

    Raises:
        Unfit: the shape of the stream does not allow one of them.
    """
    x = torch.ones(BATCH, TOKENS, WIDTH, dtype=torch.float64)
    found: dict[int, list[Placed]] = {}
    for number, change in enumerate(description.changes):
        form = FORMS[change.form]
        if x.dim() not in form.dims or x.shape[-2] < 1:
            raise Unfit
        try:
            inputs = make_inputs(form, tuple(x.shape), change.seed)
            after = form.meaning(x, **inputs)
        except (RuntimeError, IndexError) as error:
            raise Unfit from error
        if after.shape != x.shape and change.place % 2:
            raise Unfit
        in_the_last_layer = change.place == 4 * len(description.adds) - 1
        if in_the_last_layer and torch.equal(after, form.meaning(2 * x, **inputs)):
            raise Unfit  # the stream ends there: what is added to a value from elsewhere is a head, or is it a layer?
        x = after
        found.setdefault(change.place, []).append(Placed(number, form, inputs))
    return found


@st.composite
def descriptions(draw: st.DrawFn, forms: tuple[str, ...] = tuple(FORMS)) -> Description:
    """Two or three layers, one or two changes."""
    layers = draw(st.integers(2, 3))
    feed_forwards = [draw(st.sampled_from(["routed", "shared", "dense"])) for _ in range(layers)]
    if set(feed_forwards) == {"dense"}:
        feed_forwards[draw(st.integers(0, layers - 1))] = "routed"
    adds = tuple(draw(st.sampled_from(sorted(ADDS))) for _ in range(layers))
    count = draw(st.sampled_from([1, 1, 1, 2]))
    places = sorted(draw(st.integers(0, 4 * layers)) for _ in range(count))
    changes = tuple(Change(place, draw(st.sampled_from(forms)), draw(st.integers(0, 99))) for place in places)
    return Description(tuple(feed_forwards), adds, changes, draw(st.integers(0, 9)))
