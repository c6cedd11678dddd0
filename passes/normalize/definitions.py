# SPDX-License-Identifier: Apache-2.0
"""What memory holds after a write that has no out-of-place form, as a value of its own.

In:    a graph in which operators write to buffers that they are given: `torch.empty`, then `mylib::mm(out!, a, b)`.
Out:   the same graph, and after such a write a mark, `after_write(buffer, write)`, which later readers read. Through it
       they depend on the write, and so on all that it reads, by edges: the write defines a value as any operator does.
       `lower_definitions` puts the buffers back where the marks were.
Never: moves a write, or replaces it.

A write is `defined` if whatever reads its memory later reads the mark, so that no dependence is left that edges do not
show. Of others `single_assignment.mutation_edges` keeps account.
"""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.passes.graph import effects, user_calls

DEFINED = "farskip_defined"
"""In the meta of a write: the memories whose later readers all read marks."""

OF_THE_WRITE = (user_calls.WRITTEN, "stack_trace")
"""Entries of the meta of a mark that say where the user wrote to the buffer."""


def after_write(buffer: torch.Tensor, write: object) -> torch.Tensor:
    """A mark: what `buffer` holds after `write`."""
    return buffer


def define(graph: fx.Graph, write: fx.Node, buffer: fx.Node) -> fx.Node:
    """The mark of what `buffer` holds after `write`."""
    with graph.inserting_after(write):
        mark = graph.call_function(after_write, (buffer, write))
    mark.meta = {**buffer.meta, **{key: write.meta[key] for key in OF_THE_WRITE if key in write.meta}}
    mark.meta["farskip_storage"] = effects.storage(buffer)
    return mark


def lower_definitions(graph: fx.Graph) -> int:
    """Let the readers of marks read the buffers again; returns how many marks there were."""
    marks = [node for node in graph.nodes if node.target is after_write]
    for mark in marks:
        buffer = mark.args[0]
        assert isinstance(buffer, fx.Node)
        mark.replace_all_uses_with(buffer)
        graph.erase_node(mark)
    for node in graph.nodes:
        node.meta.pop(DEFINED, None)
    return len(marks)
