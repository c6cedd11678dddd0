# SPDX-License-Identifier: Apache-2.0
"""How products pass rows on: sums over the dimensions that the result does not have.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.arguments import first_of
from farskip_compile.verify.rows.moved import along
from farskip_compile.verify.rows.no_rule import unknown
from farskip_compile.verify.rows.state import FactsOf, RowDependence, RowFacts, merged, worst


def product(node: fx.Node, given: FactsOf) -> RowFacts:
    """A product of matrices."""
    args = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if len(args) < 2:
        return unknown(node, given)
    return contraction(node, given, args[:2], ["...mk", "...kn"], "...mn")


def grouped(node: fx.Node, given: FactsOf) -> RowFacts:
    """Rows in groups, each group by a weight of its own; offsets say where the groups end."""
    first, rows = first_of(node, given)
    others = worst([given(arg) for arg in node.all_input_nodes if arg is not first])
    value = ops.tensor(node)
    picked = layouts.index_of(rows.layout) and all(map(layouts.is_picked, filter(layouts.tokens, rows.layout)))
    if rows.state is RowDependence.ROWS and (
        others.state is RowDependence.DECISION or (picked and others.state is RowDependence.FREE)
    ):
        layout = along((*layouts.loosened(rows.layout[:-1]), ()), (), value.shape) if value is not None else ()
        if layouts.tokens(rows.layout[-1]):
            return RowFacts(RowDependence.MIXED, at=node)
        return RowFacts(
            RowDependence.MOVED, layout, decided=rows.decided or others.state is RowDependence.DECISION, at=node
        )
    if rows.state is RowDependence.MOVED and others.state <= RowDependence.DECISION:
        return RowFacts(RowDependence.MOVED, decided=rows.decided or others.state is RowDependence.DECISION, at=rows.at)
    return unknown(node, given)


def matmul(node: fx.Node, given: FactsOf) -> RowFacts:
    """`torch.matmul`, of vectors too."""
    args = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if len(args) != 2:
        return unknown(node, given)
    left, right = (len(value.shape) if (value := ops.tensor(arg)) is not None else 0 for arg in args)
    a = "k" if left == 1 else "...mk"
    b = "k" if right == 1 else "...kn"
    out = "..." + ("m" if left > 1 else "") + ("n" if right > 1 else "")
    return contraction(node, given, args, [a, b], out)


def biased(node: fx.Node, given: FactsOf) -> RowFacts:
    """The product of the last two arguments, plus the first."""
    args = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if len(args) != 3:
        return unknown(node, given)
    return _plus(node, contraction(node, given, args[1:], ["...mk", "...kn"], "...mn"), given(args[0]))


def scaled(node: fx.Node, given: FactsOf) -> RowFacts:
    """The product of the first two arguments in 8 bits, by a scale for each row and each column, plus a bias."""
    args = [*node.args, *(node.kwargs[key] for key in ("scale_a", "scale_b", "bias") if key in node.kwargs)]
    tensors = [arg for arg in args if isinstance(arg, fx.Node)]
    if len(tensors) < 4:
        return unknown(node, given)
    found = contraction(node, given, tensors[:2], ["...mk", "...kn"], "...mn")
    for other in tensors[2:]:
        found = _plus(node, found, given(other))
    return found


def _plus(node: fx.Node, found: RowFacts, bias: RowFacts) -> RowFacts:
    """A product, and what is added to it, or what it is multiplied by."""
    value = ops.tensor(node)
    if bias.state is RowDependence.FREE or value is None:
        return found
    both = [
        one._replace(layout=layouts.broadcast([one.layout], value.shape) or ())
        if one.state is RowDependence.ROWS
        else one
        for one in (found, bias)
    ]
    return merged(both, node)


def linear(node: fx.Node, given: FactsOf) -> RowFacts:
    """A weight, or what stands for one, on the last dimension."""
    args = [*node.args, *(node.kwargs[key] for key in ("input", "weight", "bias") if key in node.kwargs)]
    tensors = [arg for arg in args if isinstance(arg, fx.Node)]
    if not 2 <= len(tensors) <= 3:
        return unknown(node, given)
    weight = ops.tensor(tensors[1])
    labels = ["...k", "k"] if weight is not None and weight.dim() == 1 else ["...k", "nk"]
    found = contraction(node, given, tensors[:2], labels, "..." if labels[1] == "k" else "...n")
    return _plus(node, found, given(tensors[2])) if len(tensors) > 2 else found


def einsum(node: fx.Node, given: FactsOf) -> RowFacts:
    """By its equation."""
    equation, *args = node.args or (None,)
    operands = list(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else list(args)
    if not all(isinstance(one, fx.Node) for one in operands) or not isinstance(equation, str) or "->" not in equation:
        return unknown(node, given)
    inputs, out = equation.replace(" ", "").split("->")
    return contraction(node, given, operands, inputs.split(","), out)


def contraction(node: fx.Node, given: FactsOf, args: Sequence[Any], labels: Sequence[str], out: str) -> RowFacts:
    """A sum of products over the labels that the result does not have."""
    rows = [given(arg) for arg in args]
    found = worst(rows)
    if found.state < RowDependence.ROWS or found.state > RowDependence.MOVED:
        return found
    value = ops.tensor(node)
    assert value is not None
    spelled = [_spell(label, ops.tensor(arg).dim(), value.dim(), out) for label, arg in zip(labels, args, strict=True)]  # type: ignore[union-attr]
    names_out = _spell(out, value.dim(), value.dim(), out)
    dims: dict[str, tuple[layouts.RowAxis, ...]] = {}
    added = False
    for number, (one, names) in enumerate(zip(rows, spelled, strict=True)):
        if one.state is not RowDependence.ROWS:
            continue
        for name, dim in zip(names, one.layout, strict=True):
            if not layouts.tokens(dim):
                continue
            if name not in names_out:
                if layouts.is_picked(dim) and _are_coefficients(number, rows, spelled, names_out):
                    added = True
                    continue
                return _contracted(node, rows, spelled, names_out)
            if dims.setdefault(name, dim) != dim:
                if not (layouts.is_picked(dim) or layouts.is_picked(dims[name])):
                    return RowFacts(RowDependence.MIXED, at=node)
                dims[name] = dim if layouts.is_picked(dim) else dims[name]
    if found.state is RowDependence.MOVED:
        moved = sum(one.state in (RowDependence.MOVED, RowDependence.ROWS) for one in rows)
        return found if moved == 1 or any(one.decided for one in rows) else RowFacts(RowDependence.MIXED, at=node)
    seen = [token for dim in dims.values() for token in layouts.tokens(dim) if token != layouts.PICKED]
    if len(seen) != len(set(seen)) or _every_with_every(rows, spelled, names_out):
        return RowFacts(RowDependence.MIXED, at=node)
    layout = tuple(_sized(dims.get(name, ()), size) for name, size in zip(names_out, value.shape, strict=True))
    decided = any(one.decided or one.picked or one.state is RowDependence.DECISION for one in rows)
    return RowFacts(RowDependence.ROWS, layout, decided=decided, summed=added)


def _sized(dim: Sequence[layouts.RowAxis], size: layouts.RowCount) -> tuple[layouts.RowAxis, ...]:
    """A dimension of the result: features and picked rows may be as many as those of another operand."""
    if not layouts.tokens(dim):
        return layouts.features([size])[0]
    return layouts.picked(size) if layouts.is_picked(dim) else tuple(dim)


def _are_coefficients(
    place: int, rows: Sequence[RowFacts], spelled: Sequence[Sequence[str]], out: Sequence[str]
) -> bool:
    """Whether what the picked rows of one operand are multiplied by, before they are added up, comes from decisions, as
    a router's weights do: not from other picked rows."""
    others = [(one, names) for number, (one, names) in enumerate(zip(rows, spelled, strict=True)) if number != place]
    return bool(others) and all(
        one.state is RowDependence.DECISION
        or ((one.picked or one.decided) and _indices(one, names, picked=True) & set(out) <= set(spelled[place]))
        for one, names in others
    )


def _indices(one: RowFacts, names: Sequence[str], *, picked: bool = False) -> set[str]:
    """The labels of an operand that rows, or only those that picked rows, are along."""
    if one.state is not RowDependence.ROWS:
        return set()
    is_one = layouts.is_picked if picked else layouts.tokens
    return {name for name, dim in zip(names, one.layout, strict=True) if is_one(dim)}


def _every_with_every(rows: Sequence[RowFacts], spelled: Sequence[Sequence[str]], out: Sequence[str]) -> bool:
    """Whether the result has a place for each of the rows of one operand with each of another's, or with their sum."""
    held = [
        (_indices(one, names), set(names), one.summed)
        for one, names in zip(rows, spelled, strict=True)
        if one.state is RowDependence.ROWS
    ]
    held = [one for one in held if (one[0] or one[2]) and one[0] <= set(out)]
    return any(
        not a <= names_b and (summed_b or not b <= names_a) for a, names_a, _ in held for b, names_b, summed_b in held
    )


def _contracted(
    node: fx.Node, rows: Sequence[RowFacts], spelled: Sequence[Sequence[str]], out: Sequence[str]
) -> RowFacts:
    """A sum over rows: with coefficients that are decisions it moves them, with others it mixes them."""
    others = [one for one in rows if one.state is not RowDependence.ROWS]
    if not others or not all(one.state is RowDependence.DECISION for one in others):
        return RowFacts(RowDependence.MIXED, at=node)
    value = ops.tensor(node)
    assert value is not None
    decided = {
        name for one, names in zip(rows, spelled, strict=True) if one.state is RowDependence.DECISION for name in names
    }
    kept = {
        name: dim
        for one, names in zip(rows, spelled, strict=True)
        if one.state is RowDependence.ROWS
        for name, dim in zip(names, one.layout, strict=True)
    }
    layout = tuple(() if name in decided else layouts.loosened([kept[name]])[0] for name in out)
    dims = [place for place, name in enumerate(out) if name in decided]
    return RowFacts(RowDependence.MOVED, along(layout, dims, value.shape), decided=True, summed=True, at=node)


def _spell(label: str, dims: int, out_dims: int, out: str) -> list[str]:
    """The labels with the dimensions of `...` numbered from the right."""
    if "..." not in label:
        return list(label)
    front, back = label.split("...")
    count = dims - len(front) - len(back)
    return [*front, *(f".{place}" for place in range(count, 0, -1)), *back]
