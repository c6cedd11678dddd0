# SPDX-License-Identifier: Apache-2.0
"""Mark the launches and waits besides PyTorch's own collectives, before anything else is done to a graph.

In:    a post-grad graph, and what was declared about operators.
Out:   the same graph: collectives by operators of the user, and copies to the host, as launches and waits; verified.
Never: orders anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from farskip_compile.compiler.inductor_passes import host_copies, wait_for  # noqa: F401 (operators)
from farskip_compile.passes.graph import comms
from farskip_compile.passes.graph.declared import Declared, collectives_among, note_declared
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.custom_collectives import mark_custom_collectives
from farskip_compile.passes.schedule.host_reads import read_on_host
from farskip_compile.passes.schedule.in_flight import arrivals
from farskip_compile.verify.held import own_waits, verify_held
from farskip_compile.verify.host_reads import reads_before, verify_host_reads


def communicates(graph: fx.Graph, declared: Sequence[Declared]) -> bool:
    """Return whether there is a collective in `graph`, or a wait for one that an earlier graph launched."""
    note_declared(graph, collectives_among(declared), comms.called_name)
    return bool(arrivals(graph)) or any(comms.is_collective(node) or comms.is_blocking(node) for node in graph.nodes)


def mark_launches_and_waits(graph: fx.Graph, declared: Sequence[Declared], passes: PassRunner) -> None:
    """Mark the user's collectives and the copies to the host in `graph`, and verify both.

    Raises:
        UnsupportedPatternError: something was declared as a collective that it can't be.
    """
    collectives = collectives_among(declared)
    waits = passes.step("remember", own_waits, graph, collectives)
    passes.apply("custom_collectives", mark_custom_collectives, graph, collectives)
    passes.verify(verify_held, graph, waits)
    if passes.is_enabled("host_reads"):
        reads = passes.step("remember", reads_before, graph)
        passes.apply("host_reads", read_on_host, graph)
        passes.verify(verify_host_reads, graph, reads)
