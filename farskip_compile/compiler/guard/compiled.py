# SPDX-License-Identifier: Apache-2.0
"""Guards of models that are compiled in place, which notice when the forward is about to run uncompiled.

`model.compile(backend="farskip")` holds for calls of this very object, while Dynamo compiles. PyTorch drops the
compilation from copies (`copy.deepcopy`, `AveragedModel`) and pickles; `model.forward(...)`, an outer `torch.compile`,
`torch.export` and a stance bypass it. `UNSEEN` lists the calls that bypass the guard as well.

Contract: `watch` gives a guard (`forward`) to each module that is compiled in place with this backend, and to each
model of transformers in it, unless the options keep the function (`connectivity="none"`). A forward that is about to
run in its original wiring is an `OriginalWiringError` under `strict` if the weights are for the rewired form: a
manifest describes them, the model ran rewired before, or the original of this copy did, and the copy's weights were
written since, as `AveragedModel` does. Otherwise it is one `FarSkipWarning` for each copy, and is counted for
`farskip_compile.status`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from farskip_compile._compat.modules import is_compiled
from farskip_compile._compat.reached import Compiler, stance, tracing, watch_compiles
from farskip_compile._compat.runs import class_name
from farskip_compile._compat.tensors import was_written
from farskip_compile.compiler.guard.compilers import changes_function, is_ours, is_strict, option
from farskip_compile.compiler.guard.forward import GUARD, REFUSES, Guard, always_refuses, attach, with_models_inside
from farskip_compile.compiler.guard.report import report_original_wiring
from farskip_compile.compiler.guard.wrappers import check_recompiled_wrapper

UNSEEN = (
    "a part of the model that is called by itself (`model.layers[0](x)`)",
    "the forward of its class (`type(model).forward(model, x)`), or another function that computes with its parameters",
    "`torch.compile` of a function that only holds the model, and then a call of the model",
    "a graph break under fullgraph=False behind which other functions run parts of the model",
    "weights that were copied into a model that was never compiled (`load_state_dict`, a state dict on disk without a "
    "manifest)",
)
"""Ways to run a model as it is written, or its weights in another model, for which PyTorch has no hook."""
UNGUARD = "; farskip_compile.unguard(model) where the original function is wanted"


class ModelFamily:
    """A model and its copies, which share this object; a pickle gets one of its own."""

    def __init__(self) -> None:
        self.rewired = False
        """True once the model or a copy of it was rewired."""

    def __deepcopy__(self, _: dict[int, Any]) -> ModelFamily:
        return self


class CompiledGuard(Guard):
    """The guard of a module that is compiled in place, or of an uncompiled copy of one."""

    def __init__(self, module: nn.Module, family: ModelFamily, *, strict: bool, has_manifest: bool) -> None:
        self.module = module
        self.family = family
        self.strict = strict
        self.has_manifest = has_manifest
        self.copied_before = False
        """True if the module was copied before its family was rewired."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copied_before": not self.family.rewired}

    def note_rewired_trace(self) -> None:
        """Remember that the trace of this backend goes through the module."""
        if (output := tracing()) is not None:
            _traced.setdefault(output, []).append(self.family)

    def refuse_original(self) -> None:
        """Raise or warn: the forward is about to run in its original wiring."""
        cause, hint = self._cause_and_hint()
        name = class_name(self.module)
        needed = self.has_manifest or self._weights_are_rewired()
        weights = ", and its weights are for the rewired form" if needed else ""
        report_original_wiring(
            self.module,
            f"a {name} that was compiled to run rewired is about to run in its original wiring{weights}: {cause}",
            hint + UNGUARD,
            strict=self.strict and needed,
        )

    def _weights_are_rewired(self) -> bool:
        if not self.family.rewired or not self.copied_before:
            return self.family.rewired
        return any(map(was_written, self.module.parameters()))

    def _cause_and_hint(self) -> tuple[str, str]:
        """Return why the module is about to run uncompiled, and what to do about it."""
        again = 'model.compile(backend="farskip", fullgraph=True, options={...})'
        if tracing() is not None:
            return (
                "another backend, or torch.export, traces it, and drops what model.compile() made of it",
                f"compile what is around it with this backend, or {again} after it was compiled or exported",
            )
        if (name := stance()) != "default":
            return f"torch.compiler.set_stance({name!r}) lets it run uncompiled", "call it outside of the stance"
        if not is_compiled(self.module):
            return (
                "it is not compiled: copies (copy.deepcopy, AveragedModel) and loaded pickles lose what "
                "model.compile() made, and parts of a model are not compiled by themselves",
                f"{again}, of the copy",
            )
        return "its forward was called past the compiled call, or exported", "call the model itself: model(...)"


_traced: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The families of the guarded modules in each trace, by the object that Dynamo traces into."""


def watch() -> None:
    """Guard all modules that are compiled in place from now on. The import of the backend calls this once."""
    watch_compiles(_guard, check_recompiled_wrapper)


def note_rewired() -> None:
    """Mark the families of all guarded modules in the graph that Dynamo has just traced as rewired."""
    traced = tracing()
    families: list[ModelFamily] = _traced.get(traced, []) if traced is not None else []
    for family in families:
        family.rewired = True


def _guard(model: nn.Module, compiler: Compiler) -> None:
    if not is_ours(compiler) or not changes_function(compiler) or hasattr(vars(model).get("forward"), REFUSES):
        return
    known = vars(model).get(GUARD)
    family = known.family if isinstance(known, CompiledGuard) else ModelFamily()
    manifest_in_config = getattr(getattr(model, "config", None), "farskip", None)
    has_manifest = option(compiler, "manifest") is not None or isinstance(manifest_in_config, dict)
    for module in with_models_inside(model):
        if not always_refuses(module):
            attach(module, CompiledGuard(module, family, strict=is_strict(compiler), has_manifest=has_manifest))
