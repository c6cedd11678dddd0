# SPDX-License-Identifier: Apache-2.0
"""Loops over experts, replaced where another forward is the same function.

Contract: a model comes in, changes and notes go out. Two forwards are candidates for each module with a loop of its own
that nobody else has replaced, in this order:

1. a kernel of transformers that is the same function up to rounding (`kernels`), for experts of its interface;
2. the module's own source without what in it depends on data (`rewrite`), to the last bit the same function.

Modules that compute the same with their weights are decided on once. A module for which there is no candidate is left
alone, and a note says why.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.base.extras import is_in_use
from farskip_compile.tools.prepare.adapters import is_adapter
from farskip_compile.tools.prepare.changes import Change, named
from farskip_compile.tools.prepare.kernels import WeightLayout, find_kernel, is_dispatched, takes_interface
from farskip_compile.tools.prepare.loop_source import LoopSource, methods
from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.prepare.probe_inputs import ProbeCall, calls_in, random_ids, random_rows
from farskip_compile.tools.prepare.rewrite import rewrite
from farskip_compile.tools.prepare.same_function import first_line

NO_INPUTS = "no inputs are known for it, pass example inputs: prepare(model, *inputs)"


@dataclass
class AlikeModules:
    """Modules that compute the same with their weights, and the loops in the source of their methods."""

    has_interface: bool
    sources: dict[str, LoopSource]
    members: list[tuple[str, nn.Module]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Reasons why the candidates so far are not the same function."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules in the model."""
        return tuple(name for name, _ in self.members)


def replace_loops(model: nn.Module, example: ProbeCall | None) -> tuple[list[Change], list[str]]:
    """Replace each loop over experts that can be. Return the changes, and a note for each kind of loop that stays.

    Args:
        model: the model, changed in place.
        example: arguments of one call of the model, or None.
    """
    groups = _groups(model)
    changes = _use_kernels([group for group in groups if group.has_interface])
    groups = [group for group in groups if "forward" not in vars(group.members[0][1])]
    changes += _use_rewritten_sources(model, [group for group in groups if group.sources], example)
    names: dict[str, list[str]] = {}
    for group in groups:
        if group.reasons:
            names.setdefault("; ".join(group.reasons), []).extend(group.names)
    return changes, [f"loop over experts in {named(members)}: {reason}" for reason, members in names.items()]


def _groups(model: nn.Module) -> list[AlikeModules]:
    """Return the modules with loops of their own that nobody has replaced; loops of PEFT are over adapters."""
    groups: dict[Hashable, AlikeModules] = {}
    known: dict[type, dict[str, LoopSource]] = {}
    has_kernels = is_in_use("transformers")
    for name, module in model.named_modules():
        kind = type(module)
        if is_adapter(module):
            continue
        if kind not in known:
            known[kind] = methods(kind)
        if "forward" in vars(module) or is_dispatched(module):
            continue
        sources = {key: source for key, source in known[kind].items() if key not in vars(module)}
        if not _has_experts(module, sources):
            sources = {}
        has_interface = has_kernels and takes_interface(module)
        if sources or has_interface:
            group = groups.setdefault(_likeness(module), AlikeModules(has_interface, sources))
            group.members.append((name, module))
    return list(groups.values())


def _likeness(module: nn.Module) -> Hashable:
    """Return a key that is equal for modules that differ in no number, flag or shape."""
    shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
    plain = tuple((k, v) for k, v in sorted(vars(module).items()) if isinstance(v, bool | int | float | str | None))
    return type(module), repr(module), shapes, plain


def _has_experts(module: nn.Module, sources: Mapping[str, LoopSource]) -> bool:
    """Return whether a loop is over what was hit, or may be over equal parts or stacked weights of the module."""
    if not sources:
        return False
    if any(source.has_hits for source in sources.values()):
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


def _use_kernels(groups: Sequence[AlikeModules]) -> list[Change]:
    """Set the kernel of each group that has one, and add a reason to the others. Return a change for each layout."""
    found: dict[WeightLayout, list[tuple[str, nn.Module]]] = {}
    for group in groups:
        module = group.members[0][1]
        with everything_kept([module], attributes=True, compiles=True):  # a closure may run the module itself
            layout = find_kernel(module)
        if isinstance(layout, str):
            group.reasons.append(layout)
        else:
            found.setdefault(layout, []).extend(group.members)
    return [layout.change(members) for layout, members in found.items()]


def _use_rewritten_sources(model: nn.Module, groups: Sequence[AlikeModules], example: ProbeCall | None) -> list[Change]:
    """Set the rewritten methods of each group that has any, and add a reason to the others."""
    changes: list[Change] = []
    if not groups:
        return changes
    with everything_kept([model], attributes=True, compiles=True):  # a closure may run the module itself
        calls, why_none = _calls(model, [group.members[0] for group in groups], example)
    for group in groups:
        name, module = group.members[0]
        if name not in calls:
            group.reasons.append(why_none)
            continue
        with everything_kept([module], attributes=True, compiles=True):
            found = rewrite(module, group.sources, calls[name])
        if isinstance(found, str):
            group.reasons.append(found)
        elif found is not None:
            changes.append(found.change(group.members))
            group.reasons.clear()
    return changes


def _calls(
    model: nn.Module, members: list[tuple[str, nn.Module]], example: ProbeCall | None
) -> tuple[dict[str, ProbeCall], str]:
    """Return a call for each module, as far as they can be had, and why not for the others."""
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
