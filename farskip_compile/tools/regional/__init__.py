# SPDX-License-Identifier: Apache-2.0
"""Layers compiled one by one: `farskip_compile.regional(model)`, in place of `torch.compile(model, backend="farskip")`.

Contract: the layers of the model are found, each gets a forward that takes the stream in parts and leaves it in parts
(`stand_in`), and is compiled with this package's backend, alike layers together. Names, parameters and state stay as
they are; `Regional.undo` puts everything back, `Regional.as_written` for a while. After the first call the tables of
the layers are put together: they must be what is asked of a whole model, and what the manifest says, or the call is an
error.
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
from farskip_compile.compiler.carrier.trail import Passed, assemble, begin, end
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
from farskip_compile.tools.regional.layers import find_layers
from farskip_compile.tools.regional.recording import let_layers_record
from farskip_compile.tools.regional.resident import bytes_beside
from farskip_compile.tools.regional.stand_in import stand_in
from farskip_compile.tools.regional.whole import check_whole

__all__ = ["Regional", "regional"]

RECOMPILES = 8
"""For each layer, of one forward that they share: first layer and others, prefill and decode, new sizes."""


@dataclass(eq=False)
class Regional:
    """A model whose layers are compiled one by one."""

    model: nn.Module
    """The module, whose layers are compiled in place."""
    names: tuple[str, ...]
    """Of the layers, in order."""
    settings: Resolved
    """What its layers are compiled with."""
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _before: dict[nn.Module, Any] = field(default_factory=dict)
    """The forward that each layer had for itself, not from its class; None: it had none."""
    _table: Table | None = None
    _known: dict[tuple[int, ...], list[Passed]] = field(default_factory=dict)
    """What has run and was checked, by identity, for which it has to be kept."""

    @property
    def table(self) -> Table:
        """The table of the whole model, put together from those of its layers.

        Raises:
            PartialModelError: the model has not been called yet.
        """
        if self._table is None:
            raise PartialModelError("no layer has been compiled yet", way_out="call the model once")
        return self._table

    @property
    def report(self) -> CompileReport:
        """The report of the whole model, as if it had been compiled as one; for `describe.from_report` and tools.

        Raises:
            PartialModelError: the model has not been called yet.
        """
        table, written = self.table, self.table.as_written()
        changed = any(row.left_out for row in table.rows)
        inside = (name for name in parameters_of(self.model) if name.startswith(tuple(f"{n}." for n in self.names)))
        return CompileReport(
            Outcome.REWIRED if changed else Outcome.UNCHANGED,
            0,
            self.settings.to_json(),
            table,
            tuple(inside),
            classify_wiring(written),
            classify_wiring(table),
        )

    def explain(self) -> Explanation:
        """What `farskip_compile.explain` says of the whole model, of what its layers were compiled to.

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
        """Within a `with`, the layers run as they were written, not compiled; no backward pass of what ran before may
        come in it, since checkpoints would compute the layers in the wrong form."""
        ours = [(layer, vars(layer).pop("forward")) for layer in self._before]
        try:
            for layer, own in self._before.items():
                if own is not None:
                    vars(layer)["forward"] = own
            yield
        finally:
            for layer, forward in ours:
                vars(layer)["forward"] = forward

    def _called(self, passed: list[Passed]) -> None:
        """After a call of the model: look at what has run, if it has not been seen before."""
        key = tuple(id(part.table) for part in passed)
        if not passed or key in self._known:
            return
        table = assemble(passed)
        first, *others = (part.connectivity for part in passed)
        if any(other != first for other in others):
            names = sorted({str(one) for one in (first, *others)})
            raise PartialModelError(
                f"the layers of one model were compiled with different connectivities: {', '.join(names)}",
                way_out="give all of them the same options",
            )
        check_whole(table, first, self.settings, self.model)
        self._table = table
        self._known[key] = passed
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
        connectivity: see `FarSkipConfig`. By a table, each member of the list must begin one layer.
        layers: first and last layer to rewire; each member of the list must begin one.
        stack: name of the list in the model, if it can't be told.
        compile: False: only prepare the layers; they are compiled by `layer.compile(backend="farskip")`, or whatever
            calls that. Unless that gives options, those given here hold.
        fullgraph: as in `torch.compile`; so are `dynamic` and `mode`.
        options: all other options of `FarSkipConfig`.

    Raises:
        ConfigError: wrong options, or a layer whose forward was replaced before.
        PartialModelError: the layers can't be told.
        ConnectivityError: a table names what is not a sub-block or a term.
    """
    config = FarSkipConfig.from_options({"connectivity": connectivity, "layers": layers, **options})
    owners, found = find_layers(model, stack)
    backend = Backend(config, mode, partial(bytes_beside, model, [layer for _, layer in found]))
    made = Regional(model, tuple(name for name, _ in found), backend.settings)
    wish, layers = backend.settings.connectivity, backend.settings.layers  # those of a manifest, if there is one
    forwards: dict[tuple[Any, bool | str, bool | str], Callable[..., Any]] = {}
    keys = []
    for number, (name, layer) in enumerate(found):
        keys.append((_plain(name, layer), *_asked(wish, layers, number, len(found))))
    prepared, plan = "" if compile else prepare(backend), f"layers {layers or 'all'} of {len(found)}"
    made._undo += [allow_recompiles(RECOMPILES * len(found)), let_layers_record(), partial(forget, prepared)]
    for key, (_, layer) in zip(keys, found, strict=True):
        if key not in forwards:
            forward = stand_in(key[0], here=key[1], later=key[2], prepared=prepared, plan=plan)
            if compile:
                forward = torch.compile(forward, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
            forwards[key] = forward
        _replace(made, layer, forwards[key])
    for owner in owners:
        _watch(made, owner)
    note_layered(made, (layer for _, layer in found))
    return made


def _asked(wish: Connectivity, layers: LayerRange, number: int, count: int) -> tuple[bool | str, bool | str]:
    """What the marks of a layer say: of it, and of what comes after it. Nobody leaves out anything of the last one."""
    if isinstance(wish, Mapping):
        return told(wish, number), told_later(wish, number)
    return _applies(layers, number), number + 1 < count and _applies(layers, number + 1)


def _applies(layers: tuple[int, int] | None, number: int) -> bool:
    return layers is None or layers[0] <= number <= layers[1]


def _plain(name: str, layer: nn.Module) -> Callable[..., Any]:
    """The forward of a layer, as a function of the layer."""
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


def _replace(made: Regional, layer: nn.Module, forward: Callable[..., Any]) -> None:
    own = made._before[layer] = vars(layer).get("forward")
    vars(layer)["forward"] = MethodType(forward, layer)

    def undo() -> None:
        if own is not None:
            vars(layer)["forward"] = own
        else:
            vars(layer).pop("forward", None)

    made._undo.append(undo)


def _watch(made: Regional, owner: nn.Module) -> None:
    """Look at what runs in each call of a module that holds the layers. Meanwhile, no graph is cut."""
    calls: list[AbstractContextManager[None]] = []

    def before(*_: Any) -> None:
        if not torch.compiler.is_compiling():
            calls.append(unsplit())
            calls[-1].__enter__()
            begin()

    def after(_: nn.Module, args: Any, returned: Any) -> None:
        if not torch.compiler.is_compiling() and calls:
            calls.pop().__exit__(None, None, None)
            passed = end()
            if returned is not None:  # what PyTorch gives where the call has failed
                made._called(passed)

    hooks = [owner.register_forward_pre_hook(before), owner.register_forward_hook(after, always_call=True)]
    made._undo.extend(hook.remove for hook in hooks)
