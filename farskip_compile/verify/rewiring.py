"""Proof of the rewiring: the graph says once more what it is wired like, and that it still computes the rest.

Contract: runs after every compile. Uses graphs only (never a record of what `rewire` meant to do), and changes nothing.
Linear in the graph.

Algorithm, three comparisons:
1. The stream and its regions are read off again. A term is identified by the node below its linear ops, and what it
   uses beside the stream by name; rewiring keeps both. For each term: the set of terms that its region reads must be
   the one asked for. The final sum must hold every term exactly once. Whatever reads the stream and is no sub-block
   (the final norm, returned hidden states) must read the same terms as before.
2. What is done besides computing a value (writes to caches, random numbers, checks) must be done once, in old order.
3. Every value has a number (`values`), and must have the one that follows from the graph before and from the terms
   that are left out (`expected`). That shows the rest: coefficients, masks and weights that a sub-block uses, when
   it reads a cache, what is returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from farskip_compile.errors import FarSkipError, VerificationError, Where
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.regions import SideChannels, reads
from farskip_compile.passes.residual.stack import Stack, read_stack
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.text_utils import amount
from farskip_compile.verify.expected import Wanted, Wiring, read_wiring
from farskip_compile.verify.values import Step, Steps, evaluate, read_steps


@dataclass(frozen=True)
class Verified:
    """A graph that is wired as it was asked for."""

    table: Table
    """The table asked for, with the reads and the final sum that the graph shows."""
    stack: Stack
    """What was read off the graph."""
    names: tuple[str, ...]
    """Of its terms, by their index in `stack`."""


@dataclass(frozen=True)
class Snapshot:
    """What rewiring must keep, by node name; taken before it."""

    cores: tuple[str, ...]
    """The node that identifies each term, by term index."""
    outside: Mapping[str, tuple[TermSet, ...]]
    """Terms of each residual value that a reader outside of all sub-blocks reads."""
    wiring: Wiring
    """The whole graph."""
    side_channels: SideChannels
    """What the terms use beside the stream."""


def snapshot(reading: Reading) -> Snapshot:
    """Record what rewiring must keep of the graph of `reading`."""
    return Snapshot(_cores(reading), _outside(reading), read_wiring(reading), reading.side_channels())


def _cores(stack: Stack) -> tuple[str, ...]:
    return tuple(core.name for core in stack.stream.cores)


def _translation(numbers: Sequence[int]) -> Callable[[TermSet], TermSet]:
    """From terms as they are numbered in one table to another one's numbers for them."""
    if list(numbers) == list(range(len(numbers))):
        return lambda terms: terms
    return lambda terms: TermSet.of(numbers[index] for index in terms)


def _outside(stack: Stack) -> dict[str, tuple[TermSet, ...]]:
    stream = stack.stream
    known = {node for region in stack.regions for node in region.owned} | set(stream.tree) | set(stream.partial)
    outside: dict[str, tuple[TermSet, ...]] = {}
    for node in stream.order:
        held = tuple(stream.values[arg] for arg in node.all_input_nodes if arg in stream.values)
        if held and node not in known:
            outside[node.name] = held
    return outside


def verify(module: fx.GraphModule, wanted: Table, before: Snapshot) -> Verified:
    """Check that the wiring of `module` is `wanted`, and that nothing else has changed.

    Args:
        module: the graph to check.
        wanted: the table that it must have.
        before: what must be as it was, from the graph that `wanted` was made for.

    Raises:
        VerificationError: naming the first differing row and the terms in question, or the first value that differs.
    """
    try:
        stack = read_stack(module.graph, before.side_channels)
    except FarSkipError as error:
        raise VerificationError(
            f"the rewired graph can't be read: {error.reason}", way_out=_REPORT, where=error.where
        ) from error
    if stack is None:
        raise VerificationError("the rewired graph has no residual stack any more", way_out=_REPORT)
    found = _compare_terms(stack, wanted, before)
    program = read_steps(stack.stream.flow)
    _compare_effects(program, before.wiring.program)
    _compare_values(program, stack, wanted, before.wiring)
    return found


def _compare_terms(stack: Stack, wanted: Table, before: Snapshot) -> Verified:
    index_of = {name: index for index, name in enumerate(before.cores)}
    cores = _cores(stack)
    unknown = [name for name in cores if name not in index_of]
    if unknown or len(cores) != len(before.cores):
        raise VerificationError(
            f"the residual sum holds {amount(len(cores), 'term')} and should hold {len(before.cores)}"
            + (f"; unknown: {unknown[:5]}" if unknown else ""),
            way_out=_REPORT,
        )
    numbers = [index_of[name] for name in cores]
    translate = _translation(numbers)
    row_of = {index: row for row in wanted.rows for index in row.terms}
    shown: dict[str, TermSet] = {}
    for index, (number, region) in enumerate(zip(numbers, stack.regions, strict=True)):
        row = row_of.get(number)
        is_read = translate(reads(stack.stream, region)) if region.owned else TermSet()
        should = row.reads if row is not None else TermSet()
        if is_read != should:
            name = row.name if row is not None else wanted.terms[number].name
            extra, missing = (wanted.names(is_read - should), wanted.names(should - is_read))
            raise VerificationError(
                f"{name} reads {extra or 'nothing'} that it should not, and misses {missing or 'nothing'}",
                way_out=_REPORT,
                where=stack.place(index, row.layer if row is not None else None),
            )
        if row is not None:
            shown[row.name] = is_read
    final = translate(stack.stream.tree[stack.stream.root])
    if final != wanted.everything:
        missing = wanted.names(wanted.everything - final)
        raise VerificationError(f"the final hidden state misses {missing}", way_out=_REPORT)
    after = _outside(stack)
    for name in {**before.outside, **after}:
        if tuple(map(translate, after.get(name, ()))) != before.outside.get(name, ()):
            raise VerificationError(
                f"{name!r}, which is no part of a sub-block, no longer reads the residual values that it read",
                way_out=_REPORT,
                where=Where(node=name),
            )
    rows = tuple(replace(row, reads=shown[row.name]) for row in wanted.rows)
    table = replace(wanted, rows=rows)
    return Verified(table, stack, tuple(wanted.terms[number].name for number in numbers))


def _compare_effects(program: Steps, before: Steps) -> None:
    now, then = program.effect_names(), before.effect_names()
    if now == then:
        return
    lost, new = Counter(then) - Counter(now), Counter(now) - Counter(then)
    name = next(iter(lost or new), None) or next(name for name, old in zip(now, then, strict=True) if name != old)
    what = "is not done any more" if lost else "was not there before" if new else "is done in another order than before"
    raise VerificationError(
        f"{name!r}, which does more than compute a value (a write, a random number, a check), {what}",
        way_out=_REPORT,
        where=Where(node=name),
    )


def _compare_values(program: Steps, stack: Stack, wanted: Table, before: Wiring) -> None:
    left_out = {row.name: gone for row in wanted.rows if (gone := before.reads[row.name] - row.reads)}
    expected = Wanted(before, left_out)
    numbers = evaluate(program.steps)
    for place, step in enumerate(program.steps):
        old = before.place_of.get(step.name)
        if old is None or numbers[place] in expected.numbers[old]:
            continue
        node = stack.stream.flow.nodes[place]
        owner = next((row for row in wanted.rows if row.name == before.owner.get(old)), None)
        whose = f"{owner.name}: " if owner is not None else ""
        wrong = [numbers[new] != number for new, number in zip(step.inputs, expected.read(old), strict=False)]
        raise VerificationError(
            f"{whose}{step.name!r} ({ops.op_name(node) or node.op}) does not have the value asked for: "
            + _difference(program, step, before, before.program.steps[old], wrong),
            way_out=_REPORT,
            where=ops.where(node, owner.layer if owner is not None else None),
        )


def _difference(program: Steps, step: Step, before: Wiring, old: Step, wrong: Sequence[bool]) -> str:
    """Why a value differs: those of its inputs that are wrong are new nodes, or stand where another node stood."""
    if (step.rule, step.key, step.weights) != (old.rule, old.key, old.weights):
        return "it is another operator, or has other constants, than before"
    pairs = zip(step.inputs, old.inputs, wrong, strict=True)
    differing = [(program.steps[new].name, before.program.steps[then].name) for new, then, bad in pairs if bad]
    if not differing:
        return "it reads memory before or behind another write, or stands in another place among random numbers"
    new, name = differing[0]
    if new in before.place_of:
        return f"it reads {new!r} in the place of {name!r}"
    return f"{new!r}, which it reads in the place of {name!r}, has terms with another coefficient, or other inputs"


_REPORT = (
    "nothing was compiled; please report this with the output of `farskip explain`. It is a defect of farskip-compile"
)
