# SPDX-License-Identifier: Apache-2.0
"""What is done to a graph that vLLM compiles, from Dynamo's hands to the compiler's.

In:    a graph of a whole model, as vLLM traces it: once, for all numbers of tokens, prefill and decode.
Out:   the same graph in place, rewired and verified; it says at run time what it is (`farskip::served`).
Never: compiles; goes on if the graph is not rewired as asked.

Algorithm:
1. Declare what vLLM's operators are, those of this graph by their schema.
2. Take fused adds and norms apart; write all-reduces in place as operators that return the sum.
3. Run the passes, and their verification.
4. Put adds and norms together again.
5. On request, turn all-reduces into starts and waits; where no compiler of ours comes after, order them.
6. Let the graph say what it is: text in the graph itself, so that it is there when a cache answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from farskip_compile.compiler.backend import Backend
from farskip_compile.errors import OriginalWiringError
from farskip_compile.records.announcement import LIBRARY
from farskip_compile.records.compile import CompileReport, Outcome, publish
from farskip_compile.records.process_file import note_report
from farskip_compile.vllm import norms, operators, overlap, shared_memory
from farskip_compile.vllm.asked import Asked

LIBRARY.define("served(str text) -> ()")

AS_ASKED = (Outcome.REWIRED, Outcome.ALREADY, Outcome.UNCHANGED)
"""What may become of a graph with a residual stack."""
ran: list[dict[str, Any]] = []
"""What the graphs that ran in this process have said of themselves, the first time."""
_texts: set[str] = set()


def rewire(
    module: fx.GraphModule, asked: Asked, options: Mapping[str, Any], *, order: bool
) -> tuple[Backend, CompileReport]:
    """Steps 1 to 6 on `module`; `options` are those of the backend, and `order` whether step 5 has to order the graph
    itself. Returns the backend, by which the graph can be compiled, and what was done.

    Raises:
        FarSkipError: it can't be rewired as asked.
    """
    graph = module.graph
    operators.declare()  # 1
    operators.declare_by_schema(graph)
    apart = norms.split(graph)  # 2
    shared_memory.write_out(graph)
    backend = Backend(asked.config(**options))  # of what is declared by now
    report = backend.rewire(module)  # 3
    if report.outcome not in (*AS_ASKED, Outcome.NO_STACK):
        raise OriginalWiringError(
            f"{asked.by} asks for a rewired model, and a part of it is {report.outcome}: {report.reason}",
            way_out="farskip explain shows what is understood of the model",
        )
    joined = norms.join(module.graph)  # 4
    report = replace(report, norms_split=apart, norms_joined=joined)
    if asked.options.overlap and report.outcome is not Outcome.NO_STACK:
        report = replace(report, reductions_started=overlap.start_and_wait(module, order=order))  # 5
    _let_say(module.graph, asked, report)  # 6
    module.graph.lint()
    module.recompile()
    publish(report, None)
    note_report(report)
    return backend, report


def _let_say(graph: fx.Graph, asked: Asked, report: CompileReport) -> None:
    text = json.dumps({"digest": asked.digest, "outcome": str(report.outcome), "said": report.summary()})
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        said = graph.call_function(torch.ops.farskip.served.default, (text,))
    said.meta["example_value"] = None


def _served(text: str) -> None:
    if text not in _texts:
        _texts.add(text)
        ran.append(json.loads(text))


LIBRARY.impl("served", _served, "CompositeExplicitAutograd")
torch.library.register_fake("farskip::served", lambda text: None, lib=LIBRARY)
torch.fx.node.has_side_effect(torch.ops.farskip.served.default)
