# SPDX-License-Identifier: Apache-2.0
"""How a fault is applied and judged.

Every fault must show that it is one, and every checker that it lets pass what is right:
- a fault in a rewired graph (`in_graph`) must change what the graph computes, and is judged by `verify`;
- a fault in a pass (`in_pass`: one line of its source is changed) must change what a model computes; it is judged by
  the `verify` of the compile, and, where that believes the pass, by `farskip_compile.testing`;
- a fault in a scheduled graph or in a pass of the scheduler is judged by what `schedule_post_grad` checks itself
  (`tests.mutation.order_bench`).
A judge returns a `Verdict`, or None if nobody has noticed the fault.
"""

from __future__ import annotations
import __future__

import copy
import functools
import inspect
import operator
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx

from farskip_compile import FarSkipConfig, backend, testing
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import UnsupportedPatternError, VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.merge_reductions import merge_reductions
from farskip_compile.passes.rewire.request import ask
from farskip_compile.verify.rewiring import Verified, WiringSnapshot, snapshot, verify
from tests.mutation.models import PLAIN, Base


@dataclass(frozen=True)
class Verdict:
    """Who has noticed a fault, and the first line of what it said."""

    by: str
    message: str

    @classmethod
    def of(cls, by: str, error: BaseException) -> Verdict:
        text = str(error).splitlines()
        return cls(by, text[0] if text else type(error).__name__)


@dataclass(frozen=True)
class Fault:
    """One row of the kill table."""

    name: str
    where: str
    judge: Callable[[], Verdict | None]


# Graphs


@dataclass
class Rewired:
    """A graph that was rewired, and what is needed to break it: nodes by term and by value."""

    module: fx.GraphModule
    wanted: Table
    before: WiringSnapshot
    found: Reading

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def root(self) -> fx.Node:
        return self.found.stream.root

    def leaf(self, term: str) -> fx.Node:
        return self.found.leaf(self.found.table.term(term).index)

    def core(self, term: str) -> fx.Node:
        return self.found.stream.cores[self.found.table.term(term).index]

    def value(self, terms: str) -> fx.Node:
        """The residual value that holds exactly these terms."""
        wanted = TermSet.of(self.found.table.term(name).index for name in terms.split())
        return next(node for node, held in self.found.stream.values.items() if held == wanted)

    def owned(self, row: str) -> list[fx.Node]:
        """Nodes of a sub-block, in order."""
        owned = {node for i in self.found.table.row(row).terms for node in self.found.regions[i].owned}
        return [node for node in self.graph.nodes if node in owned]

    def calls(self, name: str, row: str | None = None) -> list[fx.Node]:
        """Nodes that call an operator, by canonical name."""
        return [node for node in (self.owned(row) if row else self.graph.nodes) if ops.op_name(node) == name]

    def readers(self, row: str) -> list[tuple[fx.Node, fx.Node]]:
        """(node, residual value) for each edge through which `row` reads."""
        values = self.found.stream.values
        return [(node, arg) for node in self.owned(row) for arg in node.args if arg in values]

    def redirect(self, row: str, value: fx.Node) -> None:
        """Let `row` read `value` instead."""
        edges = self.readers(row)
        assert edges
        assert all(old is not value for _, old in edges)
        for node, old in edges:
            node.replace_input_with(old, value)

    def plus(self, left: fx.Node, right: fx.Node, behind: fx.Node) -> fx.Node:
        return self.call(operator.add, (left, right), behind)

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], behind: fx.Node) -> fx.Node:
        """A new node of the shape of `behind`."""
        with self.graph.inserting_after(behind):
            new = self.graph.call_function(target, args)
        new.meta["example_value"] = behind.meta["example_value"].clone()
        return new

    def copy(self, node: fx.Node, instead: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same call on other inputs, behind all of them."""
        last = max([node, *instead.values()], key=list(self.graph.nodes).index)
        with self.graph.inserting_after(last):
            new = self.graph.node_copy(node, lambda arg: instead.get(arg, arg))
        new.meta["example_value"] = node.meta["example_value"].clone()
        return new

    def verify(self) -> Verified:
        sort(self.graph)
        self.graph.lint()
        return verify(self.module, self.wanted, self.before)


def sort(graph: fx.Graph) -> None:
    """Stable topological order, so that a fault is a wrong graph and not an invalid one."""
    placed: set[fx.Node] = set()
    waiting = list(graph.nodes)
    last = graph._root
    while waiting:
        node = next(node for node in waiting if all(arg in placed for arg in node.all_input_nodes))
        waiting.remove(node)
        placed.add(node)
        last.append(node)
        last = node


@functools.cache
def captured(base: Base) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    """What Dynamo makes of a model, and everything that the graph is called with."""
    found: list[Any] = []

    def keep(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found.extend((module, args))
            raise _Stop

        return call

    torch.compiler.reset()
    model = base.make()
    model.train(base.training)
    for index, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:  # norms: no two may be alike, or exchanging them would be no fault
            parameter.data = parameter.data + torch.linspace(-0.1, 0.1, len(parameter), dtype=parameter.dtype) * index
    with fake_ranks_if(base.reduces), torch.set_grad_enabled(base.training), suppress(_Stop):
        torch.compile(model, backend=keep, fullgraph=True)(*base.inputs())
    torch.compiler.reset()
    module, args = found
    return module, tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)


class _Stop(BaseException):
    pass


def fake_ranks_if(needed: bool) -> Any:
    return testing.fake_ranks(2) if needed else nullcontext()


def fresh(base: Base) -> fx.GraphModule:
    """A copy of the captured graph."""
    module, _ = captured(base)
    return fx.GraphModule(module, copy.deepcopy(module.graph))


def rewired(base: Base = PLAIN, wish: Any = "full", layers: Any = None, merge: bool = False) -> Rewired:
    """The graph of a model, rewired and verified."""
    module = fresh(base)
    normalize(module)
    reading = read_table(module.graph)
    request = ask(reading.table, wish, layers)
    wanted, before = request.wanted(reading.table), snapshot(reading)
    rewire(module, reading, request)
    if merge:
        assert merge_reductions(module, wish)
    verify(module, wanted, before)
    found = read_table(module.graph)
    assert found is not None
    return Rewired(module, wanted, before, found)


class Simulated(fx.Interpreter):
    """Runs a graph on two ranks that hold the same."""

    def run_node(self, n: fx.Node) -> Any:
        if comms.is_wait(n):
            return self.env[n.args[0]]
        if comms.is_collective(n):
            value, reduction = self.env[n.args[0]], n.args[1]
            return {"sum": value * 2, "avg": value.clone(), "max": value.clone()}[reduction]
        return super().run_node(n)


def numbers(module: fx.GraphModule, base: Base) -> list[torch.Tensor]:
    """What a graph computes: its outputs, and its inputs as it leaves them."""
    _, inputs = captured(base)
    given = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in inputs]
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = Simulated(module).run(*given)
    return [value.detach() for value in (*outputs, *given) if isinstance(value, torch.Tensor)]


def differ(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) != len(right) or any(
        a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(left, right, strict=True)
    )


def code(graph: fx.Graph) -> list[str]:
    return [f"{node.name} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]


def in_graph(
    name: str,
    break_it: Callable[[Rewired], None],
    base: Base = PLAIN,
    *,
    wish: Any = "full",
    layers: Any = None,
    merge: bool = False,
    same_numbers: bool = False,
) -> Fault:
    """A fault in a rewired graph.

    Args:
        name: for the table.
        break_it: plants it.
        base: the model.
        wish: the connectivity that it is rewired to.
        layers: the same.
        merge: with `merge_reductions`.
        same_numbers: what it computes is right when it is run operator by operator; wrong is what may become of it.
    """

    def judge() -> Verdict | None:
        graph = rewired(base, wish, layers, merge)
        right, was = numbers(graph.module, base), code(graph.graph)
        break_it(graph)
        sort(graph.graph)
        assert code(graph.graph) != was, "the fault has changed nothing"
        assert same_numbers or differ(numbers(graph.module, base), right), "an equivalent mutant"
        try:
            graph.verify()
        except VerificationError as error:
            return Verdict.of("verify", error)
        return None

    return Fault(name, "rewired graph", judge)


# Passes


@contextmanager
def mutated(function: Callable[..., Any], old: str, new: str) -> Iterator[None]:
    """Within the block one place in the source of `function` is another, wherever the function is used."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} holds {source.count(old)} times: {old}"
    made: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(old, new), f"<a fault in {function.__qualname__}>", "exec", flags)
    exec(code, function.__globals__, made)
    mutant = made[function.__name__]
    with ExitStack() as stack:
        owner = sys.modules[function.__module__]
        for part in function.__qualname__.split(".")[:-1]:
            owner = getattr(owner, part)
        holders = [owner] if inspect.isclass(owner) else [
            module for name, module in list(sys.modules.items()) if name.split(".")[0] == "farskip_compile"
        ]  # fmt: skip
        places = [(one, name) for one in holders for name, value in list(vars(one).items()) if value is function]
        assert places
        for one, name in places:
            stack.enter_context(mock.patch.object(one, name, mutant))
        yield


def in_pass(
    name: str,
    function: Callable[..., Any],
    old: str,
    new: str,
    base: Base = PLAIN,
    *,
    wish: Any = "full",
    layers: Any = None,
    merge: bool = False,
) -> Fault:
    """A fault in a pass: `old` is replaced by `new` in the source of `function`."""

    def judge() -> Verdict | None:
        options: dict[str, Any] = {"connectivity": wish, "layers": layers, "merge_reductions": merge, "inner": "eager"}
        config = FarSkipConfig(**options)
        right, wrong = fresh(base), fresh(base)
        with fake_ranks_if(base.reduces), torch.set_grad_enabled(base.training):
            run(right, config)
            with mutated(function, old, new):
                try:
                    run(wrong, config)
                except (VerificationError, UnsupportedPatternError) as error:  # by `rewiring`, or by the account
                    return Verdict.of("verify", error)
                assert differ(numbers(wrong, base), numbers(right, base)), "an equivalent mutant"
                return judged_by_testing(base, wish, layers)

    return Fault(name, f"{function.__module__.rpartition('.')[2]}.{function.__name__}", judge)


def judged_by_testing(base: Base, wish: Any, layers: Any) -> Verdict | None:
    """What `farskip_compile.testing` says of a model as it is compiled now."""
    model = base.make()
    model.train(base.training)
    try:
        testing.assert_rewired(model, *base.inputs(), connectivity=wish, layers=layers)
    except AssertionError as error:
        return Verdict.of("testing", error)
    if base.by_hand is None or (wish, layers) != ("full", None):
        return None
    compiled = torch.compile(model, backend=backend(inner="eager"), fullgraph=True)
    try:
        testing.assert_equivalent(compiled, base.by_hand(), *base.inputs(), tolerance=1e-9)
    except AssertionError as error:
        return Verdict.of("testing (oracle)", error)
    return None
