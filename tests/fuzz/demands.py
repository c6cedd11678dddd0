# SPDX-License-Identifier: Apache-2.0
"""What every graph may demand of the pipeline, whatever it is: an answer or a reasoned refusal, and then no trace.

`attempt` runs the pipeline on a copy. A refusal must be a `FarSkipError` with a reason, must not be a
`VerificationError` (which is a defect by its own words), and must leave the graph as it was, node by node. So must the
answers that there is no residual stack, or (under `none`) no whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import FarSkipError, VerificationError
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport, Outcome
from tests.fuzz.machine import Unwritten, duplicate, fingerprint
from tests.fuzz.words import complaints

WHOLE = {"*": "embedding", "return": "final"}
"""What is declared of generated networks: they begin with inputs, and some end without a norm."""


class Broken(AssertionError):
    """A demand is not met."""


@dataclass
class Attempt:
    """What the pipeline made of a copy of a graph: a report, or an error."""

    module: fx.GraphModule
    report: CompileReport | None = None
    error: FarSkipError | None = None

    @property
    def said(self) -> str:
        """For counting: the outcome, or the class of the error."""
        return type(self.error).__name__ if self.report is None else str(self.report.outcome)


def demand(holds: bool, complaint: str) -> None:
    """Complain unless `holds`.

    Raises:
        Broken: with the complaint.
    """
    if not holds:
        raise Broken(complaint)


def attempt(
    module: fx.GraphModule,
    connectivity: Connectivity,
    layers: LayerRange = None,
    kind: type[fx.GraphModule] = Unwritten,
    kinds: Mapping[str, str] = WHOLE,
) -> Attempt:
    """Ask the pipeline for `connectivity`, on a copy of `module`, which is called afterwards only if `kind` says so.

    Raises:
        Broken: the refusal has no reason, or left a trace.
        Exception: anything that is no `FarSkipError` goes through.
    """
    made = Attempt(duplicate(module, kind))
    before = fingerprint(made.module)
    config = FarSkipConfig(connectivity=connectivity, layers=layers, inner="eager", schedule=False, kinds=kinds)
    try:
        made.report = run(made.module, config)
    except FarSkipError as error:
        check_refusal(error, module.graph)
        made.error = error
    if made.report is None or made.report.outcome in (Outcome.NO_STACK, Outcome.FRAGMENT):
        demand(fingerprint(made.module) == before, f"{made.said}: the graph is not as it was")
    return made


def check_refusal(error: FarSkipError, graph: fx.Graph | None = None) -> None:
    """Check the text of a refusal of `graph`.

    Raises:
        Broken: this is no refusal, but a defect; it gives no reason; or it names what only a pass knows.
    """
    demand(not isinstance(error, VerificationError), f"the rewired graph did not verify: {error}")
    demand(bool(error.reason.strip()), f"{type(error).__name__} without a reason")
    unknown = complaints(error, graph)
    demand(not unknown, f"an error speaks of what a user can't know: {'; '.join(unknown)}: {error}")
