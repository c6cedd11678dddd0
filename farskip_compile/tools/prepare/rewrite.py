# SPDX-License-Identifier: Apache-2.0
"""The methods of one module with a loop over experts, without what in the loop depends on data.

Contract: a module, the loops in its source (`loop_source`) and one call of it come in; methods that take the place of
its own go out, if and only if they are found to be the same function to the last bit (`same_function`) on inputs that
reach each case (`probe_inputs`): experts without tokens, one expert with all of them, a single token. What is run are
copies.

1. The original is watched on all inputs. A guard is one if data decide it: it says "empty" for some inputs, and not
   for others of the same shape. If that is not enough for a capture, so is one that says "empty" where there are no
   rows at all: of a sum of sizes that data decide, no graph knows that it is not zero. Anything else stays as it is.
2. A loop over hits becomes one over all experts. Their number is the largest of the module's own numbers (of parts,
   sizes of parameters, integers it keeps) for which the loop runs.
3. The rewritten module is captured once, on its own, so that what else is in the way can be said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from farskip_compile.tools.prepare.captured import why_not_captured
from farskip_compile.tools.prepare.changes import Change, install, named
from farskip_compile.tools.prepare.loop_source import LoopSource
from farskip_compile.tools.prepare.loop_writer import LoopRequest, LoopSite
from farskip_compile.tools.prepare.probe_inputs import ProbeCall, isolated, variations, without_rows
from farskip_compile.tools.prepare.same_function import difference, first_line, run

Methods = dict[str, Callable[..., Any]]
LoopSources = Mapping[str, LoopSource]
"""Loops in the source of each method, by its name."""
LARGEST = 4096
"""The largest number of experts of a module."""
WHY = "what depends on data in it can't be captured; an expert without tokens now computes on none"
WORDS = {
    "guard": ("skips experts without tokens", "does not ask for tokens"),
    "hit": ("over the experts that were hit", "over all {experts} experts"),
    "list": ("indices as lists", "indices as tensors"),
    "count": ("bincount, whose length depends on data", "counts by a sum of fixed length"),
}
"""Words for each kind of site, before and after."""


@dataclass(frozen=True)
class RewrittenMethods:
    """Methods that take the place of a module's own."""

    methods: Methods
    sites: tuple[LoopSite, ...]
    experts: int

    def change(self, members: Sequence[tuple[str, nn.Module]]) -> Change:
        """Set the methods on each of the named modules."""
        return Change(
            what=f"loop over experts in {named([name for name, _ in members])}",
            before="; ".join(self._words_before()),
            after="; ".join(self._words_after()),
            why=WHY,
            restore=install([module for _, module in members], self.methods),
        )

    def _words_before(self) -> Iterator[str]:
        for kind in self._kinds():
            lines = ", ".join(str(site.line) for site in sorted(self.sites) if site.kind == kind)
            yield f"{WORDS[kind][0]} (line {lines})"

    def _words_after(self) -> Iterator[str]:
        for kind in self._kinds():
            yield WORDS[kind][1].format(experts=self.experts)

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(site.kind for site in self.sites))


def rewrite(module: nn.Module, sources: LoopSources, call: ProbeCall) -> RewrittenMethods | str | None:
    """Return methods in place of the module's own, or why there are none, or None if nothing is in the way."""
    try:
        calls = list(variations(call))
        empty = without_rows(call)
        calls_without_rows = [] if empty is None else [empty]
        by_data, by_rows = _guards(module, sources, [*calls, *calls_without_rows])
    except Exception as error:  # whatever a foreign module raises, in copying too
        return f"it could not be run on its own ({first_line(error)})"
    unknown_forms = "; ".join(reason for source in sources.values() for reason in source.cant)
    found: RewrittenMethods | str = unknown_forms or "no input left an expert without tokens"
    if not unknown_forms and (sites := _sites(sources, by_data)):
        found = _proven(module, sources, sites, calls)
        if isinstance(found, RewrittenMethods):
            return found
    # what looked like one may be no loop over experts at all
    why = why_not_captured(isolated(module), call.args, call.kwargs)
    if why is None:
        return None
    if not unknown_forms and by_rows - by_data:
        sites = _sites(sources, by_data | by_rows)
        also = _proven(module, sources, sites, [*calls, *calls_without_rows])
        if isinstance(also, RewrittenMethods):
            return also
    return f"{found}. {why}"


def _sites(sources: LoopSources, guards: Set[LoopSite]) -> dict[str, list[LoopSite]]:
    """Return the sites to rewrite, by method: all that are no guards, and the guards among `guards`."""
    chosen: dict[str, list[LoopSite]] = {}
    for name, source in sources.items():
        sites = [site for site in source.sites if site.kind != "guard" or site in guards]
        if sites:
            chosen[name] = sites
    return chosen


def _proven(
    module: nn.Module, sources: LoopSources, sites_by_method: dict[str, list[LoopSite]], calls: list[ProbeCall]
) -> RewrittenMethods | str:
    """Return methods with all sites rewritten that are the same function and capture, or why there are none."""
    sites = tuple(site for sites in sites_by_method.values() for site in sites)
    hits = any(site.kind == "hit" for site in sites)
    reason = ""
    for experts in sorted(_possible_numbers_of_experts(module), reverse=True) if hits else [0]:
        ran = False
        for rows in (False, True) if hits else (False,):
            rewritten: Methods = {}
            for name, chosen in sites_by_method.items():
                rewritten[name] = sources[name].compiled(LoopRequest(frozenset(chosen), experts, rows))
            different = difference(isolated(module), _copy_with(module, rewritten), calls)
            if different is None:
                why = why_not_captured(_copy_with(module, rewritten), calls[0].args, calls[0].kwargs)
                if why is not None:
                    return f"rewritten, it has more in the way: {why}"
                return RewrittenMethods(rewritten, sites, experts)
            reason, ran = different.reason, ran or different.ran
        if ran:  # with fewer experts it would be another function still
            break
    return reason


def _guards(module: nn.Module, sources: LoopSources, calls: list[ProbeCall]) -> tuple[set[LoopSite], set[LoopSite]]:
    """Return the guards that data decide, and the guards that do not say the same in all calls.

    Raises:
        Exception: whatever the module raises in the first call; later calls that fail are left out.
    """
    now: dict[LoopSite, list[bool]] = defaultdict(list)

    def watch(site: LoopSite, value: Any) -> Any:
        now[site].append(bool(value))
        return value

    watched = {name: source.compiled(LoopRequest(watch=watch)) for name, source in sources.items()}
    twin = _copy_with(module, watched)
    outcomes_by_shapes: dict[Any, set[tuple[bool, ...]]] = defaultdict(set)
    values: dict[LoopSite, set[bool]] = defaultdict(set)
    for training in (False, True):
        for number, call in enumerate(calls):
            now.clear()
            try:
                run(twin, call, training, backward=False)
            except Exception:
                if number == 0:
                    raise
                continue
            shapes = tuple(tensor.shape for tensor in call.tensors())
            for site, outcomes in now.items():
                outcomes_by_shapes[site, training, shapes].add(tuple(outcomes))
                values[site].update(outcomes)
    by_data = {site for (site, _, _), outcomes in outcomes_by_shapes.items() if len(outcomes) > 1}
    return by_data, {site for site, outcomes in values.items() if len(outcomes) > 1}


def _possible_numbers_of_experts(module: nn.Module) -> set[int]:
    """Return the numbers in the module that may be how many experts it has."""
    found = {size for p in module.parameters() for size in p.shape[:1]}
    for part in module.modules():
        found |= {value for value in vars(part).values() if type(value) is int}
        found.add(len(list(part.children())))
    return {number for number in found if 1 <= number <= LARGEST}


def _copy_with(module: nn.Module, methods: Methods) -> nn.Module:
    """Return a copy of the module with other methods."""
    twin = isolated(module)
    install([twin], methods)
    return twin
