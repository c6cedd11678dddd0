# SPDX-License-Identifier: Apache-2.0
"""Make a manifest: by capturing a model once, or from the report of a compile.

Contract: takes the model and the options that it was, or is to be, compiled with; returns a `Manifest` or writes one.
The model is captured, not run, and not changed (`farskip_compile.explain`). A model that can't be rewired as asked has
no manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed
from farskip_compile._compat.modules import plain_name, unwrapped
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.declare import NOTHING
from farskip_compile.errors import ConfigError, FarSkipError, ManifestError
from farskip_compile.manifest.adapters import names_without_adapters
from farskip_compile.manifest.files import write_manifest
from farskip_compile.manifest.fingerprint import ParameterFingerprint, align, parameters_of
from farskip_compile.manifest.record import Manifest
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.tools.capture import capture
from farskip_compile.tools.explain import not_captured, versions


def describe(
    model: Callable[..., Any],
    *args: Any,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    kinds: Mapping[str, str] = NOTHING,
    **kwargs: Any,
) -> Manifest:
    """Return the manifest of `model` in the FarSkip form that `connectivity`, `layers` and `kinds` ask for.

    Give the whole model (as it is, compiled or wrapped, or its `forward`) before it is sharded; a model on the meta
    device will do, with inputs there. The model is captured, not run.

    Args:
        model: the module whose parameters the manifest names.
        *args: example inputs.
        connectivity: as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        kinds: as in `FarSkipConfig`.
        **kwargs: example inputs by name.

    Raises:
        ConfigError: wrong options; `ManifestError` if `model` is not a module or can't be captured.
        FarSkipError: the model can't be rewired as asked.
    """
    module = _module(model)
    config = FarSkipConfig(connectivity=connectivity, layers=layers, kinds=kinds, inner="eager")
    try:
        with torch.no_grad():
            return from_report(capture(module, args, kwargs, config).report, module)
    except (FarSkipError, BackendCompilerFailed):
        raise
    except CAPTURE_ERRORS as error:
        why = not_captured(error)
        reason = why.reason + (f" ({why.where})" if why.where else "")
        raise ManifestError(reason, way_out=why.way_out) from error


def save_manifest(
    source: Manifest | Callable[..., Any],
    path: str | os.PathLike[str],
    *args: Any,
    guard: bool = True,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    kinds: Mapping[str, str] = NOTHING,
    **kwargs: Any,
) -> Path:
    """Write the manifest of a model into a checkpoint folder, its `config.json`, or a JSON file of its own.

    Args:
        source: the model, which is captured as `describe` does it; or a manifest, which is written as it is.
        path: the folder (`farskip.json` is written there), its `config.json` or `adapter_config.json`, or another file.
        *args: example inputs of the model.
        guard: give a checkpoint of transformers a `model_type`, and an adapter of PEFT a `peft_type`, that loaders
            without this package refuse, and that both know where this package is imported. False leaves, or puts back,
            the original one, as for a manifest under which the model computes what it does as written.
        connectivity: as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        kinds: as in `FarSkipConfig`.
        **kwargs: example inputs of the model by name.

    Returns:
        The file that holds the manifest.

    Raises:
        ConfigError: wrong options, or options beside a manifest. `ManifestError`: the manifest can't be written there,
            would overwrite something else, or the model is not a module or can't be captured.
        FarSkipError: the model can't be rewired as asked.
    """
    if not isinstance(source, Manifest):
        manifest = describe(source, *args, connectivity=connectivity, layers=layers, kinds=kinds, **kwargs)
        return write_manifest(manifest, path, guard=guard)
    if args or kwargs or kinds or (connectivity, layers) != ("full", None):
        raise ConfigError("a manifest is written as it is, without inputs and options", way_out="give the model itself")
    return write_manifest(source, path, guard=guard)


def from_report(report: CompileReport, model: Callable[..., Any]) -> Manifest:
    """Return the manifest of a model that was compiled already.

    Args:
        report: the report of its graph, from `farskip_compile.reports().compiles` or `on_report`.
        model: the module that was compiled, with all of its parameters.

    Raises:
        ManifestError: the report is of another model, or of a graph without a residual stack or that was refused.
    """
    if not report.rows or report.outcome in (Outcome.REFUSED, Outcome.FRAGMENT):
        raise ManifestError(
            f"the report is of a graph that has no FarSkip form ({report.outcome})",
            way_out="give the report of the model's own graph, from farskip_compile.reports().compiles",
        )
    shapes = parameters_of(_module(model))
    names = names_without_adapters(_module(model))
    outside = {plain_name(name): plain_name(inner) if inner else None for name, inner in names.items()}
    rename = align(report.sub_block_parameters, outside)
    used = set()
    for name in sorted(map(rename, report.sub_block_parameters)):
        if name not in outside:
            raise ManifestError(
                f"the report is of another model: {name!r}, which its sub-blocks use, is not a parameter of this one",
                way_out="give the module that was compiled, with all of its parameters",
            )
        used.add(outside[name])  # None for what is an adapter's own
    connectivity, layers = report.config["connectivity"], report.config["layers"]
    if not isinstance(connectivity, str):
        connectivity = {row: tuple(terms) for row, terms in connectivity.items()}
    others = {name: shape for name, shape in shapes.items() if name not in used}
    fingerprint = ParameterFingerprint({name: shape for name, shape in shapes.items() if name in used}, others)
    pair = (layers[0], layers[1]) if layers is not None else None
    return Manifest(connectivity, pair, report.table, fingerprint, report.declared, versions())


def _module(model: Callable[..., Any]) -> nn.Module:
    """Return the module that `model` is, without what `torch.compile` or data parallelism puts around it."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise ManifestError(
            f"{getattr(model, '__name__', model)!r} is not a module: it has no parameters for a manifest to name",
            way_out="give the model itself",
        )
    return unwrapped(owner)
