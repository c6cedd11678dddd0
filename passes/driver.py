# SPDX-License-Identifier: Apache-2.0
"""Run passes in the order of their table: timed, checked, logged and traced.

In:    the table, a stage, and facts: what its first passes take.
Out:   `facts`: the same and what the passes provide; `seconds` of each.
Never: chooses an order; runs a pass whose needs are not met; delivers what was not verified.

Algorithm, for each pass up to the one asked for:
1. Check that everything it takes and requires is there.
2. Call its function, and take the time.
3. Check that it has delivered what it provides. A graph that it edited is linted before that is verified.
4. Log one line at DEBUG, and write the graph before and after to the structured trace (`TORCH_TRACE`), each state once.

What is not a pass, because nobody may leave it out, goes through `step` or `verify` and shows in the same log.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from farskip_compile._compat import inductor, is_tracing, trace_artifact
from farskip_compile.errors import VerificationError
from farskip_compile.passes.contract import Pass, Stage
from farskip_compile.passes.graph import ops

log = logging.getLogger("farskip_compile")

T = TypeVar("T")


class Driver:
    """One run of the passes of one stage on `facts`: `graph` or `kernels`, and what they take besides."""

    def __init__(
        self, passes: Sequence[Pass], stage: Stage, facts: Mapping[str, Any], skip: Collection[str] = ()
    ) -> None:
        self.facts = dict(facts)
        self.seconds: dict[str, float] = {}
        self._left = [(number, one) for number, one in enumerate(passes, 1) if one.stage is stage]
        self.skip = set(skip)
        self._unverified: list[str] = []
        self._traced = ""

    def run(self, through: str | None = None) -> bool:
        """Run the passes that are left: through the one called `through`, or all. False if one of them declined."""
        if through is not None and all(one.name != through for _, one in self._left):
            raise _defect(f"no pass called {through} is left to run")
        while self._left:
            number, one = self._left.pop(0)
            if one.name not in self.skip and not self._run(number, one):
                return False
            if one.name == through:
                break
        return True

    def step(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)`, which is not a pass."""
        before = self._operators()
        result = self._timed(name, function, args)
        self._log("--", name, before)
        if self._traced:
            self._trace(f"farskip_{name}_after")
        return result

    def verify(self, check: Callable[..., T], *args: Any) -> T:
        """Call `check(*args)`, which raises unless all that was done so far is right; lint a graph that was edited."""
        if self._unverified and "graph" in self.facts:
            self.facts["graph"].lint()
        result = self.step("verify", check, *args)
        self._unverified.clear()
        return result

    def finish(self) -> None:
        """To be called before the result is used.

        Raises:
            VerificationError: a pass that must be verified ran after the last verification.
        """
        if self._unverified:
            raise _defect(f"what {', '.join(self._unverified)} made was not verified")

    def _run(self, number: int, one: Pass) -> bool:
        missing = [name for name in (*one.takes, *one.requires) if name not in self.facts]
        if missing:
            raise _defect(f"the pass {one.name} needs {', '.join(missing)}, which no earlier pass provides")
        self._trace(f"farskip_{number:02}_{one.name}_before")
        before = self._operators()
        result = self._timed(one.name, one.load(), [self.facts[name] for name in one.takes])
        declines = result is None and one.may_decline
        if not declines:
            self._take_delivery(one, result)
        self._log(f"{number:02}", one.name, before)
        self._trace(f"farskip_{number:02}_{one.name}_after")
        return not declines

    def _take_delivery(self, one: Pass, result: Any) -> None:
        values = result if isinstance(result, tuple) and len(one.provides) > 1 else (result,)
        if one.provides and (len(values) != len(one.provides) or any(value is None for value in values)):
            raise _defect(f"the pass {one.name} did not deliver {', '.join(one.provides)}")
        self.facts.update(zip(one.provides, values, strict=False))
        if one.changes.must_be_verified:
            self._unverified.append(one.name)

    def _timed(self, name: str, function: Callable[..., T], args: Sequence[Any]) -> T:
        start = time.perf_counter()
        result = function(*args)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def _log(self, number: str, name: str, before: Sequence[str]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s: %s, %.4f s", number, name, difference(before, self._operators()), self.seconds[name])

    def _operators(self) -> list[str]:
        """For the log: the operator of each node, in order; kernels go by their names."""
        return self._names() if log.isEnabledFor(logging.DEBUG) else []

    def _names(self) -> list[str]:
        if "graph" in self.facts:
            return [ops.op_name(node) or node.op for node in self.facts["graph"].nodes]
        return [inductor.kernel_name(kernel) for kernel in self.facts["kernels"]]

    def _trace(self, name: str) -> None:
        if not is_tracing():
            return
        text = str(self.facts["graph"]) if "graph" in self.facts else "\n".join(self._names())
        if text != self._traced:
            self._traced = text
            trace_artifact(name, lambda: text, encoding="string")


def difference(before: Sequence[str], after: Sequence[str]) -> str:
    """What changed, in words: nodes before and after, and how many of each operator came and went."""
    size = f"{len(before)} -> {len(after)}"
    old, new = Counter(before), Counter(after)
    changes = [f"{new[name] - old[name]:+} {name}" for name in {**old, **new} if new[name] != old[name]]
    if changes:
        return f"{size} ({', '.join(changes)})"
    return f"{size} ({'unchanged' if list(before) == list(after) else 'another order'})"


def _defect(reason: str) -> VerificationError:
    return VerificationError(reason, way_out="please report this: it is a defect of farskip-compile")
