# SPDX-License-Identifier: Apache-2.0
"""Generated regions of an exchange, as ATen graphs: dispatch, what experts do, combine. Nothing of the pass is used.

A graph is run in one process, where an exchange puts the equal blocks of one tensor in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

WIDTH = 4
EXPERTS, SLOTS = "experts", "slots"
BOTH = frozenset({EXPERTS, SLOTS})


@dataclass(frozen=True)
class Step:
    """What experts do to their rows `(experts, ranks * slots, width)`, with a tensor of their own."""

    run: Callable[[Tensor, Tensor], Tensor]
    shape: str = ""
    """Of that tensor: `e` experts, `r` rows, `w` width, `1`."""
    apart: frozenset[str] = BOTH
    """What it keeps apart."""


STEPS: dict[str, Step] = {
    "weights": Step(lambda y, t: y @ t, "eww"),
    "gate": Step(lambda y, t: torch.nn.functional.silu(y @ t) * y, "eww"),
    "shared weights": Step(lambda y, t: y @ t, "ww"),
    "activation": Step(lambda y, t: y * t.sigmoid(), "erw"),
    "row scale": Step(lambda y, t: y * t, "er1"),
    "bias of experts": Step(lambda y, t: y + t, "e1w"),
    "bias": Step(lambda y, t: y + t, "w"),
    "softmax of features": Step(lambda y, t: y.softmax(-1)),
    "norm": Step(lambda y, t: y * (y.pow(2).mean(-1, keepdim=True) + 1).rsqrt()),
    "types": Step(lambda y, t: y.float().double()),
    "halves": Step(lambda y, t: torch.cat([y[..., WIDTH // 2 :], -y[..., : WIDTH // 2]], -1)),
    "padding": Step(lambda y, t: torch.nn.functional.pad(y, (1, 0))[..., :WIDTH]),
    "columns": Step(lambda y, t: (t @ y.mT).mT, "eww"),
    "softmax of rows": Step(lambda y, t: y.softmax(1), apart=frozenset({EXPERTS})),
    "rows of each other": Step(lambda y, t: (y @ y.mT).softmax(-1) @ y, apart=frozenset({EXPERTS})),
    "mean of experts": Step(lambda y, t: y - y.mean(0, keepdim=True), apart=frozenset({SLOTS})),
    "all": Step(lambda y, t: y * y.sum(), apart=frozenset()),
}


@dataclass(frozen=True)
class Region:
    """A drawn region."""

    ranks: int
    experts: int
    slots: int
    form: str
    """Of what is sent: `flat` (all rows), `rows` (experts of all ranks, slots), `blocks` (ranks, experts, slots)."""
    steps: tuple[str, ...]
    kept: tuple[int, ...] = ()
    """Steps whose results are read after the region, too."""

    @property
    def apart(self) -> set[str]:
        """What all steps keep apart."""
        return set(BOTH).intersection(*(STEPS[name].apart for name in self.steps))

    def sizes(self) -> dict[str, int]:
        """How many experts and slots a rank has."""
        return {EXPERTS: self.experts, SLOTS: self.slots}

    def shape(self) -> tuple[int, ...]:
        """Of what is sent."""
        r, e, s = self.ranks, self.experts, self.slots
        return {"flat": (r * e * s, WIDTH), "rows": (r * e, s, WIDTH), "blocks": (r, e, s, WIDTH)}[self.form]

    def tensors(self) -> list[Tensor]:
        """The tensors of the steps."""
        sizes = {"e": self.experts, "r": self.ranks * self.slots, "w": WIDTH, "1": 1}
        shapes = [[sizes[letter] for letter in STEPS[name].shape] for name in self.steps]
        return [torch.randn(shape, dtype=torch.float64) for shape in shapes]

    def run(self, sent: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The region, and what is read after it."""
        r, e, s = self.ranks, self.experts, self.slots
        y = exchange(sent * 2, r).view(r, e, s, WIDTH).permute(1, 0, 2, 3).reshape(e, r * s, WIDTH)
        kept = []
        for place, (name, tensor) in enumerate(zip(self.steps, tensors, strict=True)):
            y = STEPS[name].run(y, tensor)
            kept += [y] if place in self.kept else []
        y = y.view(e, r, s, WIDTH).permute(1, 0, 2, 3).reshape(self.shape())
        return (exchange(y, r).view(-1, WIDTH) + 1, *(one.mT.exp() for one in kept))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Any region."""
    steps = draw(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=4))
    return Region(
        ranks=draw(st.sampled_from([2, 4])),
        experts=draw(st.integers(1, 4)),
        slots=draw(st.integers(1, 5)),
        form=draw(st.sampled_from(["flat", "rows", "blocks"])),
        steps=tuple(steps),
        kept=tuple(sorted(draw(st.sets(st.integers(0, len(steps) - 1), max_size=2)))),
    )


def exchange(x: Tensor, ranks: int) -> Tensor:
    """All-to-all with equal shares, and its wait."""
    splits = [x.shape[0] // ranks] * ranks
    sent = torch.ops._c10d_functional.all_to_all_single(x.contiguous(), splits, splits, GROUP)
    return torch.ops._c10d_functional.wait_tensor(sent)


GROUP = "pieces"


def trace(run: Callable[..., Any], *inputs: Any) -> fx.GraphModule:
    """The ATen graph of `run`, with fake values; nothing is sent."""
    with FakeTensorMode() as mode:
        fakes = torch.utils._pytree.tree_map(mode.from_tensor, inputs)
        return make_fx(lambda *args: run(*args))(*fakes)


class OneProcess(fx.Interpreter):
    """Runs a graph in which ranks send blocks of one tensor to each other: in the opposite order."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the base class does, but for collectives."""
        if target is torch.ops._c10d_functional.all_to_all_single.default:
            x, theirs, ours, _ = args
            assert list(theirs) == list(ours)
            assert sum(ours) == x.shape[0]
            return torch.cat(x.split(list(ours))[::-1])
        if target is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]
        return super().call_function(target, args, kwargs)


def result(module: fx.GraphModule, *inputs: Any) -> list[Tensor]:
    """The results of a traced graph."""
    flat = torch.utils._pytree.tree_leaves(inputs)
    return torch.utils._pytree.tree_leaves(OneProcess(module).run(*flat))
