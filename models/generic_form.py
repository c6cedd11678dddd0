"""The FarSkip form of any decoder of `transformers`, in eager mode: one oracle for all families.

Contract: runs the model's own forward and adds the residual terms itself (`residual_tensor`): hooks tell which
sub-block is at work, and each reader of the residual stream gets the sum without the terms that FarSkip leaves out
(spec: attention without the routed experts of the layer before, experts and dense layers without the attention of
their own layer). Shares parameters with the model, and nothing with the compiler: no graph, no pass. What it can't do
raises `NotImplementedError`: parallel blocks (one read for two sub-blocks).

How sub-blocks are told apart, by what they do:
1. The decoder's layers are the largest list of modules. Their children with weight matrices are sub-blocks.
2. A sub-block is a mixer if its output at the last token depends on its input at the first one.
3. Any other with a module called `experts` in it is routed; the output of that module is the routed term.

Two runs: the first finds out for which sub-block each read of the stream is; the second leaves terms out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from farskip_compile.models.residual_tensor import Expression, ResidualTensor, plain, reading

Connectivity = Literal["full", "attention", "mlp", "none"]
EMBEDDING = "e"


@dataclass
class SubBlock:
    """A module that adds to the residual stream."""

    name: str
    module: nn.Module
    kind: str = ""
    """`mixer`, `moe` or `mlp`."""
    experts: nn.Module | None = None


@dataclass
class _Run:
    """What happens in one forward pass."""

    order: list[SubBlock] = field(default_factory=list)
    """Sub-blocks in the order in which they begin."""
    inside: list[SubBlock] = field(default_factory=list)
    reads: list[SubBlock | None] = field(default_factory=list)
    """For each read of the stream, the sub-block at work, or that begins next."""
    pending: list[int] = field(default_factory=list)
    """Reads since the last sub-block ended."""
    sharing: list[SubBlock] = field(default_factory=list)
    """Sub-blocks that began without a read of their own: they share the one of the sub-block before."""
    quiet: bool = False
    """A sub-block runs a second time, to find out what it is."""


class GenericFarSkipForm(nn.Module):
    """Calls the model, with FarSkip's reads.

    Args:
        model: a causal language model; its parameters are shared.
        connectivity: which rows change.
    """

    def __init__(self, model: nn.Module, connectivity: Connectivity = "full") -> None:
        super().__init__()
        self.model = model
        self.connectivity = connectivity
        self.blocks: list[SubBlock] | None = None
        self.readers: list[SubBlock | None] = []
        self.left_out: dict[str, frozenset[str]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own forward."""
        if self.blocks is None:
            self.blocks = _sub_blocks(self.model)
            with torch.no_grad():
                first = self._run(args, kwargs, None)
            self.readers = first[1].reads
            self.left_out = self._terms_to_leave_out(first[1])
        output, run = self._run(args, kwargs, self.readers)
        if len(run.reads) != len(self.readers):
            raise NotImplementedError("the model reads its stream another number of times than in its first call")
        return output

    def _run(self, args: Any, kwargs: Any, readers: list[SubBlock | None] | None) -> tuple[Any, _Run]:
        run = _Run()

        def label(value: torch.Tensor, beside: frozenset[str]) -> Expression:
            last = run.order[-1].name if run.order else EMBEDDING
            # what is added inside of a sub-block to its routed part is shared; what reaches the stream is all it adds
            return Expression(value, frozenset([f"{last} {'whole' if EMBEDDING in beside else 'shared'}"]))

        def read(expression: Expression) -> torch.Tensor:
            if EMBEDDING not in expression.labels:
                return expression.value
            number = len(run.reads)
            run.reads.append(run.inside[-1] if run.inside else None)
            if readers is None:
                run.pending += [] if run.inside else [number]
                return expression.value
            reader = readers[number] if number < len(readers) else None  # too many reads: refused when it ends
            value = expression.without(self.left_out.get(reader.name, frozenset())) if reader else expression.value
            assert value is not None
            return value

        handles = self._hooks(run, measure=readers is None)
        try:
            with reading(label, read):
                output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return _plain_everywhere(output), run

    def _hooks(self, run: _Run, *, measure: bool) -> list[Any]:
        """On the embedding, the sub-blocks and their experts."""

        def begin(block: SubBlock) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                if run.quiet:
                    return
                if not run.pending and not any(isinstance(v, ResidualTensor) for v in (*args, *kwargs.values())):
                    run.sharing.append(block)
                for number in run.pending:
                    run.reads[number] = block
                run.pending.clear()
                run.order.append(block)
                run.inside.append(block)

            return hook

        def end(block: SubBlock) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
                if run.quiet:
                    return output
                run.inside.pop()
                if measure:
                    run.quiet = True
                    block.kind = _kind(block, args, kwargs, output)
                    run.quiet = False
                return output

            return hook

        def routed(block: SubBlock) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if run.quiet:
                    return output
                if isinstance(output, tuple):
                    return (ResidualTensor.term(output[0], f"{block.name} routed"), *output[1:])
                return ResidualTensor.term(output, f"{block.name} routed")

            return hook

        assert self.blocks is not None
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        handles = [embedding.register_forward_hook(lambda _, __, out: ResidualTensor.term(out, EMBEDDING))]
        for block in self.blocks:
            handles.append(block.module.register_forward_pre_hook(begin(block), with_kwargs=True))
            handles.append(block.module.register_forward_hook(end(block), with_kwargs=True))
            if block.experts is not None:
                handles.append(block.experts.register_forward_hook(routed(block)))
        return handles

    def _terms_to_leave_out(self, run: _Run) -> dict[str, frozenset[str]]:
        """For each sub-block the labels that it does not read."""
        left_out: dict[str, frozenset[str]] = {}
        since_mixer: list[SubBlock] = []
        mixer: SubBlock | None = None
        for before, block in pairwise(run.order):
            if block in run.sharing and "mixer" in (before.kind, block.kind):
                raise NotImplementedError(f"{before.name} and {block.name} are parallel: they share one read")
        for block in run.order:
            if block.kind == "mixer":
                if self.connectivity in ("full", "attention"):
                    routed = [b.name for b in since_mixer if b.kind == "moe"]
                    left_out[block.name] = frozenset(
                        f"{name} {part}" for name in routed for part in ("routed", "whole")
                    )
                mixer, since_mixer = block, []
            else:
                if mixer is not None and self.connectivity in ("full", "mlp"):
                    left_out[block.name] = frozenset([f"{mixer.name} whole"])
                since_mixer.append(block)
        return left_out


def _sub_blocks(model: nn.Module) -> list[SubBlock]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, layers = max(lists, key=lambda pair: (sum(p.numel() for p in pair[1].parameters()), -len(pair[0])))
    found = []
    for number, layer in enumerate(layers):
        for child_name, child in layer.named_children():
            if any(p.dim() > 1 for p in child.parameters()):
                experts = next((m for n, m in child.named_modules() if n.split(".")[-1] == "experts"), None)
                found.append(SubBlock(f"{name}.{number}.{child_name}", child, experts=experts))
    return found


def _kind(block: SubBlock, args: Any, kwargs: Any, output: Any) -> str:
    """Run the sub-block again with another first token, and see whether the last one changes."""
    values = [*args, *kwargs.values()]
    hidden = next(v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dim() == 3)
    other = plain(hidden).clone()
    other[:, 0] += 1.0

    def swap(value: Any) -> Any:
        return other if value is hidden else plain(value)

    changed = block.module(*map(swap, args), **{key: swap(value) for key, value in kwargs.items()})
    tokens = (*hidden.shape[:2], -1)  # some sub-blocks return a flat list of tokens
    first, second = (plain(o[0] if isinstance(o, tuple) else o).reshape(tokens) for o in (output, changed))
    if not torch.equal(first[:, -1], second[:, -1]):
        return "mixer"
    return "moe" if block.experts is not None else "mlp"


def _plain_everywhere(output: Any) -> Any:
    for key, value in list(output.items()) if hasattr(output, "items") else []:
        if isinstance(value, ResidualTensor):
            output[key] = plain(value)
    return plain(output)
