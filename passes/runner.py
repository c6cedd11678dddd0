# SPDX-License-Identifier: Apache-2.0
"""Run passes on one graph, or on its kernels: timed, checked, logged and traced.

In:    plain functions with their arguments, called one after another: a pass by its name in `PASSES`, or a step.
Out:   what the function returns, and the seconds that each took.
Never: runs a pass that is disabled, out of the order of `PASSES`, or without the passes that it requires; delivers a
       graph that was changed and not verified.

The log has one line at DEBUG for each pass and step. The structured trace (`TORCH_TRACE`) has each state of the graph
once. A step is what is no pass, because nobody may leave it out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import ParamSpec, TypeVar

from torch import fx

from farskip_compile._compat import inductor, is_tracing, trace_artifact
from farskip_compile.errors import VerificationError
from farskip_compile.passes.contract import PASSES, Pass, Stage
from farskip_compile.passes.graph import ops

log = logging.getLogger("farskip_compile")

P = ParamSpec("P")
T = TypeVar("T")
PassSubject = fx.GraphModule | fx.Graph | Sequence[inductor.Kernel]
"""The program that passes edit: a module, whose graph they may replace, a graph, or kernels."""


class PassRunner:
    """One run of the passes of one stage on one program."""

    def __init__(
        self,
        stage: Stage,
        subject: PassSubject,
        disabled: Collection[str] = (),
        *,
        passes: Sequence[Pass] = PASSES,
    ) -> None:
        self.seconds: dict[str, float] = {}
        """Wall time by name of the pass or step; added up over those of one name."""
        self._stage = stage
        self._subject = subject
        self._disabled = disabled
        self._passes = passes
        self._done: list[str] = []
        """Names of the passes that ran."""
        self._last_place = 0
        """Place in the table of the last pass that ran."""
        self._unverified: list[str] = []
        """Names of the passes whose result nothing has verified."""
        self._traced = ""
        """The state of the program that was traced last."""

    def is_enabled(self, name: str) -> bool:
        """Return whether the pass called `name` is to run; False if `disable_passes` names it."""
        return name not in self._disabled

    def apply(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the pass called `name`, which is `function(*args, **kwargs)`.

        Raises:
            VerificationError: this package runs a pass that may not run here.
        """
        place, one = self._found(name)
        self._check_may_run(place, one)
        self._trace(f"farskip_{place:02}_{name}_before")
        before = self._operators()
        result = self._timed(name, function, *args, **kwargs)
        self._done.append(name)
        self._last_place = place
        if one.changes.must_be_verified:
            self._unverified.append(name)
        self._log(f"{place:02}", name, before)
        self._trace(f"farskip_{place:02}_{name}_after")
        return result

    def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function(*args, **kwargs)`, which is not a pass."""
        before = self._operators()
        result = self._timed(name, function, *args, **kwargs)
        self._log("--", name, before)
        if self._traced:
            self._trace(f"farskip_{name}_after")
        return result

    def verify(self, check: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Lint the graph if passes changed it, and call `check`, which raises unless all of that was right."""
        graph = self._graph()
        if self._unverified and graph is not None:
            graph.lint()
        result = self.step("verify", check, *args, **kwargs)
        self._unverified.clear()
        return result

    def finish(self) -> None:
        """Refuse to deliver the program unless it was verified.

        Raises:
            VerificationError: a pass that must be verified ran after the last verification.
        """
        if self._unverified:
            raise _defect(f"what {', '.join(self._unverified)} made was not verified")

    def _found(self, name: str) -> tuple[int, Pass]:
        for place, one in enumerate(self._passes, 1):
            if one.name == name and one.stage is self._stage:
                return place, one
        raise _defect(f"the {self._stage} has no pass called {name}")

    def _check_may_run(self, place: int, one: Pass) -> None:
        if not self.is_enabled(one.name):
            raise _defect(f"the pass {one.name} is disabled")
        if place <= self._last_place:
            raise _defect(f"the pass {one.name} does not come after {self._done[-1]}")
        missing = [name for name in one.requires if name not in self._done]
        if missing:
            raise _defect(f"the pass {one.name} needs {', '.join(missing)}, which did not run")

    def _timed(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def _log(self, number: str, name: str, before: Sequence[str]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s: %s, %.4f s", number, name, difference(before, self._operators()), self.seconds[name])

    def _graph(self) -> fx.Graph | None:
        """Return the graph as it is now; None if the program is kernels."""
        if isinstance(self._subject, fx.GraphModule):
            return self._subject.graph
        return self._subject if isinstance(self._subject, fx.Graph) else None

    def _operators(self) -> list[str]:
        """Return the names to log: the operator of each node, in order, or the kernels; none if nothing is logged."""
        return self._names() if log.isEnabledFor(logging.DEBUG) else []

    def _names(self) -> list[str]:
        graph = self._graph()
        if graph is not None:
            return [ops.op_name(node) or node.op for node in graph.nodes]
        assert not isinstance(self._subject, fx.GraphModule | fx.Graph)
        return [inductor.kernel_name(kernel) for kernel in self._subject]

    def _trace(self, name: str) -> None:
        if not is_tracing():
            return
        graph = self._graph()
        text = str(graph) if graph is not None else "\n".join(self._names())
        if text != self._traced:
            self._traced = text
            trace_artifact(name, lambda: text, encoding="string")


def difference(before: Sequence[str], after: Sequence[str]) -> str:
    """Return how many nodes there were and are, and how many of each operator came and went."""
    size = f"{len(before)} -> {len(after)}"
    old, new = Counter(before), Counter(after)
    changes = [f"{new[name] - old[name]:+} {name}" for name in {**old, **new} if new[name] != old[name]]
    if changes:
        return f"{size} ({', '.join(changes)})"
    return f"{size} ({'unchanged' if list(before) == list(after) else 'another order'})"


def _defect(reason: str) -> VerificationError:
    return VerificationError(reason, way_out="please report this: it is a defect of farskip-compile")
