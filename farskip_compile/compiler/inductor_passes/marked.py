# SPDX-License-Identifier: Apache-2.0
"""What is a launch and a wait besides PyTorch's own collectives is marked, before anything else is done to a graph.

In:    a post-grad graph; the plan, with what was declared about operators.
Out:   the same graph: collectives by operators of the user, and copies to the host, as launches and waits; verified.
Never: orders anything.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.compiler.inductor_passes import host_copies, wait_for  # noqa: F401 (operators)
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.graph import comms
from farskip_compile.passes.graph.declared import collectives_among, note_declared
from farskip_compile.passes.schedule.in_flight import arrivals
from farskip_compile.verify.held import own_waits, verify_held
from farskip_compile.verify.host_reads import reads_before, verify_host_reads

MARKING = ("custom_collectives", "host_reads")
EARLIER = (*MARKING, "pieces", "in_flight")
"""Passes on the post-grad graph that run, and are checked, each by itself."""


def communicates(graph: fx.Graph, plan: Plan) -> bool:
    """Whether there is a collective in `graph`, or something in flight that it waits for."""
    note_declared(graph, collectives_among(plan.declared), comms.called_name)
    return bool(arrivals(graph)) or any(comms.is_collective(node) or comms.is_blocking(node) for node in graph.nodes)


def mark(graph: fx.Graph, plan: Plan) -> int:
    """See the module's contract. How many waits of the user's there are.

    Raises:
        UnsupportedPatternError: something was declared as a collective that it can't be.
    """
    facts = collectives_among(plan.declared)
    driver = Driver(PASSES, Stage.POST_GRAD, {"graph": graph, "facts": facts}, plan.skip)
    waits = driver.step("remember", own_waits, graph, facts)
    driver.run(through="custom_collectives")
    driver.verify(verify_held, graph, waits)
    reads = driver.step("remember", reads_before, graph)
    driver.run(through="host_reads")
    driver.verify(verify_host_reads, graph, reads)
    driver.finish()
    return int(driver.facts["custom_waits"])
