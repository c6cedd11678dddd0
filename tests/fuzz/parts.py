# SPDX-License-Identifier: Apache-2.0
"""A decoder that is compiled in parts, cut at any edges of its graph.

In:    a `Cut`: the layers, where it is cut, which parts are compiled, and what it returns besides.
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Steps of a decoder are the smallest parts: the embedding, a norm, a sub-block without its add, an add, the last norm,
the head, a loss. A part is some steps that follow each other; it takes and returns what is alive at its ends.

Demands: the parts, one after the other, compute what the model computes under `full`, or a part is refused, or no part
that is compiled holds anything of a sub-block, and nothing is changed. Under `none` the function is the model's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from farskip_compile import FarSkipError
from tests.fuzz.captured import Function, NotCaptured, capture
from tests.fuzz.demands import Broken, demand
from tests.fuzz.streams.by_hand import compute
from tests.fuzz.streams.description import Description
from tests.fuzz.streams.source import Decoder, token_ids


@dataclass(frozen=True)
class Cut:
    """A decoder in parts."""

    feed_forwards: tuple[str, ...]
    edges: tuple[int, ...]
    """Numbers of steps in front of which it is cut."""
    compiled: tuple[bool, ...]
    """Part by part."""
    returns: str = ""
    """`hidden`: parts that end with the stream return it by itself too; `loss`: the model ends with one."""
    seed: int = 0
    dynamo: bool = False


@dataclass(frozen=True)
class Step:
    """One statement."""

    line: str
    reads: tuple[str, ...]
    makes: str
    inside: bool = True
    """Whether it is attention, or has routed experts: a network of anything else alone is like any other."""


def steps(feed_forwards: tuple[str, ...], loss: bool) -> list[Step]:
    """The statements of a decoder."""
    made = [Step("x = self.embed(ids)", ("ids",), "x", inside=False)]
    for layer, kind in enumerate(feed_forwards):
        for norm, block in (("before", "attention"), ("between", "feed_forward")):
            made += [
                Step(f"h = self.{norm}[{layer}](x)", ("x",), "h", inside=False),
                Step(f"y = self.{block}[{layer}](h)", ("h",), "y", block == "attention" or kind != "dense"),
                Step("x = x + y", ("x", "y"), "x", inside=False),
            ]
    made += [
        Step("x = self.last(x)", ("x",), "x", inside=False),
        Step("x = self.head(x)", ("x",), "x", inside=False),
    ]
    if loss:
        made.append(
            Step("x = torch.nn.functional.cross_entropy(x.flatten(0, 1), ids.flatten())", ("x", "ids"), "x", False)
        )
    return made


class Part:
    """Steps that follow each other."""

    def __init__(self, steps_: Sequence[Step], inputs: tuple[str, ...], outputs: tuple[str, ...], extra: bool) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.inside = any(step.inside for step in steps_)
        returned = [*outputs, *(["x * 1.0"] if extra else [])]
        body = "\n    ".join([step.line for step in steps_] + [f"return ({', '.join(returned)},)"])
        self.source = f"def forward({', '.join(['self', *inputs])}):\n    {body}"

    def module(self, model: Decoder) -> nn.Module:
        """A module with the parts of `model` that it uses, or all of them."""
        scope: dict[str, Any] = {"torch": torch}
        exec(compile(self.source, "<part of a decoder>", "exec"), scope)
        made = type("Part", (nn.Module,), {"forward": scope["forward"]})()
        for name, child in model.named_children():
            setattr(made, name, child)
        return made


def parts(example: Cut) -> list[Part]:
    """The parts, with what is alive between them."""
    all_steps = steps(example.feed_forwards, example.returns == "loss")
    bounds = [0, *sorted(set(example.edges)), len(all_steps)]
    made = []
    for first, end in itertools.pairwise(bounds):
        reads = _needed(all_steps[first:])
        outputs = _needed(all_steps[end:]) if end < len(all_steps) else ("x",)
        inside = all_steps[first:end]
        already = {step.makes for step in all_steps[:first]} | {"ids"}
        inputs = tuple(name for name in reads if name in already)
        extra = example.returns == "hidden" and inside[-1].makes == "x"
        made.append(Part(inside, inputs, outputs, extra))
    return made


def _needed(later: Sequence[Step]) -> tuple[str, ...]:
    """The names that these steps read before they make them."""
    found: list[str] = []
    made: set[str] = set()
    for step in later:
        found += [name for name in step.reads if name not in made and name not in found]
        made.add(step.makes)
    return tuple(found)


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Two or three layers in two to four parts; most of them compiled."""
    layers = draw(st.integers(2, 3))
    kinds = ["routed", "shared", "dense"]
    feed_forwards = (*(draw(st.sampled_from(kinds)) for _ in range(layers - 1)), "routed")
    returns = draw(st.sampled_from(["", "", "hidden", "loss"]))
    last = len(steps(feed_forwards, returns == "loss")) - 1
    edges = tuple(sorted({draw(st.integers(1, last)) for _ in range(draw(st.integers(1, 3)))}))
    compiled = tuple(draw(st.sampled_from([True, True, False])) for _ in range(len(edges) + 1))
    return Cut(feed_forwards, edges, compiled, returns, draw(st.integers(0, 9)), draw(st.integers(0, 3)) == 0)


def check_cut(example: Cut) -> Counter[str]:
    """Check one model in parts.

    Raises:
        Broken: a demand is not met.
    """
    torch.manual_seed(example.seed)
    model = Decoder(example.feed_forwards).double()
    all_parts = parts(example)
    runs = []
    with torch.no_grad():
        for asked in ("none", "full"):
            made: list[Function | FarSkipError] = []
            for part, compiled in zip(all_parts, example.compiled, strict=True):
                module = part.module(model)
                arguments = _values(all_parts, model, part)
                try:
                    made += capture(module, arguments, [(asked, None)], dynamo=example.dynamo) if compiled else [module]
                except NotCaptured:
                    return Counter({"not captured": 1})
            runs.append(made)
    refused = [one for one in runs[1] if isinstance(one, FarSkipError)]
    with torch.no_grad():
        plain, full = (
            _ended(example, model, compute(_described(example), model, token_ids(), name)) for name in ("none", "full")
        )
        demand(not any(isinstance(one, FarSkipError) for one in runs[0]), f"`none` is refused: {runs[0]}")
        demand(torch.equal(_chain(all_parts, runs[0]), plain), "`none` changed the function")
        if refused:
            return Counter({f"refused {type(refused[0]).__name__}": 1})
        found = _chain(all_parts, runs[1])
    whole = any(part.inside for part, compiled in zip(all_parts, example.compiled, strict=True) if compiled)
    if torch.equal(found, full):
        return Counter({"accepted": 1, "full: rewired": 1})
    if torch.equal(found, plain):
        demand(not whole, "a part of a model is compiled as it was, and nothing is said")
        return Counter({"accepted": 1, "nothing of a sub-block": 1})
    raise Broken("neither the model as it is written nor its form by hand")


def _described(example: Cut) -> Description:
    return Description(example.feed_forwards, ("+",) * len(example.feed_forwards), (), example.seed)


def _ended(example: Cut, model: Decoder, logits: Tensor) -> Tensor:
    if example.returns != "loss":
        return logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), token_ids().flatten())


def _values(all_parts: Sequence[Part], model: Decoder, wanted: Part) -> list[Tensor]:
    """What `wanted` is called with."""
    known = {"ids": token_ids()}
    for part in all_parts:
        if part is wanted:
            break
        known.update(zip(part.outputs, part.module(model)(*(known[name] for name in part.inputs)), strict=False))
    return [known[name] for name in wanted.inputs]


def _chain(all_parts: Sequence[Part], functions: Sequence[Any]) -> Tensor:
    known = {"ids": token_ids()}
    for part, function in zip(all_parts, functions, strict=True):
        results = function(*(known[name] for name in part.inputs))
        known.update(zip(part.outputs, results, strict=False))
    return known["x"]
