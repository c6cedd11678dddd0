# SPDX-License-Identifier: Apache-2.0
"""What all ranks of a model must have in common, as lines of text that can be compared and shown.

Contract: from a capture to a `CompileFingerprint`. Left out is what ranks may differ in: numbers (a rank's own slice,
its share of the tokens, the sizes that follow from it), names of process groups and indices of devices. What is left is
which operator gets what from where, the types of values, the table, the collectives and the configuration.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.distributed import group_ranks
from farskip_compile.compiler.ranks.identity import source_hash
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.residual.table import Table
from farskip_compile.records.announcement import collective_orders
from farskip_compile.records.compile import CompileReport
from farskip_compile.tools.capture import Capture
from farskip_compile.tools.explain.layout import reads_text, short_place

NUMBER = "#"


@dataclass(frozen=True)
class GroupOrder:
    """The collectives of one process group."""

    ranks: tuple[int, ...]
    """Global ranks of the group."""
    launches: tuple[str, ...]


@dataclass(frozen=True)
class CompileFingerprint:
    """Everything that is compared."""

    report: CompileReport
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lines by subject."""
    orders: dict[str, GroupOrder] = field(default_factory=dict)
    """By name of the process group."""

    def digests(self) -> dict[str, str]:
        """One hash for each subject."""
        return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in self.parts.items()}


def fingerprint(found: Capture) -> CompileFingerprint:
    """The fingerprint of a captured model on this rank."""
    packages = {"farskip-compile": source_hash()[:12], "torch": torch.__version__, "python": platform.python_version()}
    parts = {
        "versions": (f"{name} {version}" for name, version in packages.items()),
        "configuration": _configuration(found.report.config),
        "table": _table(found.report.table),
        "graph": _lines(found.module, _Groups()),
    }
    return CompileFingerprint(found.report, {name: tuple(part) for name, part in parts.items()}, _orders(found.module))


def _configuration(config: dict[str, Any]) -> Iterator[str]:
    for name, value in sorted(config.items()):
        if name == "ep_group" and value is not None:
            value = f"a group of {len(group_ranks(value))} ranks"
        yield f"{name} = {json.dumps(value, sort_keys=True, default=str)}"


def _table(table: Table) -> Iterator[str]:
    for row in table.rows:
        adds = ", ".join(table.names(row.terms))
        yield f"{row.name} ({row.kind}) adds {adds}, reads {reads_text(table, row.reads)}"


class _Groups(dict[str, str]):
    """Process groups by the order in which they are met: on other ranks the same ones have other names."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, f"group {len(self)}")


def _lines(module: fx.GraphModule, groups: _Groups, indent: str = "") -> Iterator[str]:
    """One line for each node, followed by its source; the bodies of operators are indented below."""
    index = {node: number for number, node in enumerate(module.graph.nodes)}
    for node, number in index.items():
        group = comms.process_group(node) if comms.is_collective(node) else None
        text = partial(_text, index=index, groups=groups, group=group)
        arguments = [*map(text, node.args), *(f"{key}={text(value)}" for key, value in node.kwargs.items())]
        target = ops.op_name(node) or str(node.target)
        value = ops.tensor(node)
        kind = f": {str(value.dtype).removeprefix('torch.')} of {value.dim()} dimensions" if value is not None else ""
        place = user_calls.source_line(node)
        at = f"  at {short_place(place)}" if place else ""
        yield f"{indent}%{number} = {node.op} {target}({', '.join(arguments)}){kind}{at}"
        body = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(body, fx.GraphModule):
            yield from _lines(body, groups, indent + "  ")


def _text(value: Any, index: dict[fx.Node, int], groups: _Groups, group: str | None) -> str:
    """An argument of a node; `group` is the name of the process group that the node communicates over."""
    if isinstance(value, fx.Node):
        return f"%{index[value]}" if value in index else "%?"
    if isinstance(value, bool | type(None)):
        return repr(value)
    if isinstance(value, int | float | complex | torch.SymInt | torch.SymFloat | torch.SymBool):
        return NUMBER
    if isinstance(value, str):
        return groups[value] if value == group else repr(value)
    if isinstance(value, torch.device):
        return value.type
    text = partial(_text, index=index, groups=groups, group=group)
    if isinstance(value, slice):
        return f"slice({', '.join(map(text, (value.start, value.stop, value.step)))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {text(v)}' for key, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else type(value).__name__


def _orders(module: fx.GraphModule) -> dict[str, GroupOrder]:
    """The launches of each process group, in the order of the graph; those in bodies of operators after the others."""
    found: dict[str, list[str]] = {}
    for graph in _graphs(module):
        for group, launches in collective_orders(graph).items():
            found.setdefault(group, []).extend(launches)
    return {group: GroupOrder(tuple(group_ranks(group)), tuple(names)) for group, names in found.items()}


def _graphs(module: fx.GraphModule) -> Iterator[fx.Graph]:
    yield module.graph
    for node in module.graph.find_nodes(op="get_attr"):
        if isinstance(body := getattr(module, str(node.target), None), fx.GraphModule):
            yield from _graphs(body)
