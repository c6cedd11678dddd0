# SPDX-License-Identifier: Apache-2.0
"""Two ways to edit the graph of a module so that no half-edited or unproven graph stays in it.

`GraphCopy` edits a copy, and swaps it in once it is verified: for passes that a model can do without.
`OriginalGraph` records the graph, which is then edited in place, and puts it back: for the passes of a whole pipeline,
where a copy would cost six times as much as the record.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from farskip_compile._compat.modules import child_names
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.runner import PassRunner


class GraphCopy:
    """A copy of the graph of `module`, which passes edit; dropped unless `verify_and_swap` is called."""

    def __init__(self, module: fx.GraphModule, stage: Stage) -> None:
        self.before = GraphSnapshot(module.graph)
        """The graph as it was."""
        self.graph = self.before.restore()
        self.graph.owning_module = module
        self.passes = PassRunner(stage, self.graph)
        self._module = module

    def verify_and_swap(self, check: Callable[[fx.Graph, GraphSnapshot], object]) -> None:
        """Call `check(graph, before)`, which raises unless the copy is right, and make it the graph of the module."""
        self.passes.verify(check, self.graph, self.before)
        self.passes.finish()
        self._module.graph = self.graph


class OriginalGraph:
    """The graph and the submodules of `module` as they were before passes edited them in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.snapshot = GraphSnapshot(module.graph)
        self._module = module
        self._children = child_names(module)

    def put_back(self) -> None:
        """Restore the graph, and delete the submodules that passes added."""
        self._module.graph = self.snapshot.restore()
        for name in child_names(self._module) - self._children:
            delattr(self._module, name)
