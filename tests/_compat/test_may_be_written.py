# SPDX-License-Identifier: Apache-2.0
"""Which tensors Inductor may let an out-of-place call write to, for each way in which a graph says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile._compat.inductor import may_be_written

HIGHER, ATEN = torch.ops.higher_order, torch.ops.aten
C10D = torch.ops._c10d_functional


def calls(x: fx.Node, y: fx.Node, z: fx.Node) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], list[fx.Node]]]:
    """By name: an operator, its arguments, and what it may write to."""
    kernel = {"kwargs": {"out": x, "source": y, "count": 3}, "tensors_to_clone": ["out"], "kernel_idx": 0}
    return {
        "an operator of ATen": (ATEN.index_put.default, (x, [y], z), {}, [x]),
        "a collective": (C10D.all_reduce.default, (y, "sum", "0"), {}, [y]),
        "several at once": (C10D.all_reduce_coalesced.default, ([x, z], "sum", "0"), {}, [x, z]),
        "a user-defined kernel": (HIGHER.triton_kernel_wrapper_functional, (), kernel, [x]),
        "a custom operator": (
            HIGHER.auto_functionalized_v2,
            (ATEN.add_.Tensor,),
            {"y": y, "_all_bases": [x, z]},
            [x, z],
        ),
        "one in the older form": (HIGHER.auto_functionalized, (ATEN.add_.Tensor,), {"x": x, "y": y}, [x, y]),
        "one with a token": (HIGHER.with_effects, (z, ATEN.index_put.default, x, [y], y), {}, [x]),
        "one that writes nothing": (ATEN.add.Tensor, (x, y), {}, []),
    }


@pytest.mark.parametrize("name", list(calls(None, None, None)))  # type: ignore[arg-type]
def test_each_way(name: str) -> None:
    graph = fx.Graph()
    target, args, kwargs, written = calls(*(graph.placeholder(one) for one in "xyz"))[name]
    assert list(may_be_written(graph.call_function(target, args, kwargs))) == written
