# SPDX-License-Identifier: Apache-2.0
"""A part of a model whose exchanges were cut in pieces, read once more: which of its terms is which.

In:    before the cut, the stack and the names of its terms; after it, the graph.
Out:   the stream of the graph as it is now, and the names of its terms.
Never: goes by the order of terms.

Algorithm:
1. Before: note of each term its core, the parameters that it uses, and the terms that it reads.
2. After: a term is the one with its core. Where the cut put another core in its place, it is the one with just its
   parameters; if that is not one alone, the part is refused.
3. Each must read the terms that it read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.residual.regions import Region, reads
from farskip_compile.passes.residual.stack import Stack, read_stack
from farskip_compile.passes.residual.stream import Stream


@dataclass(frozen=True)
class TermBeforeCut:
    """A term before the cut."""

    name: str
    core: str
    """Name of its node."""
    parameters: frozenset[str]
    reads: frozenset[str]
    """Names of terms."""


def known_terms(stack: Stack, names: Sequence[str]) -> list[TermBeforeCut]:
    """Step 1; `names` of the terms of `stack`, in its order."""
    return [
        TermBeforeCut(name, core.name, _parameters(region), _reads(stack, region, names))
        for name, core, region in zip(names, stack.stream.cores, stack.regions, strict=True)
    ]


def read_again(graph: fx.Graph, known: Sequence[TermBeforeCut]) -> tuple[Stream, tuple[str, ...]]:
    """Steps 2 and 3.

    Raises:
        UnsupportedPatternError: the terms can't be told.
    """
    stack = read_stack(graph)
    if stack is None or len(stack.regions) != len(known):
        raise _error("its residual sum has other terms", next(iter(graph.nodes)))
    by_core = {one.core: one for one in known}
    found = [by_core.get(core.name) for core in stack.stream.cores]
    left = [one for one in known if one not in found]
    for place, region in enumerate(stack.regions):
        if found[place] is None:
            same = [one for one in left if one.parameters == _parameters(region)]
            if len(same) != 1:
                raise _error("it can't be told which of its terms is which", region.leaf)
            left.remove(same[0])
            found[place] = same[0]
    terms = [one for one in found if one is not None]
    names = tuple(one.name for one in terms)
    for one, region in zip(terms, stack.regions, strict=True):
        if _reads(stack, region, names) != one.reads:
            raise _error(f"{one.name} reads other terms", region.leaf)
    return stack.stream, names


def _parameters(region: Region) -> frozenset[str]:
    used = (arg for node in region.owned for arg in (node, *node.all_input_nodes))
    return frozenset(node.name for node in used if node.op == "get_attr" or is_module_state(node))


def _reads(stack: Stack, region: Region, names: Sequence[str]) -> frozenset[str]:
    return frozenset(names[index] for index in reads(stack.stream, region)) if region.owned else frozenset()


def _error(reason: str, node: fx.Node) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        f"a layer that is compiled by itself can't be read once its exchanges are in pieces: {reason}",
        way_out="pieces=1, or compile the whole model",
        where=user_calls.where(node),
    )
