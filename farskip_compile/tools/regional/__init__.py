# SPDX-License-Identifier: Apache-2.0
"""The function `regional(model)`, which compiles the layers of a model one by one.

Contract: the layers of the model are found (`layers`). Each gets a forward that takes and returns the residual stream
in parts (`layer_forward`), and is compiled with this package's backend, alike layers together. Names, parameters and
state stay as they are; `Regional.undo` puts everything back, `Regional.as_written` for a while. After the first call
the tables of the layers are put together; if they are not the table that the options and the manifest ask of a whole
model, the call is an error (`check`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.layers import allow_recompiles, unsplit
from farskip_compile.compiler.backend import Backend, forget, prepare
from farskip_compile.compiler.carrier.model_table import CompiledPart, assemble, start_recording, stop_recording
from farskip_compile.compiler.config import FarSkipConfig, Resolved
from farskip_compile.errors import ConfigError, PartialModelError, Where
from farskip_compile.manifest.fingerprint import parameters_of
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.passes.rewire.told import told, told_later
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.layered import forget_layered, note_layered, tell_layered
from farskip_compile.records.wiring import classify_wiring
from farskip_compile.tools.explain.explanation import Explanation
from farskip_compile.tools.regional.check import check_model_table
from farskip_compile.tools.regional.layer_forward import layer_forward
from farskip_compile.tools.regional.layers import find_layers
from farskip_compile.tools.regional.outside_bytes import bytes_outside_layer
from farskip_compile.tools.regional.recording import let_layers_record

__all__ = ["Regional", "regional"]

RECOMPILES = 8
"""The number of recompiles, for each layer, of a forward that layers share: first layer and others, prefill and decode,
new sizes."""


@dataclass(eq=False)
class Regional:
    """A model whose layers are compiled one by one."""

    model: nn.Module
    """The module, whose layers are compiled in place."""
    names: tuple[str, ...]
    """The names of the layers, in order."""
    settings: Resolved
    """The options that its layers are compiled with."""
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _before: dict[nn.Module, Any] = field(default_factory=dict)
    """The forward of its own that each layer had before, or None if it had that of its class."""
    _table: Table | None = None
    _checked: dict[tuple[int, ...], list[CompiledPart]] = field(default_factory=dict)
    """Parts that were checked, by the identities of their tables; kept, so that the identities stay taken."""

    @property
    def table(self) -> Table:
        """Return the table of the whole model, put together from those of its layers.

        Raises:
            PartialModelError: the model has not been called yet.
        """
        if self._table is None:
            raise PartialModelError("no layer has been compiled yet", way_out="call the model once")
        return self._table

    @property
    def report(self) -> CompileReport:
        """Return the report of the whole model, as if it had been compiled as one graph.

        Raises:
            PartialModelError: the model has not been called yet.
        """
        table, written = self.table, self.table.as_written()
        changed = any(row.left_out for row in table.rows)
        prefixes = tuple(f"{name}." for name in self.names)
        parameters = tuple(name for name in parameters_of(self.model) if name.startswith(prefixes))
        return CompileReport(
            Outcome.REWIRED if changed else Outcome.UNCHANGED,
            0,
            self.settings.to_json(),
            table,
            parameters,
            classify_wiring(written),
            classify_wiring(table),
        )

    def explain(self) -> Explanation:
        """Return what `farskip_compile.explain` says of a model, for the layers as they were compiled.

        Raises:
            PartialModelError: the model has not been called yet.
        """
        asked = FarSkipConfig(connectivity=self.settings.connectivity, layers=self.settings.layers)
        return Explanation(type(self.model).__name__, asked, self.report)

    def undo(self) -> None:
        """Put the model back as it was."""
        forget_layered(self._before)
        self._before.clear()
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Run the layers as they were written, not compiled, within the `with` block.

        The block must not contain a backward pass of an earlier call, since checkpoints would recompute the layers in
        the wrong form.
        """
        ours = [(layer, vars(layer).pop("forward")) for layer in self._before]
        try:
            for layer, own in self._before.items():
                if own is not None:
                    vars(layer)["forward"] = own
            yield
        finally:
            for layer, forward in ours:
                vars(layer)["forward"] = forward

    def _check(self, parts: list[CompiledPart]) -> None:
        """Check the parts that have run in a call of the model, unless they were checked before."""
        key = tuple(id(part.table) for part in parts)
        if not parts or key in self._checked:
            return
        table = assemble(parts)
        first, *others = (part.connectivity for part in parts)
        if any(other != first for other in others):
            names = sorted({str(one) for one in (first, *others)})
            raise PartialModelError(
                f"the layers of one model were compiled with different connectivities: {', '.join(names)}",
                way_out="give all of them the same options",
            )
        check_model_table(table, first, self.settings, self.model)
        self._table = table
        self._checked[key] = parts
        tell_layered(self)


def regional(
    model: nn.Module,
    connectivity: str | Mapping[str, Sequence[str]] | None = None,
    layers: tuple[int, int] | None = None,
    *,
    stack: str | None = None,
    compile: bool = True,
    fullgraph: bool = True,
    dynamic: bool | None = None,
    mode: str | None = None,
    **options: Any,
) -> Regional:
    """Compile the layers of `model` one by one, in place, and rewire what they read of each other.

    Args:
        model: any module that keeps its layers in a list, a dictionary or a sequence of modules.
        connectivity: see `FarSkipConfig`. With a table, each member of the list must begin one layer.
        layers: first and last layer to rewire; each member of the list must begin one layer.
        stack: name of the list in the model, needed if more than one list may hold the layers.
        compile: False to prepare the layers only; `layer.compile(backend="farskip")` then compiles them, with the
            options given here unless it gives others.
        fullgraph: as in `torch.compile`.
        dynamic: as in `torch.compile`.
        mode: as in `torch.compile`.
        **options: all other options of `FarSkipConfig`.

    Raises:
        ConfigError: wrong options, or a layer whose forward was replaced before.
        PartialModelError: no list, or more than one, may hold the layers.
        ConnectivityError: a table names what is not a sub-block or a term.
    """
    config = FarSkipConfig.from_options({"connectivity": connectivity, "layers": layers, **options})
    owners, found = find_layers(model, stack)
    backend = Backend(config, mode, partial(bytes_outside_layer, model, [layer for _, layer in found]))
    result = Regional(model, tuple(name for name, _ in found), backend.settings)
    requested, layers = backend.settings.connectivity, backend.settings.layers  # those of a manifest, if there is one
    forwards: dict[tuple[Any, bool | str, bool | str], Callable[..., Any]] = {}
    keys = []
    for number, (name, layer) in enumerate(found):
        keys.append((_original_forward(name, layer), *_requests(requested, layers, number, len(found))))
    prepared, plan = "" if compile else prepare(backend), f"layers {layers or 'all'} of {len(found)}"
    result._undo += [allow_recompiles(RECOMPILES * len(found)), let_layers_record(), partial(forget, prepared)]
    for key, (_, layer) in zip(keys, found, strict=True):
        if key not in forwards:
            forward = layer_forward(key[0], here=key[1], later=key[2], prepared=prepared, plan=plan)
            if compile:
                forward = torch.compile(forward, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
            forwards[key] = forward
        _replace_forward(result, layer, forwards[key])
    for owner in owners:
        _watch_calls(result, owner)
    note_layered(result, (layer for _, layer in found))
    return result


def _requests(requested: Connectivity, layers: LayerRange, number: int, count: int) -> tuple[bool | str, bool | str]:
    """Return what the marks of a layer ask of the layer, and of later layers. The last layer has no later ones."""
    if isinstance(requested, Mapping):
        return told(requested, number), told_later(requested, number)
    return _is_in_range(layers, number), number + 1 < count and _is_in_range(layers, number + 1)


def _is_in_range(layers: tuple[int, int] | None, number: int) -> bool:
    return layers is None or layers[0] <= number <= layers[1]


def _original_forward(name: str, layer: nn.Module) -> Callable[..., Any]:
    """Return the forward of a layer, as a function of the layer."""
    own = vars(layer).get("forward")
    if own is None:
        return type(layer).forward
    if isinstance(own, MethodType) and own.__self__ is layer:
        return own.__func__
    function = own
    while isinstance(function, functools.partial):
        function = function.func
    called = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else type(own)
    raise ConfigError(
        f"the forward of {name!r} was replaced by {called}, which is not one of its methods",
        way_out="call farskip_compile.regional first; layers with hooks of accelerate (`device_map` over several "
        "devices, offload) can't be captured at all: load the model onto one device",
        where=Where(node=name),
    )


def _replace_forward(regional: Regional, layer: nn.Module, forward: Callable[..., Any]) -> None:
    own = regional._before[layer] = vars(layer).get("forward")
    vars(layer)["forward"] = MethodType(forward, layer)

    def undo() -> None:
        if own is not None:
            vars(layer)["forward"] = own
        else:
            vars(layer).pop("forward", None)

    regional._undo.append(undo)


def _watch_calls(regional: Regional, owner: nn.Module) -> None:
    """Check the parts that run in each call of a module that holds the layers. During a call, no graph is split."""
    calls: list[AbstractContextManager[None]] = []

    def before(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            calls.append(unsplit())
            calls[-1].__enter__()
            start_recording()

    def after(_: nn.Module, args: Any, returned: Any) -> None:
        if not torch.compiler.is_compiling() and calls:
            calls.pop().__exit__(None, None, None)
            parts = stop_recording()
            if returned is not None:  # PyTorch gives None where the call has failed
                regional._check(parts)

    hooks = [owner.register_forward_pre_hook(before), owner.register_forward_hook(after, always_call=True)]
    regional._undo.extend(hook.remove for hook in hooks)
