# SPDX-License-Identifier: Apache-2.0
"""Kernels of transformers that capture, in place of a loop over the experts that were hit.

Contract: no model is known by name. Two kinds of experts modules get a kernel:

1. Experts that transformers dispatches by configuration carry the marks of its `use_experts_implementation`.
   `choose_implementation` writes the configuration objects that they dispatch on, and no others, so nested models and
   wrappers of several models are treated alike. An implementation that captures is left alone.

       "eager"        the loop: it can't be a graph
       "grouped_mm"   captures; computes in bfloat16, float16 and float32
       "batched_mm"   captures, in any dtype; for float64, where grouped_mm has no kernel

2. Experts whose forward takes (hidden_states, top_k_index, top_k_weights) have a loop of their own. `find_kernel` tells
   how their weights are stored if `grouped_mm` (float64: `batched_mm`) is the same function, or why it is not.
   - The layout is read off the shapes of the stacked weights. Where shapes allow several, each is tried.
   - Indices for which a projection has no weights are experts without computation: identity, or nothing. Both are
     tried, also for indices behind all weights, if the loop runs on these. The kernels take such indices for those of
     another rank under expert parallelism, and skip them; tokens take the place of what was skipped before routing
     weights apply, so the output stays one routed term.
   - Both functions run on small random weights, on the CPU, so the size and the place of the model don't matter. Every
     index is routed to, from tokens of very different sizes: clamps and limits show at the large ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from farskip_compile.tools.prepare.changes import Change, install, named
from farskip_compile.tools.prepare.probe_inputs import ProbeCall, isolated
from farskip_compile.tools.prepare.same_function import difference, first_line

INTERFACE = ("hidden_states", "top_k_index", "top_k_weights")
DOWN = "down_proj"
BIAS = "_bias"
GROUPED = "grouped_mm"
BATCHED = "batched_mm"
DISPATCH_MARKS = ("config", "has_gate", "has_bias", "is_transposed", "_is_expert_parallel")
"""Attributes that `use_experts_implementation` sets on each module."""
KERNEL_MARK = "_replaces_experts_loop"
"""Attribute of the forwards that `kernel_forward` makes."""
WHY_LOOP = "the loop over the experts that were hit depends on data and can't be captured"
WHY_DOUBLE = "grouped_mm has no kernel for float64"

BEHIND = 2
"""The number of indices behind all weights that are tried where a loop runs on such indices."""
HIDDEN, INTERMEDIATE = 16, 24  # multiples of 16 bytes, which grouped kernels ask for
SCALES = (0.03, 1.0, 30.0, 1000.0)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3}
"""Relative differences that are rounding, for batched_mm and for grouped_mm. Measured: 1e-15 and 1e-6; another function
differs by 1e-1 or more on some token."""


def is_dispatched(module: nn.Module) -> bool:
    """Return whether transformers picks the forward of `module` by its configuration."""
    return (
        all(hasattr(module, mark) for mark in DISPATCH_MARKS)
        and hasattr(module.config, "_experts_implementation")
        and not hasattr(module.forward, KERNEL_MARK)
    )


def takes_interface(module: nn.Module) -> bool:
    """Return whether the forward of the class of `module` takes tokens, expert indices and routing weights."""
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    return tuple(parameters[:3]) == INTERFACE


def float_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter of 16 bits or more, or None."""
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
    """The way in which an experts module stores its stacked weights, in the terms of transformers' interface."""

    up: str
    """`gate_up_proj`, or `up_proj` without a gate."""
    is_transposed: bool
    has_bias: bool
    computing: int
    """The number of experts with both projections."""
    stored: int
    """The number of experts with an up projection."""
    is_open: bool = False
    """True if the loop runs on indices behind those of the weights, too."""
    identity: bool = False
    """True if experts without computation return their tokens, False if they return zero."""

    @property
    def indices(self) -> int:
        """Return the number of indices that are routed to in a comparison."""
        return self.stored + (BEHIND if self.is_open else 0)

    @property
    def has_gate(self) -> bool:
        """Return whether gate and up projection are stored as one."""
        return self.up == "gate_up_proj"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of small weights of this layout, with as many experts, so that indices mean the same."""
        wide = INTERMEDIATE * (2 if self.has_gate else 1)
        up, down = (wide, HIDDEN), (HIDDEN, INTERMEDIATE)
        if self.is_transposed:
            up, down = up[::-1], down[::-1]
        shapes: dict[str, tuple[int, ...]] = {self.up: (self.stored, *up), DOWN: (self.computing, *down)}
        if self.has_bias:
            shapes |= {self.up + BIAS: (self.stored, wide), DOWN + BIAS: (self.computing, HIDDEN)}
        return shapes

    def change(self, members: list[tuple[str, nn.Module]]) -> Change:
        """Set the kernel's forward on each of the named modules."""
        idle = "any number of" if self.is_open else self.stored - self.computing
        if self.identity:
            more = f" and {idle} identities"
        else:
            more = f" and {idle} without output" if self.stored > self.computing else ""
        experts = f"{self.computing} experts{more}"
        return Change(
            what=f"loop over experts in {named([name for name, _ in members])}",
            before="eager",
            after=f"grouped_mm (float64: batched_mm), {experts}",
            why=WHY_LOOP,
            restore=install([module for _, module in members], {"forward": kernel_forward(self)}),
        )


def find_kernel(module: nn.Module) -> WeightLayout | str:
    """Return the layout under which transformers' kernels are the forward of `module`, or why there is none."""
    layouts = _layouts(module)
    if isinstance(layouts, str):
        return layouts
    reason: str | None = None
    for layout in _with_experts_without_weights(module, layouts):
        for dtype, tolerance in TOLERANCES.items():
            reason = _mismatch(module, layout, dtype, tolerance)
            if reason is not None:
                break
        if reason is None:
            return layout
    return f"on random weights, {reason}"


def _layouts(module: nn.Module) -> list[WeightLayout] | str:
    """Return all layouts that the shapes of the weights allow, or why there is none."""
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
            found.append(WeightLayout(up, transposed, has_bias, computing, indices))
    return found or f"the shapes of {up} and {DOWN} don't fit each other"


def _with_experts_without_weights(module: nn.Module, layouts: Sequence[WeightLayout]) -> Iterator[WeightLayout]:
    """Yield each layout with each meaning that an index without weights can have in the loop of `module`."""
    for layout in layouts:
        layout = replace(layout, is_open=_runs_behind_weights(module, layout))
        if layout.indices > layout.computing:
            yield replace(layout, identity=True)
        yield layout


def _runs_behind_weights(module: nn.Module, layout: WeightLayout) -> bool:
    """Return whether the loop of `module` takes an index for which no projection has weights."""
    try:
        plain = isolated(module, _random_weights(layout, torch.float64, torch.Generator().manual_seed(0)))
        index = torch.tensor([[0, layout.stored + BEHIND - 1]])
        with torch.no_grad():
            plain(torch.ones(1, HIDDEN, dtype=torch.float64), index, torch.ones(1, 2, dtype=torch.float64))
    except Exception:  # whatever a foreign forward raises on such an index
        return False
    return True


def _random_weights(layout: WeightLayout, dtype: torch.dtype, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Return small weights in the shapes of `layout`."""
    weights = {}
    for name, shape in layout.shapes().items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / 4
        weights[name] = nn.Parameter(values.to(dtype))
    return weights


def _mismatch(module: nn.Module, layout: WeightLayout, dtype: torch.dtype, tolerance: float) -> str | None:
    """Return why the kernel for `layout` is not the forward of `module` in `dtype`, or None if it is."""
    generator = torch.Generator().manual_seed(0)
    weights = _random_weights(layout, dtype, generator)
    try:
        plain, replaced = isolated(module, weights), isolated(module, weights)
    except Exception as error:  # whatever parts raise that can't be copied
        return f"it could not be run on its own ({first_line(error)})"
    install([replaced], {"forward": kernel_forward(layout)})
    calls = list(_calls(layout, dtype, generator))
    found = difference(plain, replaced, calls, subject="transformers' implementation", tolerance=tolerance)
    return None if found is None else found.reason


def _calls(layout: WeightLayout, dtype: torch.dtype, generator: torch.Generator) -> Iterator[ProbeCall]:
    """Yield calls that route tokens of every size to every index."""
    indices = layout.indices
    first = torch.arange(indices).repeat(len(SCALES))  # [T]
    scale = torch.tensor(SCALES, dtype=torch.float64).repeat_interleave(indices).unsqueeze(1)  # [T, 1]
    tokens = torch.randn(len(first), HIDDEN, generator=generator, dtype=torch.float64) * scale  # [T, D]
    for top_k in sorted({min(2, indices), min(3, indices)}):  # one: some loops squeeze it away
        index = torch.stack([(first + k) % indices for k in range(top_k)], dim=1)  # [T, K]
        routing = torch.rand(index.shape, generator=generator, dtype=torch.float64)  # [T, K]
        yield ProbeCall((tokens.to(dtype), index, routing.to(dtype)), {}, row_sizes=scale)


class _Stacked:
    """An experts module as transformers' functions read it, for a module that lacks some of the attributes."""

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
        """Apply the module's own gate, or transformers' default one."""
        if hasattr(self.module, "_apply_gate"):
            return self.module._apply_gate(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return self.module.act_fn(gate) * up


def kernel_forward(layout: WeightLayout) -> Callable[..., torch.Tensor]:
    """Return transformers' function for `layout` as a forward that picks the kernel by the dtype of each call."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    grouped, batched = ALL_EXPERTS_FUNCTIONS[GROUPED], ALL_EXPERTS_FUNCTIONS[BATCHED]

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        function = batched if hidden_states.dtype == torch.float64 else grouped
        experts = _Stacked(self, layout)
        if not layout.identity:
            return function(experts, hidden_states, top_k_index, top_k_weights)
        # each pair of a token and an expert on its own, so that an identity can take the place of what is skipped
        tokens, k = top_k_index.shape
        pairs = hidden_states.unsqueeze(1).expand(-1, k, -1)  # [T, K, D]
        flat = top_k_index.reshape(-1, 1)  # [T*K, 1]
        one = torch.ones_like(flat, dtype=hidden_states.dtype)
        computed = function(experts, pairs.reshape(tokens * k, -1), flat, one).view_as(pairs)
        idle = (top_k_index >= layout.computing).unsqueeze(-1)  # [T, K, 1]
        results = torch.where(idle, pairs, computed)
        return (results * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    setattr(forward, KERNEL_MARK, True)
    return forward
