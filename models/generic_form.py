# SPDX-License-Identifier: Apache-2.0
"""The FarSkip form of any decoder, in eager mode: one oracle for all families and code bases.

Contract: runs the model's own forward and adds the residual terms itself (`residual_tensor`): hooks show which
sub-block is running (`sub_blocks`), and each reader of the residual stream gets the sum without the terms that FarSkip
leaves out (`generic_rules`). Shares parameters with the model, and nothing with the compiler: no graph, no pass.
Caches, padding, labels and gradients pass through. Anything unsupported raises `NotImplementedError`.

1. A first run on a few tokens, without a cache, finds the order of the sub-blocks, their kinds, and which of them share
   one read of the stream (parallel blocks). Routed is what the experts return, or, where they are not a separate
   module, what depends on a selection (`selected_terms`).
2. In every other run a read of the stream is for the running sub-block, or for the one that begins next. Where
   sub-blocks that share a read leave out different terms, everything computed from it is computed for each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.models.generic_rules import ForwardEvents, terms_to_leave_out
from farskip_compile.models.residual_tensor import Expression, ForkedTensor, ResidualTensor, plain, reading
from farskip_compile.models.selected_terms import SelectedTerms
from farskip_compile.models.sub_blocks import SubBlockModule, embedding_of, find_sub_blocks, kind_of, parts

EMBEDDING = "e"


class GenericFarSkipForm(nn.Module):
    """Calls the model, with FarSkip's reads.

    Args:
        model: a causal language model; its parameters are shared.
        connectivity: which rows change.
        layers: (first, last), both inclusive, as the compiler counts them: a layer begins at each mixer.
    """

    def __init__(
        self, model: nn.Module, connectivity: ConnectivityName = "full", layers: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.connectivity = connectivity
        self.layers = layers
        self.original = model.forward
        self.blocks: list[SubBlockModule] = find_sub_blocks(model)
        self.known: ForwardEvents | None = None
        self.left_out: dict[SubBlockModule, frozenset[str]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward in FarSkip form."""
        if self.known is None:
            with torch.no_grad(), _buffers_kept(self.model):
                args_, kwargs_ = self._few_tokens(args, kwargs)
                known = self._run(args_, kwargs_, None)[1]
                # what reads a sum with its own term holds more than one: it goes on to the norm of the next
                if opened := [block for block in known.order if _whole(block) in known.holds[block]]:
                    inside = {block: parts(block.name, block.module) for block in opened}
                    self.blocks = [part for block in self.blocks for part in inside.get(block, [block])]
                    known = self._run(args_, kwargs_, None)[1]
                if known.behind:
                    self.blocks = [block for block in self.blocks if block not in known.behind]
                    known = self._run(args_, kwargs_, None)[1]
                # a module whose output never reaches the stream, such as a router, belongs to the next sub-block
                if any(block.name not in known.seen for block in known.order):
                    self.blocks = [block for block in self.blocks if block.name in known.seen]
                    known = self._run(args_, kwargs_, None)[1]
            self.left_out = terms_to_leave_out(known, self.connectivity, self.layers)
            self.known = known
        output, run = self._run(args, kwargs, self.known)
        if run.order != self.known.order:
            raise NotImplementedError("the sub-blocks are at work in another order than in the first run")
        return output

    def _few_tokens(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return inputs of the first run without a cache, which a sub-block that runs twice would fill twice.

        A model without a cache keeps its inputs.
        """
        if not hasattr(self.model, "get_input_embeddings"):
            return args, kwargs
        ids = torch.arange(1, 7, device=next(self.model.parameters()).device).unsqueeze(0)
        return (ids,), {"use_cache": False}

    def _run(self, args: Any, kwargs: Any, known: ForwardEvents | None) -> tuple[Any, ForwardEvents]:
        run = ForwardEvents()

        def label(value: torch.Tensor, beside: frozenset[str]) -> Expression | None:
            if EMBEDDING not in beside and not run.inside:
                return None  # made of what a sub-block has given, such as a convolution of it: one term with it
            last = run.order[-1].name if run.order else EMBEDDING
            # a summand inside a sub-block, next to its routed part, is shared; one in the stream is all that it adds
            return Expression(value, frozenset([f"{last} {'whole' if EMBEDDING in beside else 'shared'}"]))

        def read(expression: Expression) -> torch.Tensor:
            if EMBEDDING not in expression.labels:
                return expression.value
            run.reads += not run.inside
            run.seen |= {label.rpartition(" ")[0] for label in expression.labels}
            if run.inside:
                run.holds[run.inside[-1]] |= expression.labels
            else:
                run.held |= expression.labels
            readers = self._readers(run, known)
            if not readers:
                return expression.value
            values = {block.name: expression.without(self.left_out.get(block, frozenset())) for block in readers}
            first = values[readers[0].name]
            assert first is not None
            same = all(value is first for value in values.values())
            return first if same else ForkedTensor.of(values)

        def selected() -> str | None:
            return f"{run.inside[-1].name} routed" if run.inside and run.inside[-1].experts is None else None

        selection = SelectedTerms(selected)
        handles = self._hooks(run, selection, measure=known is None)
        try:
            with reading(label, read), selection:
                output = self.original(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return _plain_everywhere(output), run

    @staticmethod
    def _readers(run: ForwardEvents, known: ForwardEvents | None) -> list[SubBlockModule]:
        """Return the sub-blocks for which the stream is being read."""
        if known is None:
            return []
        if run.inside:
            return run.inside[-1:]
        readers: list[SubBlockModule] = []
        for block in known.order[len(run.order) :]:
            if readers and block not in known.sharing:
                break
            readers.append(block)
        return readers

    def _hooks(self, run: ForwardEvents, selection: SelectedTerms, *, measure: bool) -> list[Any]:
        """On the embedding, the sub-blocks and their experts."""

        def begin(block: SubBlockModule) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
                if run.quiet:
                    return None
                if not run.reads and not any(isinstance(v, ResidualTensor) for v in (*args, *kwargs.values())):
                    run.sharing.add(block)
                sums = [value.expression for value in (*args, *kwargs.values()) if isinstance(value, ResidualTensor)]
                if sums and not any(EMBEDDING in one.labels for one in sums) and block.size < run.order[-1].size:
                    run.behind.add(block)
                run.holds[block] = run.held
                run.reads, run.held = 0, frozenset()
                run.order.append(block)
                run.inside.append(block)
                mine = [v.alternatives.get(block.name) if isinstance(v, ForkedTensor) else v for v in args]
                named = {
                    k: v.alternatives.get(block.name) if isinstance(v, ForkedTensor) else v for k, v in kwargs.items()
                }
                return tuple(mine), named

            return hook

        def end(block: SubBlockModule) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
                if run.quiet:
                    return output
                if measure:
                    run.quiet = True
                    block.kind = kind_of(block, args, kwargs, output, selection.follows(output))
                    run.quiet = False
                run.inside.pop()
                return _as_term(output, _whole(block))

            return hook

        def routed(block: SubBlockModule) -> Callable[..., Any]:
            return lambda _, __, output: _as_term(output, f"{block.name} routed")

        handles = [
            embedding_of(self.model).register_forward_hook(lambda _, __, out: ResidualTensor.term(out, EMBEDDING))
        ]
        for block in self.blocks:
            handles.append(block.module.register_forward_pre_hook(begin(block), with_kwargs=True))
            if block.experts is not None:
                handles.append(block.experts.register_forward_hook(routed(block)))
            handles.append(block.module.register_forward_hook(end(block), with_kwargs=True))
        return handles


@contextmanager
def installed(
    model: nn.Module, connectivity: ConnectivityName = "full", layers: tuple[int, int] | None = None
) -> Iterator[GenericFarSkipForm]:
    """Put `model` itself into FarSkip form within the block, also for callers such as `model.generate`."""
    form = GenericFarSkipForm(model, connectivity, layers)

    @functools.wraps(form.original)  # callers inspect its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        return form(*args, **kwargs)

    model.forward = forward
    try:
        yield form
    finally:
        model.forward = form.original


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Keep the model's counters as they were before the first run."""
    before = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        yield
    finally:
        for buffer, value in before.items():
            buffer.copy_(value)


def _whole(block: SubBlockModule) -> str:
    """Return the label of the whole output of a sub-block."""
    return f"{block.name} whole"


def _as_term(output: Any, label: str) -> Any:
    """`output` as a term, unless it is a sum of terms already."""
    if isinstance(output, tuple):
        return (_as_term(output[0], label), *output[1:])
    if isinstance(output, torch.Tensor) and not isinstance(output, ResidualTensor):
        return ResidualTensor.term(output, label)
    return output


def _plain_everywhere(output: Any) -> Any:
    if isinstance(output, tuple | list) and type(output) in (tuple, list):
        return type(output)(map(_plain_everywhere, output))
    for key, value in list(output.items()) if hasattr(output, "items") else []:
        output[key] = _plain_everywhere(value)
    return plain(output)
