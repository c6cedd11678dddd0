# SPDX-License-Identifier: Apache-2.0
"""Decoders with changes of the stream: what is demanded of each, as a graph and through Dynamo.

In:    a `Description`.
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Demands: under `none` the function is the model's; under each other connectivity the model is refused, or has the bits
of the form by hand; a third of the models also its gradients, up to rounding. Nothing in between: a model that comes
back as it was, without an error, is a fault, as is one of which some layers are rewired.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from farskip_compile import FarSkipError
from tests.compare import far_gradients, run_with_gradients
from tests.fuzz.captured import Function, NotCaptured, Wish, capture
from tests.fuzz.demands import Broken, demand
from tests.fuzz.streams.by_hand import compute
from tests.fuzz.streams.description import FORMS, Description, Unfit
from tests.fuzz.streams.source import build

TOLERANCE = 1e-12


def wishes(description: Description) -> list[Wish]:
    """What is asked for: three connectivities of all layers, and one more, or a range."""
    last = len(description.adds) - 1
    more: list[Wish] = [("lag2", None), ("ladder", None), ("full", (last, last)), ("full", (0, last - 1))]
    return [("full", None), ("attention", None), ("mlp", None), more[description.seed % len(more)]]


def check_graph(description: Description) -> Counter[str]:
    """Check the graph of one model, written without Dynamo.

    Raises:
        Broken: a demand is not met.
    """
    return _check(description, dynamo=False)


def check_model(description: Description) -> Counter[str]:
    """Check one model through Dynamo.

    Raises:
        Broken: a demand is not met.
    """
    return _check(description, dynamo=True)


def _check(description: Description, *, dynamo: bool) -> Counter[str]:
    try:
        model, arguments = build(description)
        with torch.no_grad():
            plain = model(*arguments)
    except (Unfit, RuntimeError):
        return Counter({"no program": 1})
    asked = wishes(description)
    with torch.no_grad():
        demand(torch.equal(compute(description, model, arguments[0], "none"), plain), "the form by hand is wrong")
    try:
        none, *found = capture(model, arguments, [("none", None), *asked], dynamo=dynamo)
    except NotCaptured:
        return Counter({"not captured": 1})
    demand(not isinstance(none, FarSkipError), f"`none` is refused: {none}")
    with torch.no_grad():
        demand(torch.equal(none(*arguments), plain), "`none` changed the function")
    counts: Counter[str] = Counter()
    for wish, made in zip(asked, found, strict=True):
        if isinstance(made, FarSkipError):
            counts[f"{wish[0]}: {type(made).__name__}"] += 1
        else:
            counts += _judge(description, model, arguments, wish, made)
    torch.compiler.reset()
    return _verdict(counts)


def _judge(
    description: Description, model: Any, arguments: tuple[Tensor, ...], wish: Wish, function: Function
) -> Counter[str]:
    """Compare with the form by hand."""

    def by_hand(*given: Tensor) -> Tensor:
        return compute(description, model, given[0], *wish)

    with torch.no_grad():
        found, expected = function(*arguments), by_hand(*arguments)
    if not torch.equal(found, expected):
        with torch.no_grad():
            plain = model(*arguments)
        far = (found - expected).abs().max() if found.shape == expected.shape else "all"
        like = "the model as written" if torch.equal(found, plain) else f"off by {far}"
        raise Broken(f"{wish}: rewired to another function than the form by hand: {like}")
    counts = Counter({f"{wish[0]}: rewired": 1})
    if description.seed % 3 == 0 and all(FORMS[change.form].differentiable for change in description.changes):
        counts += _compare_gradients(model, arguments, by_hand, function, wish)
    return counts


def _compare_gradients(
    model: Any, arguments: tuple[Tensor, ...], by_hand: Function, function: Function, wish: Wish
) -> Counter[str]:
    try:
        run_with_gradients(model, model, *arguments)
    except RuntimeError:
        return Counter({"no gradients": 1})  # something that backward needs is overwritten
    _, expected = run_with_gradients(by_hand, model, *arguments)
    _, found = run_with_gradients(function, model, *arguments)
    demand(found.keys() == expected.keys(), f"{wish}: other parameters have gradients")
    far = far_gradients(found, expected, TOLERANCE)
    demand(not far, f"{wish}: gradients differ by {far}")
    return Counter({"gradients": 1})


def _verdict(counts: Counter[str]) -> Counter[str]:
    rewired = any(name.endswith(": rewired") for name in counts)
    refused = next((name.split(": ")[1] for name in counts if name.startswith("full: ")), "")
    return counts + Counter({"accepted" if rewired else f"refused {refused}": 1})
