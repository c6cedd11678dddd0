# SPDX-License-Identifier: Apache-2.0
"""What would `torch.compile(model, backend="farskip")` do to this model? Ask without compiling or running it.

Contract: `explain` captures the model once, as `torch.compile(fullgraph=True)` does, rewires the captured graph, and
returns what was found. A model that can't be captured or rewired gives an `Explanation` with a `RefusedModel`, and with
the table of the model as written if there is one. The model is not run, so its state and mode stay as they are, and
a model on the meta device can be explained too. Compiled code of this process is forgotten (`torch.compiler.reset`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed, failing_line
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.declare import NOTHING
from farskip_compile.errors import FarSkipError
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.records.compile import CompileReport
from farskip_compile.tools.capture import capture
from farskip_compile.tools.explain.explanation import Explanation, versions
from farskip_compile.tools.explain.refusal import RefusedModel
from farskip_compile.verify.graph_break_hints import DEPENDS_ON_DATA, depends_on_data, known_break

__all__ = ["Explanation", "RefusedModel", "explain", "not_captured", "versions"]


def explain(
    model: Callable[..., Any],
    *args: Any,
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    kinds: Mapping[str, str] = NOTHING,
    **kwargs: Any,
) -> Explanation:
    """Explain `torch.compile(model, backend="farskip")` for a call `model(*args, **kwargs)`.

    Args:
        model: a module, or a function that calls one. It is captured, not run; the meta device will do.
        *args: example inputs.
        connectivity: as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        kinds: as in `FarSkipConfig`.
        **kwargs: example inputs by name.

    Raises:
        ConfigError: wrong options, noticed before the model is looked at.
    """
    config = FarSkipConfig(connectivity=connectivity, layers=layers, kinds=kinds, inner="eager")
    name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", str(model))
    try:
        return Explanation(name, config, _capture(model, args, kwargs, config))
    except FarSkipError as error:
        refusal = RefusedModel(type(error).__name__, error.reason, str(error.where), error.way_out)
    except BackendCompilerFailed:
        raise  # a defect of this package, whose traceback is needed
    except CAPTURE_ERRORS as error:
        return Explanation(name, config, None, not_captured(error))
    try:
        as_written = _capture(model, args, kwargs, FarSkipConfig(connectivity="none", kinds=kinds, inner="eager"))
    except FarSkipError:
        as_written = None
    return Explanation(name, config, as_written, refusal)


def _capture(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], config: FarSkipConfig
) -> CompileReport:
    """The report of the one graph of `model`."""
    with torch.no_grad():
        return capture(model, args, kwargs, config, parts=True).report


def not_captured(error: Exception) -> RefusedModel:
    """Dynamo's message without its links and its stack: what `explain` says of `error`, one of `torch.compile`'s."""
    message = str(error).split("\nfrom user code:")[0]
    known = known_break(str(error)) or known_break(f"{message} {failing_line(error)}")
    if known is not None:
        return RefusedModel(type(known).__name__, known.reason, str(known.where), known.way_out)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    hints = [line.removeprefix("Hint:").strip() for line in lines if line.startswith("Hint:")]
    explanations = [line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:")]
    reason = ": ".join([*lines[:1], *explanations])
    way_out = " ".join(hints) or "torch.compile(model, fullgraph=True) shows the whole message"
    if depends_on_data(reason):
        said = next(line for line in lines if depends_on_data(line)).split(" (unhinted")[0]
        reason = f"A loop or a branch depends on values that are only known when the model runs. {said}"
        way_out = DEPENDS_ON_DATA
    return RefusedModel(
        type(error).__name__,
        f"torch.compile can't capture the model as one graph. {reason}",
        f"at {place}" if (place := failing_line(error, of_user=True)) else "",
        way_out,
    )
