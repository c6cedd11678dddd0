# SPDX-License-Identifier: Apache-2.0
"""Proof of the rewiring: read what the graph is wired like once more, and that it still computes all else.

Contract: runs after every compile. Uses graphs only (never a record of what `rewire` meant to do), and changes nothing.
Linear in the graph.

Algorithm: the stream and its regions are read again. A term is identified by its core, the node below its linear ops,
and what it uses beside the stream by name; rewiring keeps both. What must hold:
1. The final sum holds the terms that it held, each once.
2. For each term: its region reads the set of terms that was asked for.
3. Whatever reads the stream and is not a sub-block (the final norm, returned hidden states) reads the same terms as
   before.
4. What is done besides computing a value (writes to caches, random numbers, checks) is done once, in the old order.
5. Every value has a number (`values`): the one that follows from the graph before and from the terms that are left out
   (`expected`). That shows the rest: coefficients, masks and weights that a sub-block uses, when it reads a cache,
   what is returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from farskip_compile.errors import FarSkipError, VerificationError, Where
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.regions import SideChannels, reads
from farskip_compile.passes.residual.stack import Stack, read_stack
from farskip_compile.passes.residual.table import SubBlock, Table
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.text_utils import amount
from farskip_compile.verify.expected import Expected, Wiring, read_wiring
from farskip_compile.verify.steps import NumberedGraph, NumberedStep, evaluate
from farskip_compile.verify.values import read_steps

Translation = Callable[[TermSet], TermSet]
"""From the numbers of terms in one table to their numbers in another one."""


@dataclass(frozen=True)
class Verified:
    """A graph that is wired as it was asked for."""

    table: Table
    """The table asked for, with the reads and the final sum that the graph shows."""
    stack: Stack
    """What was read from the graph."""
    names: tuple[str, ...]
    """Names of its terms, by their index in `stack`."""


@dataclass(frozen=True)
class WiringSnapshot:
    """What rewiring must keep, by node name; taken before it."""

    cores: tuple[str, ...]
    """The node that identifies each term, by term index."""
    outside: Mapping[str, tuple[TermSet, ...]]
    """Terms of each residual value that a reader outside of all sub-blocks reads."""
    wiring: Wiring
    """The whole graph."""
    side_channels: SideChannels
    """What the terms use beside the stream."""


def snapshot(reading: Reading) -> WiringSnapshot:
    """Record what rewiring must keep of the graph of `reading`."""
    return WiringSnapshot(_cores(reading), _outside(reading), read_wiring(reading), reading.side_channels())


def _cores(stack: Stack) -> tuple[str, ...]:
    return tuple(core.name for core in stack.stream.cores)


def _translation(numbers: Sequence[int]) -> Translation:
    if list(numbers) == list(range(len(numbers))):
        return lambda terms: terms
    return lambda terms: TermSet.of(numbers[index] for index in terms)


def _outside(stack: Stack) -> dict[str, tuple[TermSet, ...]]:
    stream = stack.stream
    owned = {node for region in stack.regions for node in region.owned}
    readers = {user for value in stream.values for user in value.users} - owned
    return {
        node.name: tuple(stream.values[arg] for arg in node.all_input_nodes if stream.is_residual(arg))
        for node in sorted(readers, key=stream.order.__getitem__)
        if not stream.terms_of(node)
    }


def verify(module: fx.GraphModule, wanted: Table, before: WiringSnapshot) -> Verified:
    """Check that the wiring of `module` is `wanted`, and that all else is as `before`, in the graph it was made for.

    Raises:
        VerificationError: naming the first differing row and the terms in question, or the first value that differs.
    """
    try:
        stack = read_stack(module.graph, before.side_channels)
    except FarSkipError as error:
        raise _error(f"the rewired graph can't be read: {error.reason}", error.where) from error
    if stack is None:
        raise _error("the rewired graph no longer has a residual stack")
    numbers = _compare_sum(stack, before)
    translate = _translation(numbers)
    rows = _compare_reads(stack, wanted, numbers, translate)
    _compare_outside(stack, before, translate)
    program = read_steps(stack.stream.flow)
    _compare_effects(program, before.wiring.program)
    _compare_values(program, stack, wanted, before.wiring)
    return Verified(replace(wanted, rows=rows), stack, tuple(wanted.terms[number].name for number in numbers))


def _compare_sum(stack: Stack, before: WiringSnapshot) -> list[int]:
    """Law 1; returns the number that each term had before."""
    index_of = {name: index for index, name in enumerate(before.cores)}
    cores = _cores(stack)
    unknown = [name for name in cores if name not in index_of]
    if unknown or len(cores) != len(before.cores):
        raise _error(
            f"the residual sum holds {amount(len(cores), 'term')} and should hold {len(before.cores)}"
            + (f"; unknown: {unknown[:5]}" if unknown else "")
        )
    return [index_of[name] for name in cores]


def _compare_reads(stack: Stack, wanted: Table, numbers: Sequence[int], translate: Translation) -> tuple[SubBlock, ...]:
    """Law 2; returns the rows with what each is seen to read."""
    row_of = {index: row for row in wanted.rows for index in row.terms}
    shown: dict[str, TermSet] = {}
    for index, (number, region) in enumerate(zip(numbers, stack.regions, strict=True)):
        row = row_of.get(number)
        found = translate(reads(stack.stream, region)) if region.owned else TermSet()
        should = row.reads if row is not None else TermSet()
        if found != should:
            name = row.name if row is not None else wanted.terms[number].name
            extra, missing = (wanted.names(found - should), wanted.names(should - found))
            raise _error(
                f"{name} reads {extra or 'nothing'} that it should not, and misses {missing or 'nothing'}",
                stack.place(index, row.layer if row is not None else None),
            )
        if row is not None:
            shown[row.name] = found
    return tuple(replace(row, reads=shown[row.name]) for row in wanted.rows)


def _compare_outside(stack: Stack, before: WiringSnapshot, translate: Translation) -> None:
    """Law 3."""
    after = _outside(stack)
    for name in {**before.outside, **after}:
        if tuple(map(translate, after.get(name, ()))) != before.outside.get(name, ()):
            what = "which is not part of a sub-block, no longer reads the residual values that it read"
            raise _error(f"{name!r}, {what}", Where(node=name))


def _compare_effects(program: NumberedGraph, before: NumberedGraph) -> None:
    """Law 4."""
    now, then = program.effect_names(), before.effect_names()
    if now == then:
        return
    lost, new = Counter(then) - Counter(now), Counter(now) - Counter(then)
    name = next(iter(lost or new), None) or next(name for name, old in zip(now, then, strict=True) if name != old)
    what = "is no longer done" if lost else "was not there before" if new else "is done in another order than before"
    does = "which does more than compute a value (a write, a random number, a check)"
    raise _error(f"{name!r}, {does}, {what}", Where(node=name))


def _compare_values(program: NumberedGraph, stack: Stack, wanted: Table, before: Wiring) -> None:
    """Law 5."""
    left_out = {row.name: gone for row in wanted.rows if (gone := before.reads[row.name] - row.reads)}
    expected = Expected(before, left_out)
    numbers = evaluate(program.steps)
    for place, step in enumerate(program.steps):
        old = before.place_of.get(step.name)
        if old is None or numbers[place] in expected.numbers[old]:
            continue
        node = stack.stream.flow.nodes[place]
        owner = next((row for row in wanted.rows if row.name == before.owner.get(old)), None)
        whose = f"{owner.name}: " if owner is not None else ""
        wrong = [numbers[new] != number for new, number in zip(step.inputs, expected.read(old), strict=False)]
        raise _error(
            f"{whose}{step.name!r} ({ops.op_name(node) or node.op}) does not have the value asked for: "
            + _difference(program, step, before, before.program.steps[old], wrong),
            user_calls.where(node, owner.layer if owner is not None else None),
        )


def _difference(
    program: NumberedGraph, step: NumberedStep, before: Wiring, old: NumberedStep, wrong: Sequence[bool]
) -> str:
    """Why a value differs: its wrong inputs are new nodes, or replace another node."""
    if (step.rule, step.key, step.weights) != (old.rule, old.key, old.weights):
        return "it is another operator, or has other constants, than before"
    pairs = zip(step.inputs, old.inputs, wrong, strict=True)
    differing = [(program.steps[new].name, before.program.steps[then].name) for new, then, bad in pairs if bad]
    if not differing:
        return "it reads memory before or after another write, or draws random numbers in another order"
    new, name = differing[0]
    if new in before.place_of:
        return f"it reads {new!r} in place of {name!r}"
    return f"{new!r}, which it reads in place of {name!r}, has terms with another coefficient, or other inputs"


def _error(reason: str, where: Where | None = None) -> VerificationError:
    way_out = "nothing was compiled; please report this with the output of `farskip explain`. It is a defect of "
    return VerificationError(reason, way_out=f"{way_out}farskip-compile", where=where)
