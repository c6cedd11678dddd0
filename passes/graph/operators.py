# SPDX-License-Identifier: Apache-2.0
"""The table of operators: what each one does to the dimensions of its arguments.

Contract: pure data. Detection (`graph.ops`, `residual`), the cutters (`pieces`) and the proofs (`verify.rows`,
`verify.tokens`) each interpret it in their own way; none of them keeps a list of its own of what an operator does to
rows. How a call spells its dimensions is read by `operator_calls`, from the same lines.

A wrong line would mislead detection and the proofs alike, so no line is trusted: `tests/verify/test_every_rule.py` runs
each operator of the table on numbers, and holds what `verify.rows` says of its rows against them;
`tests/verify/test_every_label.py` does the same for the labels of `verify.tokens`. Both fail for a line that no call in
`tests/verify/operator_calls.py` exercises.

To add an operator, add its name to the line of its family, or a new line, and ways to call it to `operator_calls.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum, auto

import torch

from farskip_compile._compat import OpOverloadPacket


class Effect(Enum):
    """What an operator does to the dimensions of its first argument."""

    UNKNOWN = auto()
    """Anything: rows may meet."""
    NEW = auto()
    """Makes a tensor from sizes alone."""
    LIKE = auto()
    """Makes a tensor; of its first argument it reads the shape and the type, not the data."""
    SIZE = auto()
    """Reads a shape or a type, no data."""
    ATTRIBUTE = auto()
    """Reads an attribute: a shape, a type, or a part of a tensor."""
    POINTWISE = auto()
    """Makes each entry from the entries at its place, after broadcasting."""
    CAST = auto()
    """Keeps the entries, as numbers of another type; what the type is taken from is not read."""
    COPY = auto()
    """Keeps the entries, in other memory."""
    SAME = auto()
    """Returns its first argument; a dropout scales its entries."""
    MARK = auto()
    """Returns its first argument, as it is after a write."""
    ONE_HOT = auto()
    """Adds a last dimension."""
    VIEW = auto()
    """Keeps the entries and their order, in another shape."""
    UNIT = auto()
    """Adds or removes dimensions of size 1."""
    TRANSPOSE = auto()
    """Exchanges two dimensions."""
    PERMUTE = auto()
    """Puts all dimensions in another order."""
    MOVE = auto()
    """Moves dimensions to other places; the rest stays in order."""
    EXPAND = auto()
    """Broadcasts to a shape."""
    REPEAT = auto()
    """Puts copies one behind the other along each dimension."""
    INTERLEAVE = auto()
    """Puts copies of each entry side by side along one dimension."""
    PLACE = auto()
    """Turns a distributed tensor into its local part, or back."""
    PAIRS = auto()
    """Turns pairs along a last dimension of size 2 into complex numbers, or back."""
    PAD = auto()
    """Adds entries at the ends of the last dimensions."""
    SPLIT = auto()
    """Returns consecutive parts along one dimension, as a tuple."""
    UNBIND = auto()
    """Returns the entries along one dimension, which goes, as a tuple."""
    SELECT = auto()
    """Takes one entry along one dimension, which goes."""
    SLICE = auto()
    """Takes a range along one dimension; the account of rows sees the range as a meeting of rows."""
    NARROW = auto()
    """Takes a range along one dimension, given as start and length."""
    JOIN = auto()
    """Puts several values one behind the other along one dimension."""
    STACK = auto()
    """Puts several values side by side along a new dimension."""
    ITEM = auto()
    """Takes a member of a tuple, or a part of a tensor by an index of Python."""
    INDEX = auto()
    """Picks by a tensor, or None, for each dimension."""
    PICK = auto()
    """Picks entries along one dimension, by an index of the same number of dimensions."""
    PICK_ROWS = auto()
    """Picks whole rows along one dimension."""
    TABLE = auto()
    """Picks rows of a table."""
    PUT = auto()
    """Writes entries along one dimension, at places of an index of the same number of dimensions."""
    PUT_ROWS = auto()
    """Writes whole rows along one dimension."""
    ADD_ROWS = auto()
    """Adds whole rows along one dimension."""
    ADD_FIRST = auto()
    """Adds whole rows along the first dimension."""
    WRITE = auto()
    """Writes to places that an index names."""
    WRITE_MASKED = auto()
    """Writes where a mask is true, in order."""
    OVERWRITE = auto()
    """Writes to all places."""
    ADD_ALONE = auto()
    """Adds at places of another value, which is read for its shape alone."""
    ALONG = auto()
    """Lets entries meet along dimensions, which stay."""
    ROLL = auto()
    """Moves entries along dimensions, all in the same way."""
    SORT = auto()
    """Changes the order of entries along one dimension."""
    TAKE_BEST = auto()
    """Takes one of the entries along one dimension, which goes, chosen by all of them."""
    BEST = auto()
    """Takes the best entries along one dimension, chosen by all of them; returns them with their places."""
    REDUCE = auto()
    """Lets entries meet along dimensions, which go."""
    SUM = auto()
    """Adds entries up along dimensions, which go."""
    COUNT = auto()
    """Counts or searches entries of all dimensions."""
    NORM = auto()
    """Normalises over the last dimensions."""
    LINEAR = auto()
    """Multiplies the last dimension by a matrix, transposed."""
    PRODUCT = auto()
    """Multiplies matrices."""
    VECTOR_PRODUCT = auto()
    """Multiplies matrices or vectors."""
    BIASED = auto()
    """Adds the product of the last two arguments to the first."""
    SCALED = auto()
    """Multiplies matrices in 8 bits, with scales."""
    GROUPED = auto()
    """Multiplies rows in groups, each group by a matrix of its own."""
    EINSUM = auto()
    """Multiplies as an equation says."""
    ATTENTION = auto()
    """Lets the tokens of a sequence meet."""
    CONVOLUTION = auto()
    """Lets neighbours along tokens meet, and features."""
    ROW_KERNEL = auto()
    """Handles each row by itself, in one kernel of a library."""
    GATHER = auto()
    """Returns the rows of all ranks."""
    SCATTER = auto()
    """Returns this rank's share of a sum over ranks."""
    EXCHANGE = auto()
    """Sends rows to other ranks."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One line of the table."""

    effect: Effect
    at: int | None = None
    """The position of the argument that names dimensions; None: the effect says where they are."""
    default: tuple[int, ...] | None = None
    """The dimensions of a call that names none; None: all."""
    several: bool = False
    """Dimensions may be given one by one."""
    cut: bool = False
    """Pieces of tokens are cut through the operator, unless it works along tokens."""
    orders: bool = False
    """Behind the operator, rows are in another order if it works along tokens: a sort, a count, a write."""


E = Effect
LINES: tuple[tuple[Operator, str], ...] = (
    (Operator(E.NEW), "zeros ones empty full arange"),
    (Operator(E.LIKE, cut=True), "zeros_like ones_like empty_like full_like rand_like randn_like"),
    (Operator(E.LIKE), "new_zeros new_ones new_empty new_full"),
    (Operator(E.SIZE), "size stride numel dim sym_size sym_stride sym_numel is_floating_point"),
    (Operator(E.ATTRIBUTE), "getattr"),
    # entries at one place; operators of ATen that are tagged as pointwise need no line
    (Operator(E.POINTWISE, cut=True), "int long bool truediv invert"),
    (Operator(E.POINTWISE), "floordiv mod and_ or_ xor pos not_ iadd imul isub itruediv fma convert_element_type"),
    (Operator(E.POINTWISE), "native_dropout feature_dropout log_sigmoid hardswish"),
    (Operator(E.POINTWISE), "_c10d_functional::wait_tensor _c10d_functional::all_reduce"),
    (Operator(E.CAST, cut=True), "to float double half bfloat16 type type_as _to_copy"),
    (Operator(E.COPY, cut=True), "contiguous clone alias"),
    (Operator(E.SAME, cut=True), "dropout"),
    (Operator(E.SAME), "detach"),
    (Operator(E.MARK), "after_write _get_data_attr"),
    (Operator(E.ONE_HOT, cut=True), "one_hot"),
    # other shapes
    (Operator(E.VIEW, cut=True), "view reshape _unsafe_view view_as reshape_as flatten unflatten"),
    (Operator(E.UNIT, cut=True), "unsqueeze squeeze"),
    (Operator(E.TRANSPOSE, orders=True), "transpose swapaxes swapdims t"),
    (Operator(E.PERMUTE, at=1, several=True, orders=True), "permute"),
    (Operator(E.MOVE, orders=True), "movedim moveaxis"),
    (Operator(E.EXPAND, cut=True), "expand"),
    (Operator(E.EXPAND), "expand_as broadcast_to"),
    (Operator(E.REPEAT), "repeat tile"),
    (Operator(E.INTERLEAVE, at=2), "repeat_interleave"),
    (Operator(E.PLACE), "from_local to_local redistribute full_tensor"),
    (Operator(E.PAIRS), "view_as_complex view_as_real"),
    (Operator(E.PAD), "pad constant_pad_nd"),
    # parts, and what is made of them
    (Operator(E.SPLIT, at=2, default=(0,), cut=True), "chunk split"),
    (Operator(E.SPLIT, at=2, default=(0,)), "split_with_sizes tensor_split"),
    (Operator(E.UNBIND, at=1, default=(0,), cut=True), "unbind"),
    (Operator(E.SELECT, at=1, default=(0,), cut=True), "select"),
    (Operator(E.SLICE, at=1, default=(0,)), "slice"),
    (Operator(E.NARROW, at=1), "narrow"),
    (Operator(E.JOIN, at=1, default=(0,), cut=True), "cat"),
    (Operator(E.JOIN, at=1, default=(0,)), "concat concatenate"),
    (Operator(E.STACK, at=1, default=(0,), cut=True), "stack"),
    # picks and writes
    (Operator(E.ITEM), "getitem"),
    (Operator(E.INDEX), "index"),
    (Operator(E.PICK, cut=True), "gather take_along_dim"),
    (Operator(E.PICK_ROWS), "index_select"),
    (Operator(E.TABLE), "embedding"),
    (Operator(E.PUT, cut=True, orders=True), "scatter scatter_add"),
    (Operator(E.PUT, orders=True), "scatter_reduce"),
    (Operator(E.PUT_ROWS, orders=True), "index_copy index_fill"),
    (Operator(E.ADD_ROWS, orders=True), "index_add"),
    (Operator(E.ADD_FIRST, orders=True), "torchtitan::deterministic_scatter_add"),
    (Operator(E.WRITE), "index_put put_sum setitem"),
    (Operator(E.WRITE_MASKED), "masked_scatter"),
    (Operator(E.OVERWRITE), "copy"),
    (Operator(E.ADD_ALONE), "added_alone"),
    # entries that meet along dimensions
    (Operator(E.ALONG, at=1, cut=True), "softmax log_softmax"),
    (Operator(E.ALONG, at=1), "_softmax _log_softmax logcumsumexp cummax cummin"),
    (Operator(E.ALONG, at=1, cut=True, orders=True), "cumsum cumprod"),
    (Operator(E.ROLL, at=1, several=True, orders=True), "flip"),
    (Operator(E.ROLL, at=2, orders=True), "roll"),
    (Operator(E.ALONG, at=1, default=(-1,)), "glu"),
    (Operator(E.SORT, at=1, default=(-1,), orders=True), "sort argsort"),
    (Operator(E.SORT, at=1, default=(0,), orders=True), "msort"),
    (Operator(E.BEST, at=2, default=(-1,), cut=True), "topk"),
    (Operator(E.TAKE_BEST, at=2, default=(-1,)), "kthvalue"),
    (Operator(E.SUM, at=1, cut=True, orders=True), "sum mean"),
    (Operator(E.SUM, at=1), "nansum"),
    (Operator(E.REDUCE, at=1, cut=True, orders=True), "any all amax amin max min count_nonzero"),
    (Operator(E.REDUCE, at=1), "prod logsumexp var std var_mean argmax argmin median nanmedian mode aminmax"),
    (Operator(E.REDUCE, at=2), "norm linalg_vector_norm"),
    (Operator(E.COUNT, orders=True), "bincount histc unique nonzero searchsorted bucketize"),
    (Operator(E.NORM, cut=True), "layer_norm rms_norm"),
    (Operator(E.NORM), "native_layer_norm"),
    # products
    (Operator(E.LINEAR, cut=True), "linear"),
    (Operator(E.VECTOR_PRODUCT), "matmul"),
    (Operator(E.PRODUCT), "mm bmm"),
    (Operator(E.BIASED), "addmm baddbmm addbmm"),
    (Operator(E.SCALED), "_scaled_mm"),
    (Operator(E.GROUPED), "_grouped_mm grouped_mm transformers::grouped_mm_fallback"),
    (Operator(E.EINSUM), "einsum"),
    (Operator(E.ATTENTION), "scaled_dot_product_attention"),
    (Operator(E.CONVOLUTION), "conv1d convolution"),
    # kernels of libraries, and collectives
    (Operator(E.ROW_KERNEL), "torchtitan::silu_and_mul"),
    (Operator(E.GATHER), "_c10d_functional::all_gather_into_tensor"),
    (Operator(E.SCATTER), "_c10d_functional::reduce_scatter_tensor"),
    (Operator(E.EXCHANGE), "_c10d_functional::all_to_all_single"),
)
OPERATORS: dict[str, Operator] = {name: line for line, names in LINES for name in names.split()}
"""The line of each operator, by its canonical name (`ops.op_name`), without the `_` of a form in place."""
TAGGED = Operator(E.POINTWISE, cut=True)
NOTHING_KNOWN = Operator(E.UNKNOWN)


@functools.lru_cache(maxsize=4096)
def operator_named(name: str) -> Operator:
    """Return the line of an operator; one that is pointwise by its tag needs none, and of others nothing is known."""
    line = OPERATORS.get(name) or OPERATORS.get(name.rstrip("_"))
    if line is None:
        return TAGGED if is_tagged_pointwise(name) else NOTHING_KNOWN
    return line


@functools.lru_cache(maxsize=4096)
def is_tagged_pointwise(name: str) -> bool:
    """Return whether an overload of the ATen operator of this name is tagged as pointwise."""
    if "::" in name:
        return False
    packet = getattr(torch.ops.aten, name.strip("_") if name.startswith("__") else name.rstrip("_"), None)
    if not isinstance(packet, OpOverloadPacket):
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


def names_with(*effects: Effect) -> frozenset[str]:
    """Return the names of the operators of the table that have one of these effects."""
    return frozenset(name for name, line in OPERATORS.items() if line.effect in effects)
