# SPDX-License-Identifier: Apache-2.0
"""What `torch.export` and Dynamo keep to themselves: the walk along `dynamic_shapes`, guards on sizes, side effects.

Contract: nothing is decided here. Checked by running on torch 2.13.0 only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.decorators import maybe_mark_dynamic
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting
from torch.export import AdditionalInputs, Dim, ShapesCollection
from torch.export.dynamic_shapes import _combine_args, _tree_map_with_path

STATIC = (None, Dim.STATIC)


def plain_shapes(dynamic_shapes: Any, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`dynamic_shapes` in the form that mirrors the inputs."""
    if isinstance(dynamic_shapes, ShapesCollection | AdditionalInputs):
        return dynamic_shapes.dynamic_shapes(model, args, dict(kwargs))
    return dynamic_shapes


def each_open_size(
    see: Callable[[Any, int], None],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
) -> None:
    """Call `see` with each input, and the number of each dimension of it whose size is to vary; -1: a number that is.

    Raises:
        torch._dynamo.exc.UserError: `dynamic_shapes` does not mirror the inputs.
    """
    inputs = _combine_args(model, args, dict(kwargs))
    given = tuple(inputs.values()) if isinstance(dynamic_shapes, tuple | list) else inputs
    shapes = tuple(dynamic_shapes) if isinstance(dynamic_shapes, tuple | list) else dynamic_shapes

    def at(_: object, value: Any, shape: Any) -> None:
        if not isinstance(value, torch.Tensor):
            if shape not in STATIC:
                see(value, -1)
            return
        sizes = shape.items() if isinstance(shape, Mapping) else enumerate(shape or ())
        for number, size in sizes:
            if size not in STATIC and not isinstance(size, int):
                see(value, number)

    _tree_map_with_path(at, given, shapes, tree_name="inputs")


def let_vary(tensor: torch.Tensor, dimension: int) -> None:
    """Let Dynamo take this size for any number, unless the model asks what it is."""
    maybe_mark_dynamic(tensor, dimension)


def objects_changed() -> list[tuple[str, Any]]:
    """The objects, with how Dynamo reached each, that the function which it traces changes, and that were there before.

    To be asked while the backend is called: Dynamo changes them after the graph has run.
    """
    output = InstructionTranslator.current_tx().output
    scope = {"L": output.local_scope, "G": output.global_scope}
    sources = [
        one.source
        for one in output.side_effects._get_modified_vars()
        if isinstance(one.mutation_type, AttributeMutationExisting | ValueMutationExisting)
    ]
    return [("an object", None) if one is None else (one.name, eval(one.name, scope)) for one in sources]


def write_out_sums(graph: fx.Graph) -> None:
    """Write sums of sizes as additions: `torch.export.save` knows no `torch.sym_sum` (2.13)."""
    for node in graph.find_nodes(op="call_function", target=torch.sym_sum):
        first, *others = node.args[0]
        total = first
        with graph.inserting_before(node):
            for other in others:
                added = graph.call_function(operator.add, (total, other))
                added.meta.update(node.meta, val=_value(total) + _value(other))
                total = added
        node.replace_all_uses_with(total)
        graph.erase_node(node)


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, fx.Node) else size


def symbol_of(size: Any) -> Any | None:
    """What a size that may vary goes by in a graph, a key for dictionaries; None: it is a number."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


class Conditions:
    """What a graph takes for granted of the sizes of tensors: Dynamo's guards on them.

    Args:
        placeholders: of the graph, those of the tensors.
    """

    def __init__(self, placeholders: Sequence[fx.Node]) -> None:
        fakes = [node.meta["example_value"] for node in placeholders]
        self._env = next((fake.fake_mode.shape_env for fake in fakes if hasattr(fake, "fake_mode")), None)
        self.text = ""
        """As Python, for messages."""
        if self._env is not None:
            self.text = self._env.produce_guards_expression(fakes, ignore_static=False) or ""

    def hold(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether they hold for these tensors, in the order of the placeholders. Of symbolic sizes, this adds a guard
        to theirs."""
        return self._env is None or not self.text or bool(self._env.evaluate_guards_expression(self.text, tensors))
