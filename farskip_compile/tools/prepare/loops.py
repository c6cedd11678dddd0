# SPDX-License-Identifier: Apache-2.0
"""Experts that capture, in place of a loop over the experts that were hit, whose length depends on data.

Contract: a model comes in, changes and notes go out. No model is known by name.

Experts that transformers dispatches by configuration carry the marks of its `use_experts_implementation`
(`choose_implementation`). Only the configuration objects that they dispatch on are written, so nested models and
wrappers of several models are treated alike. An implementation that captures is left alone.

    "eager"        the loop: it can't be a graph
    "grouped_mm"   captures; computes in bfloat16, float16 and float32
    "batched_mm"   captures, in any dtype; for float64, where grouped_mm has no kernel

Others whose forward takes (hidden_states, top_k_index, top_k_weights) have a loop of their own (`replace_loops`). It is
replaced by transformers' `grouped_mm` (float64: `batched_mm`), if and only if that is the same function by behaviour
(`probe`). Otherwise the module is left alone, and a note says why.

1. The layout is read off the shapes of the stacked weights. Where shapes allow several, each is tried.
2. Indices for which one of the two projections has no weights are experts without computation: identity, or nothing.
   Both are tried. For the kernels they look like indices of another rank under expert parallelism, which they skip;
   tokens take the place of what was skipped before routing weights apply, so the output stays one routed term.
3. The forward is set on the module itself, as transformers' expert parallelism does. Modules whose forward was
   replaced by others are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile.tools.prepare.changes import Change, Left, named
from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.prepare.probe import HIDDEN, INTERMEDIATE, ExpertsForward, difference

INTERFACE = ("hidden_states", "top_k_index", "top_k_weights")
DOWN = "down_proj"
BIAS = "_bias"
GROUPED = "grouped_mm"
BATCHED = "batched_mm"
MARKS = ("config", "has_gate", "has_bias", "is_transposed", "_is_expert_parallel")
"""What `use_experts_implementation` sets on each module."""
MARK = "_replaces_experts_loop"
"""On forwards that `loops` has set."""
WHY_LOOP = "the loop over the experts that were hit depends on data and can't be captured"
WHY_DOUBLE = "grouped_mm has no kernel for float64"


def is_dispatched(module: nn.Module) -> bool:
    """Whether transformers picks this module's forward by its configuration."""
    return (
        all(hasattr(module, mark) for mark in MARKS)
        and hasattr(module.config, "_experts_implementation")
        and not hasattr(module.forward, MARK)
    )


def float_dtype(module: nn.Module) -> torch.dtype | None:
    """The type of the first parameter that is a floating-point number of 16 bits or more."""
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() > 1)
    return next(dtypes, None)


def choose_implementation(model: nn.Module) -> list[Change]:
    """Set the implementation of each configuration that dispatches to one that does not capture."""
    experts: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if is_dispatched(module):
            experts.setdefault(id(module.config), []).append((name, module))
    changes = []
    for group in experts.values():
        module, dtypes = group[0][1], {float_dtype(m) for _, m in group}
        config: Any = module.config
        current = config._experts_implementation
        double = torch.float64 in dtypes
        if None in dtypes or not (current in ("eager", None) or (current == GROUPED and double)):
            continue
        wanted = BATCHED if double else GROUPED
        _assign(config, wanted)
        changes.append(
            Change(
                what=f"experts implementation of {named([name for name, _ in group])}",
                before=str(current),
                after=wanted,
                why=WHY_DOUBLE if current == GROUPED else WHY_LOOP,
                restore=lambda config=config, current=current: _assign(config, current),  # type: ignore[misc]
            )
        )
    return changes


def _assign(config: Any, implementation: str | None) -> None:
    # a dictionary names this configuration alone; a string would also reach the ones nested in it
    config._experts_implementation = {"": implementation}


@dataclass(frozen=True)
class WeightLayout:
    """How stacked weights are stored, in the terms of transformers' interface."""

    up: str
    """`gate_up_proj`, or `up_proj` without a gate."""
    is_transposed: bool
    has_bias: bool
    computing: int
    """Experts with both projections."""
    indices: int
    """All that may be routed to."""
    identity: bool = False
    """Experts without computation return their tokens, not zero."""

    @property
    def has_gate(self) -> bool:
        """Whether gate and up projection are stored as one."""
        return self.up == "gate_up_proj"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of small weights of this layout, with as many experts as there are, so that indices mean the same."""
        wide = INTERMEDIATE * (2 if self.has_gate else 1)
        up, down = (wide, HIDDEN), (HIDDEN, INTERMEDIATE)
        if self.is_transposed:
            up, down = up[::-1], down[::-1]
        shapes: dict[str, tuple[int, ...]] = {self.up: (self.indices, *up), DOWN: (self.computing, *down)}
        if self.has_bias:
            shapes |= {self.up + BIAS: (self.indices, wide), DOWN + BIAS: (self.computing, HIDDEN)}
        return shapes

    def describe(self) -> str:
        """In words."""
        idle = self.indices - self.computing
        kind = "identities" if self.identity else "without output"
        return f"{self.computing} experts" + (f" and {idle} {kind}" if idle else "")


class _Stacked:
    """What transformers' functions read from an experts module, for a module that does not have all of it."""

    has_post_expert_norm = False

    def __init__(self, module: Any, layout: WeightLayout) -> None:
        self.module = module
        self.num_experts, self.is_transposed = layout.computing, layout.is_transposed
        self.has_gate, self.has_bias = layout.has_gate, layout.has_bias
        self._is_expert_parallel = layout.indices > layout.computing  # then they skip indices without an expert
        self.act_fn = getattr(module, "act_fn", None)
        for name in layout.shapes():
            weight = getattr(module, name)
            setattr(self, name, weight if len(weight) == layout.computing else weight[: layout.computing])

    def _apply_gate(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """The module's own way, or transformers' default one."""
        if hasattr(self.module, "_apply_gate"):
            return self.module._apply_gate(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return self.module.act_fn(gate) * up


def alike(module: nn.Module) -> Hashable:
    """Equal for modules that compute the same with their weights: they differ in no number, flag or shape."""
    shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
    plain = tuple((k, v) for k, v in sorted(vars(module).items()) if isinstance(v, bool | int | float | str | None))
    return type(module), repr(module), shapes, plain


def replace_loops(model: nn.Module) -> tuple[list[Change], list[Left]]:
    """Replace each loop for which an implementation of transformers is the same function."""
    groups: dict[WeightLayout | str, list[tuple[str, nn.Module]]] = {}
    known: dict[Hashable, WeightLayout | str] = {}
    for name, module in model.named_modules():
        if not _has_own_loop(module):
            continue
        key = alike(module)
        if key not in known:
            with everything_kept([module], attributes=True, compiles=True):  # a closure may run the module itself
                known[key] = _find(module)
        groups.setdefault(known[key], []).append((name, module))
    changes, left = [], []
    for layout, group in groups.items():
        names, modules = [name for name, _ in group], [module for _, module in group]
        if isinstance(layout, str):
            left.append(Left(tuple(names), layout))
        else:
            what = f"loop over experts in {named(names)}"
            after = f"grouped_mm (float64: batched_mm), {layout.describe()}"
            changes.append(Change(what, "eager", after, WHY_LOOP, _install(modules, layout)))
    return changes, left


def _has_own_loop(module: nn.Module) -> bool:
    if is_dispatched(module) or "forward" in vars(module):
        return False
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    return tuple(parameters[:3]) == INTERFACE


def _find(module: nn.Module) -> WeightLayout | str:
    """The layout under which transformers' functions are this module's forward, or why there is none."""
    layouts = _layouts(module)
    if isinstance(layouts, str):
        return layouts
    reason = ""
    for layout in layouts:
        reasons = (
            difference(module, type(module).forward, _forward(layout), layout.shapes(), layout.indices, dtype)
            for dtype in (torch.float64, torch.float32)  # for batched_mm and for grouped_mm
        )
        reason = next((r for r in reasons if r), "")
        if not reason:
            return layout
    return f"transformers' implementation {reason}"


def _layouts(module: nn.Module) -> list[WeightLayout] | str:
    """All readings of the shapes of the weights, or why there is none."""
    weights = dict(module.named_parameters())
    up = next((n for n in ("gate_up_proj", "up_proj") if n in weights), "gate_up_proj")
    if not (weights.keys() >= {up, DOWN} and weights[up].dim() == weights[DOWN].dim() == 3):
        return f"its weights are not stacked as [experts, rows, columns] in {up} and {DOWN}"
    if float_dtype(module) is None:
        return "its weights are quantised"
    has_bias = weights.keys() >= {up + BIAS, DOWN + BIAS}
    allowed = {up, DOWN, *([up + BIAS, DOWN + BIAS] if has_bias else [])}
    if others := sorted((weights.keys() | dict(module.named_buffers()).keys()) - allowed):
        return f"it has weights that the interface does not know: {', '.join(others)}"
    (indices, *up_shape), (computing, *down_shape) = weights[up].shape, weights[DOWN].shape
    if computing > indices:
        return f"{DOWN} has more experts than {up}"
    found = []
    for transposed in (False, True):
        wide, hidden = up_shape[::-1] if transposed else up_shape
        hidden_out, narrow = down_shape[::-1] if transposed else down_shape
        if hidden == hidden_out and wide == narrow * (2 if up == "gate_up_proj" else 1):
            for identity in (True, False) if indices > computing else (False,):
                found.append(WeightLayout(up, transposed, has_bias, computing, indices, identity))
    return found or f"the shapes of {up} and {DOWN} don't fit each other"


def _forward(layout: WeightLayout) -> ExpertsForward:
    """Transformers' function for this layout; which one depends on the dtype at the time of the call."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    grouped, batched = ALL_EXPERTS_FUNCTIONS[GROUPED], ALL_EXPERTS_FUNCTIONS[BATCHED]

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        function = batched if hidden_states.dtype == torch.float64 else grouped
        experts = _Stacked(self, layout)
        if layout.indices == layout.computing:
            return function(experts, hidden_states, top_k_index, top_k_weights)
        # each pair of a token and an expert on its own, so that an identity can take the place of what is skipped
        tokens, k = top_k_index.shape
        pairs = hidden_states.unsqueeze(1).expand(-1, k, -1)  # [T, K, D]
        flat = top_k_index.reshape(-1, 1)  # [T*K, 1]
        one = torch.ones_like(flat, dtype=hidden_states.dtype)
        computed = function(experts, pairs.reshape(tokens * k, -1), flat, one).view_as(pairs)
        idle = (top_k_index >= layout.computing).unsqueeze(-1)  # [T, K, 1]
        results = torch.where(idle, pairs if layout.identity else torch.zeros_like(pairs), computed)
        return (results * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    setattr(forward, MARK, True)
    return forward


def _install(modules: list[nn.Module], layout: WeightLayout) -> Callable[[], None]:
    """Set the forward on each module; returns what removes it again."""
    forward = _forward(layout)
    for module in modules:
        vars(module)["forward"] = MethodType(forward, module)

    def restore() -> None:
        for module in modules:
            vars(module).pop("forward", None)

    return restore
