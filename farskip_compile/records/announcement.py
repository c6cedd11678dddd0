# SPDX-License-Identifier: Apache-2.0
"""The operator `farskip::announce`: a compiled graph says what it launches, before the first launch.

In:    a scheduled graph and an `Announcement`.
Out:   the graph, which calls the operator first. The announcement is the operator's text argument, so it is part of the
       compiled graph, and there on a warm cache too, when no pass runs.
Never: communicates. What happens when the operator runs is decided in `ranks.agree`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.distributed import is_group
from farskip_compile.passes.graph import comms, ops
from farskip_compile.records.schedule import ScheduleReport

LIBRARY = torch.library.Library("farskip", "FRAGMENT")
LIBRARY.define("announce(str text) -> ()")

LaunchSizes = list[list[list[int]]] | None
"""For each launch, those of the tensors that go in. None: they are not the same in each call, or on each rank."""


@dataclass(frozen=True)
class Announcement:
    """What travels in a compiled graph to its first run."""

    report: ScheduleReport
    """Published then; with the launches that the ranks compare."""
    check: bool = True
    """Whether they compare them."""
    sizes: Mapping[str, LaunchSizes] = field(default_factory=dict)
    """Of the launches of each process group; see `collective_sizes`."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """What else they compare, as plain data; see `common_options`."""
    identity: str = ""
    """Of the compile; see `identity_of`."""

    def to_text(self) -> str:
        """As JSON, short, since each step reads it: flights have no field names."""
        data = {
            "report": self.report.to_json(short=True),
            "check": self.check,
            "sizes": self.sizes,
            "common": self.common,
            "identity": self.identity,
        }
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Announcement:
        """Return the announcement that `to_text` was called on."""
        data = json.loads(text)
        report = ScheduleReport.from_json(data["report"])
        return cls(report, data["check"], data["sizes"], data["common"], data["identity"])


def collective_orders(graph: fx.Graph) -> dict[str, list[str]]:
    """For each process group of `graph`, its launches in order, also those that block: operator, reduction and type.

    Of operators that block and name no group that `torch.distributed` has, nobody knows whose order to compare theirs
    with.
    """
    orders: dict[str, list[str]] = {}
    for node in _launches(graph):
        name = comms.called_name(node).split("::")[1]
        reduction = [arg for arg in node.args[1:2] if isinstance(arg, str) and "reduce" in name]
        value = next((ops.tensor(arg) for arg in node.all_input_nodes if ops.tensor(arg) is not None), None)
        kind = [str(value.dtype).removeprefix("torch.")] if value is not None else []
        orders.setdefault(comms.process_group(node), []).append(" ".join([name, *reduction, *kind]))
    return orders


def collective_sizes(graph: fx.Graph) -> dict[str, LaunchSizes]:
    """Return, for each process group of `graph`, the sizes of the tensors that its launches send.

    None where a size is symbolic or split unevenly: such sizes may differ between ranks.
    """
    found: dict[str, list[list[list[int]] | None]] = {}
    for node in _launches(graph):
        found.setdefault(comms.process_group(node), []).append(_fixed_sizes(node))
    known = {group: [one for one in sizes if one is not None] for group, sizes in found.items()}
    return {group: known[group] if len(known[group]) == len(sizes) else None for group, sizes in found.items()}


def _launches(graph: fx.Graph) -> list[fx.Node]:
    return [
        node
        for node in graph.nodes
        if (comms.is_collective(node) and comms.process_group(node))
        or (comms.is_blocking(node) and is_group(comms.process_group(node)))
    ]


def _fixed_sizes(node: fx.Node) -> list[list[int]] | None:
    sent = [value for arg in node.all_input_nodes if (value := ops.tensor(arg)) is not None]
    lists = [arg for arg in node.args if isinstance(arg, list | tuple)]
    shares = [one for given in lists for one in given if not (isinstance(one, fx.Node) and ops.tensor(one) is not None)]
    if not all(isinstance(size, int) for size in (*shares, *chain.from_iterable(value.shape for value in sent))):
        return None
    return [list(value.shape) for value in sent] if len(set(shares)) <= 1 else None


def insert_announcement(graph: fx.Graph, announced: Announcement) -> None:
    """Let `graph` announce this before anything else it does."""
    first = next((node for node in graph.nodes if node.op not in ("placeholder", "get_attr")), None)
    assert first is not None
    with graph.inserting_before(first):
        graph.call_function(announcement(), (announced.to_text(),))


def announcement() -> Any:
    """Return the operator `farskip::announce`."""
    return torch.ops.farskip.announce.default


torch.library.register_fake("farskip::announce", lambda text: None, lib=LIBRARY)
torch.fx.node.has_side_effect(announcement())
