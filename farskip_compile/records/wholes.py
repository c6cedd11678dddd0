# SPDX-License-Identifier: Apache-2.0
"""Which models are compiled layer by layer, and who puts their report together.

Contract: `note_whole` is told the layers and what knows about the model that they are of; `whole_of` finds it for any
module that holds one of the layers; `tell_whole` tells the user, at the first step. Nothing is kept alive.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from farskip_compile._compat.runs import class_name, named_as_run
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.expected import expected
from farskip_compile.records.line import say
from farskip_compile.records.process_file import note_whole_model
from farskip_compile.records.ran import Graph, graphs_of


class LayeredModel(Protocol):
    """A model whose layers are compiled one by one (`farskip_compile.Regional`)."""

    model: nn.Module
    names: tuple[str, ...]

    @property
    def report(self) -> CompileReport:
        """Of the whole model. Raises `PartialModelError` before the first call."""
        ...


_wholes: weakref.WeakKeyDictionary[nn.Module, weakref.ref[LayeredModel]] = weakref.WeakKeyDictionary()
"""Layer -> the model that it is of."""


def note_whole(whole: LayeredModel, layers: Iterable[nn.Module]) -> None:
    """`layers` are compiled one by one."""
    for layer in layers:
        _wholes[layer] = weakref.ref(whole)


def forget_whole(layers: Iterable[nn.Module]) -> None:
    """They no longer are."""
    for layer in layers:
        _wholes.pop(layer, None)


def whole_of(model: nn.Module) -> LayeredModel | None:
    """The model compiled layer by layer that `model` holds a layer of."""
    for module in model.modules():
        if (reference := _wholes.get(module)) is not None and (whole := reference()) is not None:
            return whole
    return None


def graphs_by_layer(whole: LayeredModel) -> list[tuple[Graph, ...]]:
    """For each layer, the graphs that have run with its parameters."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in whole.names}
    for name, tensors in named_as_run(whole.model):
        layer = next((one for one in itertools.accumulate(name.split("."), "{}.{}".format) if one in found), None)
        if layer is not None:
            found[layer] += tensors
    return [graphs_of(tensors) for tensors in found.values()]


def tell_whole(whole: LayeredModel) -> None:
    """Its layers have run, in an order in which they have not before."""
    places, report = graphs_by_layer(whole), whole.report
    note_whole_model(whole.model, report, expected(places))
    say(report, class_name(whole.model), places, whole.model.parameters())
