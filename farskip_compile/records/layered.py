# SPDX-License-Identifier: Apache-2.0
"""Models that are compiled layer by layer.

Contract: `note_layered` is told the layers of a model; `layered_model_of` finds the model for any module that holds
one of the layers; `tell_layered` tells the user, at the first step. Nothing is kept alive.
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
from farskip_compile.records.process_file import note_compile
from farskip_compile.records.record import CompileRecord
from farskip_compile.records.registry import COMPILES
from farskip_compile.records.runs import Graph, expected, tell


class LayeredModel(Protocol):
    """A model whose layers are compiled one by one (`farskip_compile.Regional`)."""

    model: nn.Module
    names: tuple[str, ...]

    @property
    def report(self) -> CompileReport:
        """The report of the whole model. Raises `PartialModelError` before the first call."""
        ...


def note_layered(whole: LayeredModel, layers: Iterable[nn.Module]) -> None:
    """Note that `layers` are compiled one by one."""
    for layer in layers:
        COMPILES.layered_models[layer] = weakref.ref(whole)


def forget_layered(layers: Iterable[nn.Module]) -> None:
    """Note that `layers` are no longer compiled one by one."""
    for layer in layers:
        COMPILES.layered_models.pop(layer, None)


def layered_model_of(model: nn.Module) -> LayeredModel | None:
    """Return the model compiled layer by layer that `model` holds a layer of."""
    for module in model.modules():
        reference = COMPILES.layered_models.get(module)
        if reference is not None and (whole := reference()) is not None:
            return whole
    return None


def graphs_by_layer(whole: LayeredModel) -> list[tuple[Graph, ...]]:
    """Return, for each layer, the graphs that have run with its parameters."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in whole.names}
    for name, tensors in named_as_run(whole.model):
        layer = next((one for one in itertools.accumulate(name.split("."), "{}.{}".format) if one in found), None)
        if layer is not None:
            found[layer] += tensors
    return [COMPILES.graphs_of(tensors) for tensors in found.values()]


def record_of(whole: LayeredModel) -> CompileRecord:
    """Return the record of a model that has run layer by layer."""
    overlap = expected(graphs_by_layer(whole))
    owner = COMPILES.owner_number(whole.model)
    return CompileRecord.of(whole.report, "layers", class_name(whole.model), overlap, owner=owner, ran=True)


def tell_layered(whole: LayeredModel) -> None:
    """Note, and tell the user, that the layers have run in an order in which they have not before."""
    record, model = record_of(whole), weakref.ref(whole.model)
    note_compile(f"layers of {id(whole.model)}", lambda: record if model() is not None else None)
    tell(graphs_by_layer(whole), whole.report, record, whole.model.parameters())
