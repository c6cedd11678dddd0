# SPDX-License-Identifier: Apache-2.0
"""Each value of a graph as one number: graphs that compute the same have the same numbers, others differ by chance.

Contract: `read_steps` reduces the nodes of a normalised graph to steps, of which `steps.evaluate` computes the numbers.
Looks at operators, constants, edges and fake values; computes no tensor.

Algorithm (linear): the graph is evaluated once, at a random point of a prime field.
1. Elementwise sums, differences, products and quotients are those of numbers, and a Python number is itself. So the
   coefficient of each term counts, its sign, and how often it is added; the order of additions does not. An
   accumulation is the sum of its base and of a hash of its other arguments, which is the number of its mark.
2. What is linear and more than a view of memory (a cast that rounds, a collective, a transposition) multiplies by a
   random number of its own; equal operators with equal constants have equal ones. Each shape has a number, too: a
   `view` multiplies by that of the new shape and divides by that of the old one, so that there and back is nothing.
   Each interval of a dimension has one, by which a part of a split multiplies, and `cat` divides; weights that add up
   to 1 make the parts of a whole that whole.
3. Everything else is a hash of its operator, its constants and the numbers that it reads. So is a write to memory: what
   reads that memory later reads the write too. A random operator reads the one before it, and whatever comes after a
   switch, such as the beginning of autocast, reads that.
Two different polynomials agree at a random point with a probability of about their degree over 2^61.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops, user_calls
from farskip_compile.passes.normalize.accumulations import STANDS_FOR
from farskip_compile.passes.residual.sums import Dataflow
from farskip_compile.verify.field import PRIME, fraction, inverse, joining, number_of, taking
from farskip_compile.verify.steps import NumberedGraph, NumberedStep, Rule

FLOAT8 = frozenset(
    dtype for name in dir(torch) if name.startswith("float8") and isinstance(dtype := getattr(torch, name), torch.dtype)
)
SAME_VALUES = frozenset(["contiguous", "clone", "alias"])
"""Operators that give back what they are given."""
KEEPS_ORDER = frozenset(["view", "reshape", "_unsafe_view"])
"""Operators that give back what they are given in the shape that they name. A chain of them is the same as one from the
first shape to the last."""
ELEMENTWISE = frozenset({"add", "sub"} | ops.PRODUCTS)
PARTS = frozenset(["cat", "getitem"])
"""Operators that join the parts of a split, or take one."""
ADDS = frozenset(["scatter_reduce", "index_put", "index_add", "scatter_add", "put_sum", "added_alone"])
"""Operators that may add something to their first argument."""
_NODE, _OPEN, _CLOSE = 1, 2, 3


def read_steps(flow: Dataflow) -> NumberedGraph:
    """The steps of a normalised graph."""
    steps: list[NumberedStep] = []
    acting: list[int] = []
    acts: dict[int, tuple[bool, bool]] = {}  # by identity of what is called: operators hash themselves in Python
    nothing = False, False
    last_random: tuple[int, ...] = ()
    last_switch: tuple[int, ...] = ()
    place_of = flow.order
    written = effects.writers(flow.nodes)
    for place, node in enumerate(flow.nodes):
        step = _read(node, place_of)
        if (mark := flow.addends.get(node)) is not None:
            step = _accumulation(node, mark, steps[place_of[mark]], place_of)
        writes = flow.after.get(node)
        if writes:
            step.after = tuple(place_of[write] for write in writes)
        if step.rule in (Rule.HASH, Rule.ADDED):
            step.after += last_switch
        writes_memory = node in written
        answer = acts.get(id(node.target)) if node.op in ("call_function", "call_method") else nothing
        if answer is None:
            answer = acts[id(node.target)] = _acts(node)
        may_be_random, is_impure = answer
        if may_be_random and effects.is_random(node):
            step.after += last_random
            last_random = (place,)
            acting.append(place)
        elif (writes_memory or is_impure) and not (comms.is_collective(node) or comms.is_wait(node)):
            last_switch = last_switch if writes_memory else (place,)
            acting.append(place)
        steps.append(step)
    return NumberedGraph(steps, acting)


def _acts(node: fx.Node) -> tuple[bool, bool]:
    """Return whether what `node` calls may draw random numbers, and whether it is impure."""
    return effects.may_be_random(node), node.op == "call_function" and node.is_impure()


def _like(value: object) -> str:
    """A tensor without its data; anything else as it prints."""
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{tuple(value.shape)} {value.dtype} {value.device} {value.layout}"


def _read(node: fx.Node, place_of: Mapping[fx.Node, int]) -> NumberedStep:
    if node.op in ("placeholder", "get_attr"):
        return NumberedStep(node.name, Rule.HASH, number_of(f"{node.op} {node.target}"), ())
    name = ops.op_name(node) or f"{node.op} {node.target}"
    if name in ELEMENTWISE and len(node.args) == 2 and (not node.kwargs or node.kwargs == {"alpha": 1}):
        step = _elementwise(node, name, place_of)
        if step is not None:
            return step
    if name in ops.SIZES and ops.tensor(node) is None:
        return NumberedStep(node.name, Rule.HASH, number_of(f"{name} {ops.fake(node)}"), ())
    if name in PARTS or name in ADDS:
        step = _of_parts(node, name, place_of) if name in PARTS else _addend(node, name, place_of)
        if step is not None:
            return step
    linear = ops.may_be_linear(name) or ("::" in name and comms.is_linear_collective(node))
    factor = _factor(node, name) if linear else None
    if factor is not None:
        return NumberedStep(node.name, Rule.AFFINE, 0, (place_of[node.args[0]],), (factor,))  # type: ignore[index]
    constants = [number_of(name)]
    inputs: list[int] = []
    if name in ops.LIKE:
        constants.append(number_of(_like(ops.fake(node))))
    _scan(node.args[1:] if name in ops.LIKE else node.args, place_of, inputs, constants)
    if node.kwargs:
        _scan(node.kwargs, place_of, inputs, constants)
    return NumberedStep(node.name, Rule.HASH, hash(tuple(constants)), tuple(inputs))


def _accumulates(node: fx.Node, name: str) -> bool:
    """Return whether `node`, a call of the operator `name`, adds what its other arguments say to the first one."""
    if name == "scatter_reduce":
        return _given(node, 4, "reduce", None) == "sum" and _given(node, 5, "include_self", True) is True
    if name == "index_put":
        return _given(node, 3, "accumulate", False) is True
    return name in ADDS and name != "added_alone"


def _given(node: fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _addend(node: fx.Node, name: str, place_of: Mapping[fx.Node, int]) -> NumberedStep | None:
    """Rule 3 for a mark, and for an accumulation into zeros: the addend alone. Rule 1 for any other accumulation."""
    if name == "added_alone":
        target = node.meta[STANDS_FOR][1]
        return _adds(node, target if isinstance(target, str) else ops.function_name(target), place_of)
    found = _adds(node, name, place_of)
    if found is None or ops.is_zeros(node.args[0]) or not isinstance(node.args[0], fx.Node):
        return found
    return replace(found, rule=Rule.ADDED, inputs=(place_of[node.args[0]], *found.inputs))


def _accumulation(node: fx.Node, mark: fx.Node, addend: NumberedStep, place_of: Mapping[fx.Node, int]) -> NumberedStep:
    """Rule 1 for an accumulation with a mark, whose step is `addend`: the sum of the base and the addend.

    Raises:
        VerificationError: the mark says another addend than the accumulation's own arguments do.
    """
    own = _adds(node, ops.op_name(node), place_of)
    if own is None or (own.key, own.inputs) != (addend.key, addend.inputs):
        raise VerificationError(
            f"{ops.op_name(node)!r} was taken for the sum of its base and of something that its arguments do not say",
            way_out="nothing was compiled; please report this: it is a defect of farskip-compile",
            where=user_calls.where(node),
        )
    return NumberedStep(node.name, Rule.AFFINE, 0, (place_of[node.args[0]], place_of[mark]), (1, 1))  # type: ignore[index]


def _adds(node: fx.Node, name: str, place_of: Mapping[fx.Node, int]) -> NumberedStep | None:
    """The addend of an accumulation, by its own arguments; None if it is none."""
    value = ops.tensor(node)
    if not _accumulates(node, name) or value is None:
        return None
    constants = [number_of(f"added by {name}"), number_of(f"{tuple(value.shape)} {value.dtype}")]
    inputs: list[int] = []
    _scan((node.args[1:], dict(node.kwargs)), place_of, inputs, constants)
    return NumberedStep(node.name, Rule.HASH, hash(tuple(constants)), tuple(inputs))


def _elementwise(node: fx.Node, name: str, place_of: Mapping[fx.Node, int]) -> NumberedStep | None:
    """Rule 1: a sum, difference, product or quotient; None if something is among its arguments that has no number."""
    places = tuple(place_of[arg] for arg in node.args if isinstance(arg, fx.Node))
    if len(places) == 2:
        return _of_two(node.name, name, places)
    if len(places) != 1:
        return None
    node_first = isinstance(node.args[0], fx.Node)
    constant = node.args[1 if node_first else 0]
    if not isinstance(constant, int | float) or isinstance(constant, bool):
        return None
    number = fraction(constant)
    return None if number is None else _of_node_and_number(node.name, name, places, number, node_first)


def _of_two(node: str, name: str, places: tuple[int, ...]) -> NumberedStep:
    if name in ("add", "sub"):
        return NumberedStep(node, Rule.AFFINE, 0, places, (1, 1 if name == "add" else -1))
    return NumberedStep(node, Rule.PRODUCT if name == "mul" else Rule.QUOTIENT, 1, places)


def _of_node_and_number(
    node: str, name: str, places: tuple[int, ...], number: int, node_first: bool
) -> NumberedStep | None:
    """`number - a` and `number / a` are not `a - number` and `a / number`."""
    if name == "add":
        return NumberedStep(node, Rule.AFFINE, number, places, (1,))
    if name == "sub":
        return NumberedStep(node, Rule.AFFINE, -number if node_first else number, places, (1 if node_first else -1,))
    if name == "mul":
        return NumberedStep(node, Rule.AFFINE, 0, places, (number,))
    if not node_first:
        return NumberedStep(node, Rule.QUOTIENT, number, places)
    return NumberedStep(node, Rule.AFFINE, 0, places, (pow(number, PRIME - 2, PRIME),)) if number else None


def _factor(node: fx.Node, name: str) -> int | None:
    """Rule 2: what a linear operator multiplies its first argument by; None if it is not linear."""
    first = node.args[0] if node.args else None
    value, result = ops.tensor(first) if isinstance(first, fx.Node) else None, ops.tensor(node)
    if value is None or result is None:
        return None
    if name in ops.CAST_OPS:
        return _cast_factor(value, result)
    if name in SAME_VALUES:
        return 1
    if name == "neg":
        return -1
    if name not in ops.SHAPE_OPS and (comms.is_wait(node) or ops.is_inactive_dropout(node)):
        return 1
    return _shape_factor(node, name, value, result)


def _shape_factor(node: fx.Node, name: str, before: torch.Tensor, after: torch.Tensor) -> int | None:
    """The same for what moves values, or adds up those of the ranks; None for any other operator."""
    if name in KEEPS_ORDER and _names_its_shape(node):
        return number_of(str(tuple(after.shape))) * inverse(str(tuple(before.shape))) % PRIME
    if name in ("view_as", "reshape_as"):
        return number_of(name)
    if name not in ops.SHAPE_OPS and not comms.is_linear_collective(node):
        return None
    # a size is not followed: it is the same wherever it comes from
    constants = (fx.map_arg(arg, lambda size: str(ops.fake(size))) for arg in (*node.args[1:], *node.kwargs.items()))
    return hash((number_of(name), *(number_of(str(one)) for one in constants))) % PRIME


def _of_parts(node: fx.Node, name: str, place_of: Mapping[fx.Node, int]) -> NumberedStep | None:
    """Rule 2 for a part of a split, and for `cat`; None if it is neither, or has sizes that data decides."""
    given = node.args[0] if node.args else None
    if name == "cat" and isinstance(given, list | tuple) and not node.kwargs:
        dim = node.args[1] if len(node.args) > 1 else 0
        factors = joining([ops.tensor(one) for one in given], dim)
        places = tuple(place_of[one] for one in given) if factors else ()
        return NumberedStep(node.name, Rule.AFFINE, 0, places, tuple(factors)) if factors else None
    if name != "getitem" or not isinstance(given, fx.Node) or ops.op_name(given) != "split":
        return None
    source, dim = given.args[0], given.args[2] if len(given.args) > 2 else given.kwargs.get("dim", 0)
    factor = taking(ops.fake(given), node.args[1], dim)
    if factor is None or not isinstance(source, fx.Node):
        return None
    return NumberedStep(node.name, Rule.AFFINE, 0, (place_of[source],), (factor,))


def _names_its_shape(node: fx.Node) -> bool:
    """Whether the sizes that a change of shape asks for are those that it gives: only then they determine it."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    value = ops.tensor(node)
    if value is None or len(sizes) != value.dim() or node.kwargs or sizes.count(-1) > 1:
        return False
    asked = (ops.fake(size) if isinstance(size, fx.Node) else size for size in sizes)
    return all(one == -1 or str(one) == str(length) for one, length in zip(asked, value.shape, strict=True))


def _cast_factor(before: torch.Tensor, after: torch.Tensor) -> int:
    """A cast that keeps every number multiplies by 1."""
    return 1 if _holds(after.dtype, before.dtype) else number_of(f"round to {after.dtype}")


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether `wide` has every number that `narrow` has. PyTorch promotes no type of 8 bits to any other."""
    if wide == narrow or not {wide, narrow} & FLOAT8:
        return torch.promote_types(narrow, wide) == wide
    return narrow in FLOAT8 and wide.is_floating_point and wide.itemsize > 2


def _scan(value: object, place_of: Mapping[fx.Node, int], inputs: list[int], constants: list[int]) -> None:
    """Split arguments into nodes and all else, such that both together determine the arguments."""
    if isinstance(value, fx.Node):
        inputs.append(place_of[value])
        constants.append(_NODE)
    elif isinstance(value, tuple | list):
        constants.append(_OPEN)
        for part in value:
            _scan(part, place_of, inputs, constants)
        constants.append(_CLOSE)
    elif isinstance(value, dict):
        for key, part in value.items():
            constants.append(number_of(str(key)))
            _scan(part, place_of, inputs, constants)
    elif isinstance(value, slice):
        _scan((value.start, value.stop, value.step), place_of, inputs, constants)
    else:
        group = getattr(value, "group_name", None)
        constants.append(number_of(f"{type(value).__name__} {value if group is None else group}"))
