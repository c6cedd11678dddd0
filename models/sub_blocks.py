# SPDX-License-Identifier: Apache-2.0
"""The sub-blocks of any decoder as an eager oracle sees them: modules, distinguished by behaviour.

Contract: `find_sub_blocks` lists the modules that add to the residual stream; `kind_of` determines the kind of one by
running it again on other tokens. Parameters and state don't change. Nothing of the compiler is used.
1. The decoder's layers are the list (or dictionary) of modules with the most parameters. Their children with weight
   matrices are sub-blocks; a child that is itself a list holds several. A child that turns out to hold more than one
   in a run has `parts`.
2. A sub-block is a mixer if its output at the last token depends on its input at other tokens. If its routed part is
   known, the rest decides: a router may mix tokens.
3. Any other sub-block is routed if it holds a module called `experts`, whose output is the routed term, or selects
   itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.models.residual_tensor import ResidualTensor, plain


@dataclass(eq=False)
class SubBlockModule:
    """A module that adds to the residual stream."""

    name: str
    module: nn.Module
    kind: str = ""
    """`mixer`, `moe` or `mlp`."""
    experts: nn.Module | None = None
    layer: int = 0
    """The number of its layer, counted as in the compiler: a layer begins at each mixer."""

    @property
    def size(self) -> int:
        """The number of its parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def find_sub_blocks(model: nn.Module) -> list[SubBlockModule]:
    """Return the sub-blocks in the order of the layers; only a run shows which of them run, and in which order."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.ModuleDict)]
    name, layers = max(lists, key=lambda pair: (sum(p.numel() for p in pair[1].parameters()), -len(pair[0])))
    return [block for layer_name, layer in layers.named_children() for block in parts(f"{name}.{layer_name}", layer)]


def embedding_of(model: nn.Module) -> nn.Module:
    """Return the module that gives the first value of the stream."""
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings()  # type: ignore[operator]
    return next(module for module in model.modules() if isinstance(module, nn.Embedding))


def parts(name: str, layer: nn.Module) -> list[SubBlockModule]:
    """Return the children of a module with weight matrices."""
    found = []
    for child_name, child in _children(layer):
        if any(p.dim() > 1 for p in child.parameters()):
            experts = next((m for n, m in child.named_modules() if n.split(".")[-1] == "experts"), None)
            experts = child if child_name == "experts" else experts
            found.append(SubBlockModule(f"{name}.{child_name}", child, experts=experts))
    return found


def _children(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in layer.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{inner_name}", inner) for inner_name, inner in child.named_children())
        else:
            yield name, child


def kind_of(block: SubBlockModule, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, selects: bool) -> str:
    """Return the kind of a sub-block: a mixer if its last token's output changes with all other tokens.

    Args:
        block: the sub-block.
        args: of its call.
        kwargs: of its call.
        output: of its call.
        selects: whether its output depends on a selection.

    Raises:
        NotImplementedError: its inputs include no hidden states [B, T, D] or [B * T, D].
    """
    values = [*args, *kwargs.values()]
    hidden = next((v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dim() >= 2), None)
    if hidden is None:
        raise NotImplementedError(f"{block.name} gets no hidden states")
    other = plain(hidden).clone()
    earlier = other[:, :-1] if other.dim() > 2 else other[:-1]
    earlier += torch.linspace(-1.0, 1.0, earlier.numel(), dtype=other.dtype, device=other.device).view_as(earlier)

    def swap(value: Any) -> Any:
        return other if value is hidden else plain(value)

    changed = block.module(*map(swap, args), **{key: swap(value) for key, value in kwargs.items()})
    first, second = (o[0] if isinstance(o, tuple) else o for o in (output, changed))
    routed = {label for o in (first, second) if isinstance(o, ResidualTensor) for label in o.expression.labels}
    routed = {label for label in routed if label.endswith(" routed")}
    parts = [_without(o, frozenset(routed)) for o in (first, second)]
    was, now = (part[:, -1] if part.dim() > 2 else part[-1] for part in parts)
    if not torch.allclose(was, now, rtol=1e-3, atol=1e-4 * was.abs().max().item()):
        return "mixer"
    return "moe" if block.experts is not None or routed or selects else "mlp"


def _without(value: torch.Tensor, labels: frozenset[str]) -> torch.Tensor:
    if not isinstance(value, ResidualTensor):
        return value
    rest = value.expression.without(labels)
    return value.expression.value if rest is None else rest
