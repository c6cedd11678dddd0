# SPDX-License-Identifier: Apache-2.0
"""What an FX node computes: its operator, its value, and what family of operators it belongs to.

Contract: pure questions about one node, answered from its target and its fake value; no graph is walked or changed.
Works on Dynamo's torch IR (functions, methods, `operator`), on ATen overloads and on custom ops alike, by reducing
all of them to one canonical name: `add` for `operator.add`, `torch.add`, `Tensor.add` and `aten.add.Tensor`;
`namespace::name` for an op of another namespace.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import torch
from torch import fx

from farskip_compile._compat import HigherOrderOperator, OpOverload, OpOverloadPacket, same_dim
from farskip_compile._compat.tensors import qualified_name
from farskip_compile.passes.graph.declared import declared
from farskip_compile.passes.graph.operators import Effect, names_with
from farskip_compile.passes.graph.walk import bodies

VIEWS = names_with(Effect.VIEW)
COPIES = names_with(Effect.COPY)
REPEATS = names_with(Effect.EXPAND, Effect.REPEAT, Effect.INTERLEAVE)
AXIS_MOVES = names_with(Effect.UNIT, Effect.TRANSPOSE, Effect.PERMUTE, Effect.MOVE) - {"t"}
SHAPE_OPS = VIEWS | COPIES | AXIS_MOVES | {"detach"}
CAST_OPS = names_with(Effect.CAST)
CHOICES_OF_EXPERTS = frozenset(["topk", "argmax", "kthvalue", "multinomial"])
SELECTION_OPS = CHOICES_OF_EXPERTS | names_with(Effect.SORT) | {"argmin"}
EXTREMES = frozenset(["max", "min", "median", "nanmedian", "mode", "cummax", "cummin"])
"""Along one dimension they return values and the indices of these. The values alone decide nothing: a softmax by hand
subtracts a maximum."""
INDEX_OPS = names_with(Effect.ITEM, Effect.INDEX, Effect.PICK, Effect.PICK_ROWS, Effect.TABLE)
LIKE = names_with(Effect.LIKE)
"""They read the shape and the type of their first argument, not its data."""
SIZES = names_with(Effect.SIZE, Effect.ATTRIBUTE) - {"is_floating_point"}
"""Operators whose result depends on the shape of a tensor, not on its data."""
ZEROS = frozenset(["zeros", "zeros_like", "new_zeros"])
PRODUCTS = frozenset(["mul", "div", "truediv"])
STATISTICS = frozenset(["pow", "square", "mean", "var", "var_mean", "rsqrt", "sqrt", "reciprocal"])
NORM_STEPS = STATISTICS | PRODUCTS | {"add", "sub", "neg"}
LINEAR_COLLECTIVES = frozenset(
    f"_c10d_functional::{name}"
    for name in ("all_reduce", "all_reduce_", "reduce_scatter_tensor", "all_gather_into_tensor")
)
NAMES = 4096
"""Operators whose names are remembered."""


def op_name(node: fx.Node) -> str:
    """Canonical operator name of a call node; the empty string for nodes that call nothing."""
    if node.op == "call_function":
        target = node.target
        known = _names.get(id(target))
        return known[1] if known is not None else function_name(target)
    return str(node.target) if node.op == "call_method" else ""


_names: dict[int, tuple[object, str]] = {}
"""By identity, since an operator hashes itself in Python; each entry keeps its target alive, so that none is reused."""


def function_name(target: object) -> str:
    """Canonical operator name of the target of a function call."""
    if len(_names) >= NAMES:
        _names.clear()
    name = _name_of(target)
    _names[id(target)] = target, name
    return name


def _name_of(target: object) -> str:
    if isinstance(target, OpOverload):
        target = target.overloadpacket
    if isinstance(target, OpOverloadPacket):
        namespace, _, name = qualified_name(target).partition("::")
        return name if namespace in ("aten", "prims") else f"{namespace}::{name}"
    if isinstance(target, HigherOrderOperator):
        return f"higher_order::{target.name()}"
    return str(getattr(target, "__name__", target))


def calls(graph: fx.Graph, holds: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The function calls for which `holds` is true, in order.

    It must depend on the operator alone, and is asked once for each: graphs have many nodes, and few operators.
    """
    answers: dict[int, bool] = {}  # by identity, as in `_names`; the graph keeps the targets
    found = []
    for node in graph.nodes:
        if node.op == "call_function":
            target = id(node.target)
            answer = answers.get(target)
            if answer is None:
                answer = answers[target] = holds(node)
            if answer:
                found.append(node)
    return found


def fake(node: fx.Node) -> object:
    """The fake value that Dynamo or a fake interpreter recorded for `node`."""
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def tensor(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor of `node`, or None if its value is not a tensor."""
    value = fake(node)
    return value if isinstance(value, torch.Tensor) else None


def is_floating(node: fx.Node) -> bool:
    """Whether the value of `node` is a floating-point tensor."""
    value = fake(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_zeros(value: object) -> bool:
    """Whether an argument is a tensor of zeros, as accumulators begin."""
    return isinstance(value, fx.Node) and op_name(value) in ZEROS and not value.kwargs.get("out")


def is_per_token(node: fx.Node) -> bool:
    """Whether the value of `node` is one number for each token: its last dimension is 1."""
    value = tensor(node)
    return value is not None and value.dim() > 0 and same_dim(value.shape[-1], 1)


def repeats_along_features(node: fx.Node) -> bool:
    """Return whether the value of `node` is one number for each token, repeated along the last dimension."""
    value = tensor(node)
    if value is None or value.dim() < 2 or is_per_token(node):
        return False
    if same_dim(value.stride(-1), 0):
        return True
    return op_name(node) in REPEATS and isinstance(source := node.args[0], fx.Node) and is_per_token(source)


def same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes, decided without installing a guard on a symbolic size."""
    left, right = a.shape, b.shape
    return len(left) == len(right) and all(map(same_dim, left, right))


def is_sum(node: fx.Node) -> bool:
    """A floating-point `a + b` or `a - b` of two nodes of the result's own shape (no `alpha`; no broadcast but along
    leading dimensions of size 1)."""
    if op_name(node) not in ("add", "sub") or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return False
    if not all(isinstance(arg, fx.Node) for arg in node.args):
        return False
    if not all(is_floating(part) for part in (node, *node.args)):  # type: ignore[arg-type]
        return False
    out, left, right = tensor(node), tensor(node.args[0]), tensor(node.args[1])  # type: ignore[arg-type]
    return _fills(left, out) and _fills(right, out)  # type: ignore[arg-type]


def _fills(value: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether `value` has the shape of `result`, but for leading dimensions of size 1."""
    new = result.dim() - value.dim()
    if new <= 0:
        return same_shape(value, result)
    return all(same_dim(size, 1) for size in result.shape[:new]) and all(
        same_dim(a, b) for a, b in zip(value.shape, result.shape[new:], strict=True)
    )


@functools.lru_cache(maxsize=4096)
def may_be_linear(name: str) -> bool:
    """Whether calls of an operator, by name, can be a sum or linear in one argument. Those of most operators can't."""
    return (
        name in ("add", "sub", "neg")
        or any(name in names for names in (PRODUCTS, SHAPE_OPS, CAST_OPS, LINEAR_COLLECTIVES))
        or name.endswith(("wait_tensor", "dropout"))
    )


def is_matmul(node: fx.Node) -> bool:
    """Any product of matrices: linear, mm, bmm, einsum, grouped matmul, also as a custom op."""
    return _names_matmul(op_name(node))


def factors(node: fx.Node) -> list[fx.Node]:
    """The inputs of a product; of one in 8 bits without the scales, which belong to what they scale."""
    scaled = op_name(node) in ("_scaled_mm", "_scaled_grouped_mm")
    return node.all_input_nodes[:2] if scaled else node.all_input_nodes


@functools.lru_cache(maxsize=4096)
def _names_matmul(name: str) -> bool:
    return any(part in name for part in ("linear", "matmul", "einsum")) or bool(re.search(r"mm(_|$)", name))


def multiplies(node: fx.Node) -> bool:
    """May apply a weight: a product of matrices, a convolution, or an operator outside ATen."""
    return is_matmul(node) or is_scan(node) or "::" in op_name(node)


def is_attention(node: fx.Node) -> bool:
    """A fused attention operator, also inside a higher-order operator, or what was declared as one."""
    return declared(node) == "attention" or _any_name(node, _names_attention)


@functools.lru_cache(maxsize=4096)
def _names_attention(name: str) -> bool:
    return "attention" in name or "flash_attn" in name


def is_scan(node: fx.Node) -> bool:
    """A recurrence or a convolution along tokens, or what was declared as a mixer."""
    return declared(node) == "mixer" or _any_name(node, _names_scan)


@functools.lru_cache(maxsize=4096)
def _names_scan(name: str) -> bool:
    return bool(re.search(r"(^|_)conv(1d|olution)|scan", name))


def is_selection(node: fx.Node) -> bool:
    """Return whether `node` picks indices by value: the decision of a router (also of a sparse attention's indexer, or
    inside what was declared as routed). Of an extreme (`torch.max(p, -1)`) that is the second member of the result."""
    name = op_name(node)
    if declared(node) == "routed" or (name == "getitem" and _is_index_of_extreme(node)):
        return True
    if not name.startswith("higher_order::"):
        return name in SELECTION_OPS
    return any(op_name(inner) in SELECTION_OPS or _is_index_of_extreme(inner) for inner in _nodes_inside(node))


def _is_index_of_extreme(node: fx.Node) -> bool:
    if op_name(node) != "getitem" or node.args[1] != 1:
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and op_name(source) in EXTREMES and isinstance(fake(source), tuple | list)


def is_norm(node: fx.Node) -> bool:
    """A normalisation operator, or one elementwise step of an open-coded one."""
    name = op_name(node)
    return name.endswith("norm") or name in NORM_STEPS or name in CAST_OPS or name in SHAPE_OPS


def is_inactive_dropout(node: fx.Node) -> bool:
    """A dropout that returns its input: not in training mode, or with probability 0."""
    if not op_name(node).endswith("dropout"):
        return False
    probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", node.kwargs.get("train", True))
    return training is False or (isinstance(probability, int | float) and probability == 0)


def _any_name(node: fx.Node, holds: Callable[[str], bool]) -> bool:
    """Return whether `holds` is true of the operator of `node` or of one inside `node`."""
    name = op_name(node)
    return any(map(holds, map(op_name, _nodes_inside(node)))) if name.startswith("higher_order::") else holds(name)


def _nodes_inside(node: fx.Node) -> Iterator[fx.Node]:
    """Yield `node` and, for a higher-order operator, all nodes in its bodies."""
    yield node
    if op_name(node).startswith("higher_order::"):
        for body in bodies(node):
            for inner in body.graph.nodes:
                yield from _nodes_inside(inner)
