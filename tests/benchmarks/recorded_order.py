# SPDX-License-Identifier: Apache-2.0
"""The order of launches, waits and matrix products of a model, as it runs: no clocks.

Collectives of `torch.distributed` that are called with `async_op=True` are done as late as they may be, when they are
waited for; until then their result is NaN. So whoever reads memory in flight gets a wrong result.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = {
    r"layers\.(\d+)\.attention\.output\.": "mix",
    r"layers\.(\d+)\.attention\.": "project",
    r"layers\.(\d+)\.feed_forward\.router\.": "router",
    r"layers\.(\d+)\.feed_forward\.experts\.": "routed",
    r"layers\.(\d+)\.feed_forward\.shared_experts\.": "shared",
    r"layers\.(\d+)\.feed_forward\.": "mlp",
    r"(lm_head)": "head",
}
"""Parameters -> what is computed with them."""
ATTENTION = {torch.ops.aten._safe_softmax.default, torch.ops.aten._softmax_backward_data.default}
"""In a model whose router has no softmax and whose keys and values differ in width, these are the attention proper."""


class Late:
    """The handle of a collective that is done when it is waited for."""

    def __init__(self, work: Callable[[], object], note: Callable[[], None]) -> None:
        self.work, self.note = work, note

    def wait(self) -> None:
        self.note()
        self.work()


class Recorder(TorchDispatchMode):
    """Notes every product with a parameter, every launch and every wait; what repeats is noted once."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.events: list[str] = []
        self.names = itertools.chain(names, (f"unexpected {number}" for number in itertools.count()))
        self.in_flight: set[str] = set()
        self.parts: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            for pattern, part in PARTS.items():
                if found := re.match(pattern, name):
                    number = found.group(1)
                    self.parts[parameter.untyped_storage().data_ptr()] = f"{part} {number}".removesuffix(" lm_head")
                    break

    def note(self, event: str) -> None:
        if not self.events or self.events[-1] != event:
            self.events.append(event)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            for leaf in tree_leaves(args):
                if part := self.parts.get(leaf.untyped_storage().data_ptr()):
                    self.note(part)
        elif func in ATTENTION:
            self.note("attention")
        return func(*args, **(kwargs or {}))

    def launch(self, work: Callable[[], object]) -> Late:
        name = next(self.names)
        self.note(f"launch {name}")
        self.in_flight.add(name)

        def waited() -> None:
            self.in_flight.remove(name)
            self.note(f"wait {name}")

        return Late(work, waited)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """Yields the events; launches get these names in turn. At the end everything has been waited for."""
    recorder = Recorder(model, names)
    all_to_all, all_reduce = dist.all_to_all_single, dist.all_reduce

    def late_all_to_all(output: Any, x: Any, *splits: Any, async_op: bool = False, **options: Any) -> Any:
        if not async_op:
            recorder.note("counts")
            return all_to_all(output, x, *splits, **options)
        output.fill_(float("nan"))
        return recorder.launch(lambda: all_to_all(output, x, *splits, **options))

    def late_all_reduce(x: Any, *, async_op: bool, **options: Any) -> Any:
        kept = x.clone()
        x.fill_(float("nan"))

        def work() -> None:
            all_reduce(kept, **options)
            with torch.no_grad():  # a collective is not known to autograd
                x.copy_(kept)

        return recorder.launch(work)

    replaced = mock.patch.multiple(dist, all_to_all_single=late_all_to_all, all_reduce=late_all_reduce)
    with replaced, recorder:
        yield recorder.events
    assert not recorder.in_flight, f"never waited for: {recorder.in_flight}"
