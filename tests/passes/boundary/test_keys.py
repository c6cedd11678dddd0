# SPDX-License-Identifier: Apache-2.0
"""Tails have one key if they compute the same, in the same mode, of parts that come alike; shapes of pieces."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from farskip_compile.passes.boundary.in_pieces import _with_one_open
from farskip_compile.passes.boundary.tail import intern
from farskip_compile.passes.residual.carried import KEY
from farskip_compile.passes.residual.tags import FLIGHT


def graph(function=operator.add, **meta: object) -> fx.Graph:
    made = fx.Graph()
    parts = [made.placeholder(name) for name in ("base", "term")]
    parts[1].meta.update(meta)
    made.output(made.call_function(function, tuple(parts)))
    return made


def test_a_key_is_of_all_that_decides_what_a_tail_computes() -> None:
    first = intern(graph(), None, torch.float32).key
    assert intern(graph(), None, torch.float32).key == first
    others = [
        intern(graph(operator.sub), None, torch.float32).key,
        intern(graph(), ("cpu", torch.bfloat16), torch.float32).key,
        intern(graph(), None, torch.bfloat16).key,
        intern(graph(**{KEY: "term"}), None, torch.float32).key,
        intern(graph(**{FLIGHT: None, KEY: "another term"}), None, torch.float32).key,
    ]
    assert len({first, *others}) == 6


def test_a_shape_has_one_open_size_at_most() -> None:
    shapes = ShapeEnv()
    rows, tokens = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
    assert _with_one_open([2, 3]) == [2, 3]
    assert _with_one_open([2, rows]) == [2, -1]
    assert _with_one_open([tokens, rows]) is None
