# SPDX-License-Identifier: Apache-2.0
"""What a description computes, with the terms that each sub-block leaves out: the form by hand.

Contract: the stream is an expression: the embedding, terms that were added to an older stream, and changes of an older
stream. A sub-block reads the value of the expression without some terms; all that was done to the stream afterwards is
done to what it reads, too. Weights are those of the module, its forward is not called. No code of the compiler is used.

The rules are those of arXiv 2511.11505, section 3, and of 2501.06589 for `ladder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.fuzz.streams.description import Description, Placed, placed

Without = frozenset[str]


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream at one moment."""

    older: Stream | None
    """None: the embedding."""
    value: Tensor | None = None
    """The embedding, or the term that was added."""
    term: str = ""
    shared: Tensor | None = None
    """What is added of the term if its routed experts are left out."""
    change: Callable[[Tensor], Tensor] | None = None

    def read(self, without: Without = frozenset()) -> Tensor:
        """The value, with the named terms left out: `a0`, `r0` (the routed experts), `m0` (all of the feed-forward)."""
        if self.older is None:
            assert self.value is not None
            return self.value
        older = self.older.read(without)
        if self.change is not None:
            return self.change(older)
        added = self.shared if f"r{self.term[1:]}" in without and self.term[0] == "m" else self.value
        return older if added is None or self.term in without else older + added


def left_out(
    connectivity: str, layers: tuple[int, int] | None, layer: int, feed_forward: str
) -> tuple[Without, Without]:
    """What attention and feed-forward of a layer leave out; dense feed-forwards do not lag by two."""
    if connectivity == "none" or (layers is not None and not layers[0] <= layer <= layers[1]):
        return frozenset(), frozenset()
    routed, whole, attention = {f"r{layer - 1}"}, {f"m{layer - 1}"}, {f"a{layer}"}
    rules: dict[str, tuple[set[str], set[str]]] = {
        "full": (routed, attention),
        "attention": (routed, set()),
        "mlp": (set(), attention),
        "lag2": (routed, attention if feed_forward == "dense" else attention | routed),
        "ladder": (whole, attention),
    }
    before, behind = rules[connectivity]
    return frozenset(before), frozenset(behind)


def compute(
    description: Description, model: Any, ids: Tensor, connectivity: str, layers: tuple[int, int] | None = None
) -> Tensor:
    """The logits."""
    changes = placed(description)
    stream = Stream(None, model.embed(ids))

    def changed(place: int, stream: Stream) -> Stream:
        for one in changes.get(place, ()):
            stream = Stream(stream, change=_applied(one))
        return stream

    for layer in range(len(description.adds)):
        before, behind = left_out(connectivity, layers, layer, description.feed_forwards[layer])
        stream = changed(4 * layer, stream)
        h = model.before[layer](stream.read(before))
        stream = changed(4 * layer + 1, stream)
        stream = Stream(stream, model.attention[layer](h), f"a{layer}")
        stream = changed(4 * layer + 2, stream)
        h = model.between[layer](stream.read(behind))
        stream = changed(4 * layer + 3, stream)
        added, shared = model.feed_forward[layer].parts(h)
        stream = Stream(stream, added, f"m{layer}", shared)
    return model.head(model.last(changed(4 * len(description.adds), stream).read()))


def _applied(one: Placed) -> Callable[[Tensor], Tensor]:
    return lambda x: one.form.meaning(x, **one.inputs)
