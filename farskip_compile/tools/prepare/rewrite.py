# SPDX-License-Identifier: Apache-2.0
"""Loops over experts in modules of any kind, without what in them depends on data.

Contract: a model comes in, changes go out, and what stays, with the reason. A loop is rewritten in the source of its
own module (`loop_source`), and set on the module, if and only if it is found to be the same function to the last bit
(`same_function`) on inputs that reach each case (`probe_inputs`): experts without tokens, one expert with all of
them, a single token. What is run are copies.

1. Loops with guards, over hits, or with counts are found in the source of each module's forward and of the methods that
   it calls on itself.
2. The original is watched on all inputs. A guard is one if data decide it: it says "empty" for some inputs, and not
   for others of the same shape. If that is not enough for a capture, so is one that says "empty" where there are no
   rows at all: of a sum of sizes that data decide, no graph knows that it is not zero. Anything else stays as it is.
3. A loop over hits becomes one over all experts. Their number is the largest of the module's own numbers (of parts,
   sizes of parameters, integers it keeps) for which the loop runs.
4. The rewritten module is captured once, on its own, so that what else is in the way can be said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.tools.prepare.adapters import is_adapter
from farskip_compile.tools.prepare.captured import why_not_captured
from farskip_compile.tools.prepare.changes import Change, Left, joined, named
from farskip_compile.tools.prepare.loop_source import LoopSource, methods
from farskip_compile.tools.prepare.loop_writer import LoopRequest, LoopSite
from farskip_compile.tools.prepare.loops import alike, is_dispatched
from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.prepare.probe_inputs import (
    ProbeCall,
    calls_in,
    isolated,
    random_ids,
    random_rows,
    variations,
    without_rows,
)
from farskip_compile.tools.prepare.same_function import difference, first_line, run

Functions = Mapping[str, Callable[..., Any]]
"""By name of the method."""
LARGEST = 4096
"""No module has more experts."""
WHY = "what depends on data in it can't be captured; an expert without tokens now computes on none"
NO_INPUTS = "no inputs are known for it, pass example inputs: prepare(model, *inputs)"


@dataclass
class AlikeModules:
    """Modules that are alike."""

    sources: dict[str, LoopSource]
    members: list[tuple[str, nn.Module]] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modules."""
        return tuple(name for name, _ in self.members)


def rewrite_loops(model: nn.Module, example: ProbeCall | None, before: list[Left]) -> tuple[list[Change], list[Left]]:
    """Rewrite each loop that can be.

    Args:
        model: the model, changed in place.
        example: arguments of one call of it, or None.
        before: loops that nothing else has replaced. What is still left of them is returned with the others.
    """
    groups = _groups(model)
    changes, left = [], list(before)
    with everything_kept(
        [model] if groups else [], attributes=True, compiles=True
    ):  # a closure may run the model itself
        calls, why_none = _calls(model, [group.members[0] for group in groups], example) if groups else ({}, "")
    for group in groups:
        name, module = group.members[0]
        if name not in calls:
            left.append(Left(group.names, why_none))
            continue
        with everything_kept([module], attributes=True, compiles=True):
            found = _rewritten(module, group.sources, calls[name])
        if isinstance(found, str):
            left.append(Left(group.names, found))
        elif found is not None:
            changes.append(_install(group, found))
            left = [one.without(group.names) for one in left]
    return changes, joined(left)


def _groups(model: nn.Module) -> list[AlikeModules]:
    """Modules with loops of their own in Python that nobody has replaced; PEFT's are over adapters, not experts."""
    groups: dict[Hashable, AlikeModules] = {}
    known: dict[type, dict[str, LoopSource]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if is_adapter(module):
            continue
        if kind not in known:
            known[kind] = methods(kind)
        sources = {key: source for key, source in known[kind].items() if key not in vars(module)}
        if sources and "forward" not in vars(module) and not is_dispatched(module) and _has_experts(module, sources):
            groups.setdefault(alike(module), AlikeModules(sources)).members.append((name, module))
    return list(groups.values())


def _has_experts(module: nn.Module, sources: Mapping[str, LoopSource]) -> bool:
    """Whether it loops over what was hit, or holds equal parts or stacked weights that a loop may be over."""
    if any(site.kind == "hit" for source in sources.values() for site in source.sites):
        return True
    for part in module.modules():
        shapes = [[p.shape for p in child.parameters()] for child in part.children()]
        if _are_equal(shapes) or any(p.dim() > 2 for p in part.parameters(recurse=False)):
            return True
        lists = isinstance(part, nn.ParameterList | nn.ParameterDict)
        if lists and _are_equal([[p.shape] for p in part.parameters(recurse=False)]):
            return True
    return False


def _are_equal(shapes: list[list[torch.Size]]) -> bool:
    """Return whether there are several parts, and all have parameters of the same shapes."""
    return len(shapes) > 1 and bool(shapes[0]) and all(one == shapes[0] for one in shapes)


def _calls(
    model: nn.Module, members: list[tuple[str, nn.Module]], example: ProbeCall | None
) -> tuple[dict[str, ProbeCall], str]:
    """A call for each module, as far as they can be had, and why not for the others."""
    names = [name for name, _ in members]
    if any(p.is_meta for p in model.parameters()):
        return {}, "the model is on the meta device, where it can't be compared with anything"
    alone = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if alone and example is None:  # the other ranks may not take part in a call
        return {}, NO_INPUTS
    calls: dict[str, ProbeCall] = {}
    try:
        if example is not None:
            return calls_in(model, names, example), "the call with the example inputs does not reach it"
        calls = {name: call for name, module in members if (call := random_rows(module)) is not None}
        others = [name for name in names if name not in calls]
        return calls | (calls_in(model, others, random_ids(model)) if others else {}), NO_INPUTS
    except Exception as error:  # whatever a foreign model raises
        return calls, f"{NO_INPUTS} ({first_line(error)})"


@dataclass(frozen=True)
class _Found:
    """What replaces the methods of a module."""

    functions: Functions
    sites: tuple[LoopSite, ...]
    experts: int


def _rewritten(module: nn.Module, sources: dict[str, LoopSource], call: ProbeCall) -> _Found | str | None:
    """The methods that take the place of the module's own; or why there are none; or None if nothing is in the way."""
    try:
        calls = list(variations(call))
        by_data, by_rows = _guards(module, sources, calls, without_rows(call))
    except Exception as error:  # whatever a foreign module raises, in copying too
        return f"it could not be run on its own ({first_line(error)})"
    cant = "; ".join(reason for source in sources.values() for reason in source.cant)
    found: _Found | str = cant or "no input left an expert without tokens"
    if not cant and any(sites := _sites(sources, by_data)):
        found = _proven(module, sources, sites, calls)
        if isinstance(found, _Found):
            return found
    # what looked like one may be no loop over experts at all
    why = why_not_captured(isolated(module), call.args, call.kwargs)
    if why is None:
        return None
    if not cant and by_rows - by_data:
        also = _proven(module, sources, _sites(sources, by_data | by_rows), [*calls, *_some(without_rows(call))])
        if isinstance(also, _Found):
            return also
    return f"{found}. {why}"


def _sites(sources: Mapping[str, LoopSource], guards: Set[LoopSite]) -> dict[str, list[LoopSite]]:
    """For each method the sites to rewrite: all that are no guards, and the guards among `guards`."""
    every = {name: [s for s in source.sites if s.kind != "guard" or s in guards] for name, source in sources.items()}
    return {name: sites for name, sites in every.items() if sites}


def _some(call: ProbeCall | None) -> list[ProbeCall]:
    return [] if call is None else [call]


def _proven(
    module: nn.Module, sources: dict[str, LoopSource], every: dict[str, list[LoopSite]], calls: list[ProbeCall]
) -> _Found | str:
    """Methods with all these sites rewritten that are the same function and capture, or why there are none."""
    sites = tuple(site for found in every.values() for site in found)
    hits = any(site.kind == "hit" for site in sites)
    reason = ""
    for experts in sorted(_numbers(module), reverse=True) if hits else [0]:
        ran = False
        for rows in (False, True) if hits else (False,):
            functions = {
                name: sources[name].compiled(LoopRequest(frozenset(found), experts, rows))
                for name, found in every.items()
            }
            different = difference(isolated(module), _twin(module, functions), calls)
            if different is None:
                why = why_not_captured(_twin(module, functions), calls[0].args, calls[0].kwargs)
                return f"rewritten, it has more in the way: {why}" if why else _Found(functions, sites, experts)
            reason, ran = different.reason, ran or different.ran
        if ran:  # with fewer experts it would be another function still
            break
    return reason


def _guards(
    module: nn.Module, sources: dict[str, LoopSource], calls: list[ProbeCall], empty: ProbeCall | None
) -> tuple[set[LoopSite], set[LoopSite]]:
    """Return the guards that data decide, and those that say "empty" for no rows at all and for some rows don't."""
    now: dict[LoopSite, list[bool]] = defaultdict(list)

    def watch(site: LoopSite, value: Any) -> Any:
        now[site].append(bool(value))
        return value

    twin = _twin(module, {name: source.compiled(LoopRequest(watch=watch)) for name, source in sources.items()})
    seen: dict[tuple[LoopSite, bool, Hashable], set[tuple[bool, ...]]] = defaultdict(set)
    values: dict[LoopSite, set[bool]] = defaultdict(set)
    for training in (False, True):
        for number, call in enumerate([*calls, *_some(empty)]):
            now.clear()
            try:
                run(twin, call, training, backward=False)
            except Exception:
                if number == 0:
                    raise
                continue
            for site, outcomes in now.items():
                shapes = tuple(tensor.shape for tensor in call.tensors())
                seen[site, training, shapes].add(tuple(outcomes))
                values[site] |= {*outcomes}
    by_data = {site for (site, _, _), outcomes in seen.items() if len(outcomes) > 1}
    return by_data, {site for site, outcomes in values.items() if len(outcomes) > 1}


def _numbers(module: nn.Module) -> set[int]:
    """Numbers of the module that may be how many experts it has."""
    found = {size for p in module.parameters() for size in p.shape[:1]}
    for part in module.modules():
        found |= {value for value in vars(part).values() if type(value) is int}
        found.add(len(list(part.children())))
    return {number for number in found if 1 <= number <= LARGEST}


def _twin(module: nn.Module, functions: Functions) -> nn.Module:
    """A copy with other methods."""
    twin = isolated(module)
    for name, function in functions.items():
        vars(twin)[name] = MethodType(function, twin)
    return twin


def _install(group: AlikeModules, found: _Found) -> Change:
    for _, module in group.members:
        for name, function in found.functions.items():
            vars(module)[name] = MethodType(function, module)

    def restore() -> None:
        for _, module in group.members:
            for name in found.functions:
                vars(module).pop(name, None)

    return Change(
        what=f"loop over experts in {named(list(group.names))}",
        before="; ".join(_described(found, before=True)),
        after="; ".join(_described(found, before=False)),
        why=WHY,
        restore=restore,
    )


def _described(found: _Found, before: bool) -> Iterator[str]:
    words = {
        "guard": ("skips experts without tokens", "does not ask for tokens"),
        "hit": ("over the experts that were hit", f"over all {found.experts} experts"),
        "list": ("indices as lists", "indices as tensors"),
        "count": ("bincount, whose length depends on data", "counts by a sum of fixed length"),
    }
    for kind in dict.fromkeys(site.kind for site in found.sites):
        lines = ", ".join(str(site.line) for site in sorted(found.sites) if site.kind == kind)
        yield words[kind][0 if before else 1] + (f" (line {lines})" if before else "")
