# SPDX-License-Identifier: Apache-2.0
"""Modes in which a write in place is not its out-of-place form: no gradients, a detached view, autocast.

In:    the nodes of a graph, one after another.
Out:   whether gradients are recorded at a node and which autocast is on; which tensors of one memory gradients connect.
Never: changes the graph.

A write where no gradients are recorded leaves those of what it writes to as they were: its out-of-place form would have
none. A write through `x.detach()` or `x.data` changes the data of `x`, and not its gradients. Autocast casts what
`x.addmm(a, b)` is given, and not what `x.addmm_(a, b)` is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops

DETACHING = frozenset(["detach", "_get_data_attr"])
DEFAULTS: tuple[Any, ...] = ("cpu", None, True)
"""Arguments of the beginning of autocast: device, type, and whether it is on."""
Autocast = tuple[str, torch.dtype] | None


class Modes:
    """The modes at one place of a graph, and what they were where the tensors so far were made."""

    def __init__(self) -> None:
        self._records_gradients = True
        self._autocasts: list[Autocast] = []
        self._family: dict[fx.Node, fx.Node] = {}

    def enter(self, node: fx.Node, *, writes: bool) -> None:
        """Go on to `node`, which `writes` to an argument or not."""
        name = ops.op_name(node)
        if name == "_set_grad_enabled":
            self._records_gradients = bool(node.args[0])
        elif name == "_enter_autocast":
            device, dtype, enabled = (*node.args, *DEFAULTS[len(node.args) :])[:3]
            on = (device, dtype or torch.get_autocast_dtype(device)) if enabled else None
            self._autocasts.append(on)
        elif name == "_exit_autocast":
            self._autocasts.pop()
        if writes or (name not in DETACHING and self._records_gradients):
            memory = effects.storage(node)
            views = (arg for arg in node.all_input_nodes if memory is not None and effects.storage(arg) == memory)
            self._family[node] = self._family.get(source := next(views, node), source)

    def stand_for(self, new: fx.Node, old: fx.Node) -> None:
        """Take gradients to go through `new` as they go through `old`, which it replaces."""
        self._family[new] = self._family.get(old, old)

    def autocast(self, device: str) -> Autocast:
        """The autocast that is on here, of the graph or around it."""
        if self._autocasts:
            return self._autocasts[-1]
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return None  # there is none for tensors without storage, on "meta"
        return device, torch.get_autocast_dtype(device)

    def are_one_in_gradients(self, written: fx.Node, others: Iterable[fx.Node]) -> bool:
        """Return whether a write to `written` here changes the gradients of `others`, views of its memory, too."""
        if not any(value.requires_grad for node in (written, *others) if (value := ops.tensor(node)) is not None):
            return True
        family = self._family.get(written, written)
        return self._records_gradients and all(self._family.get(node, node) is family for node in others)
