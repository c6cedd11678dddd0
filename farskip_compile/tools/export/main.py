# SPDX-License-Identifier: Apache-2.0
"""The function `export`, which makes a program of a rewired model.

In:    a model (as it is, compiled by this backend, or wrapped), and the inputs of one call.
Out:   `torch.export`'s program of that call, rewired, with the model's names of parameters and with the manifest.
Never: a program in the original wiring, or of parts of a model: models that the backend refuses are refused here.

Algorithm:
1. Capture the call, rewire its graph and verify that, as the backend does (`call`).
2. Make a module of it (`module`), and hand it to `torch.export`, with the sizes that are to vary.
3. Put the manifest into the program (`packages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.exporting import plain_shapes, write_out_sums
from farskip_compile._compat.modules import unwrapped
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.declare import NOTHING
from farskip_compile.errors import ConfigError, OriginalWiringError
from farskip_compile.manifest.record import Manifest
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import Outcome
from farskip_compile.tools.capture import is_compiled_inside
from farskip_compile.tools.describe import from_report
from farskip_compile.tools.export.call import captured_call
from farskip_compile.tools.export.module import as_module
from farskip_compile.tools.export.packages import put_manifest


def export(
    model: nn.Module,
    *args: Any,
    connectivity: Connectivity | None = None,
    layers: LayerRange = None,
    manifest: Manifest | None = None,
    kinds: Mapping[str, str] = NOTHING,
    dynamic_shapes: Any = None,
    **kwargs: Any,
) -> torch.export.ExportedProgram:
    """Return the call `model(*args, **kwargs)`, rewired, as a program of `torch.export`.

    The program computes what the model does when it is compiled by this backend, and runs, is saved and is loaded
    without this package; it holds the manifest (`farskip_compile.tools.export.manifest_of`). The program is not
    scheduled: its collectives are launched in the order of the model.

    Args:
        model: the module, as it is, wrapped by `torch.compile`, or compiled in place; it is captured, not run.
        *args: example inputs.
        connectivity: as in `FarSkipConfig`. None, and no other option: as the model is compiled, or `"full"`.
        layers: as in `FarSkipConfig`.
        manifest: as in `FarSkipConfig`.
        kinds: as in `FarSkipConfig`.
        dynamic_shapes: the sizes of the inputs that vary, as in `torch.export.export`. None: no size varies.
        **kwargs: example inputs by name.

    Raises:
        FarSkipError: the model can't be rewired as requested; `PartialModelError`: it is not one graph;
            `UnsupportedPatternError`: the call does what a program can't, such as changing objects of Python.
        OriginalWiringError: nothing is left out: `torch.export.export` exports a model as it is written.
        ConfigError: wrong options, or a size that is to vary is 0 or 1 in the example.
        torch._dynamo.exc.UserError: a size can't vary as `dynamic_shapes` says; PyTorch's message says how it can.
    """
    config = _config(model, connectivity=connectivity, layers=layers, manifest=manifest, kinds=kinds)
    inner = unwrapped(model)
    shapes = plain_shapes(dynamic_shapes, inner, args, kwargs)
    call = captured_call(inner, model, args, kwargs, config, shapes)  # 1
    if call.report.outcome not in (Outcome.REWIRED, Outcome.ALREADY):
        raise OriginalWiringError(
            f"the program would be the model as it is written: {call.report.summary()}",
            way_out="torch.export.export(model, args), if that is what is wanted",
        )
    module = as_module(inner, call)  # 2
    program = torch.export.export(module, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    write_out_sums(program.graph)
    put_manifest(program, from_report(call.report, inner))  # 3
    return program


def _config(model: nn.Module, **options: Any) -> FarSkipConfig | None:
    """Return the configuration to rewire for; None: as the model is compiled."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{model!r} is not a module", way_out="export(model, *args)")
    if is_compiled_inside(model) and not any(options.values()):
        return None
    return FarSkipConfig(inner="eager", **options)
