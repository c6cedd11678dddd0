# SPDX-License-Identifier: Apache-2.0
"""The function `prepare`, its steps in their order. See the package for the contract."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from farskip_compile._compat.modules import is_compiled
from farskip_compile.base.extras import check_version, is_in_use
from farskip_compile.errors import ConfigError
from farskip_compile.tools.prepare.adapters import keep_parametrizations
from farskip_compile.tools.prepare.bookkeeping import install_recording, keep_generate_from_compiling
from farskip_compile.tools.prepare.changes import Change, Preparation
from farskip_compile.tools.prepare.expert_parallel import switch_expert_parallel
from farskip_compile.tools.prepare.kernels import choose_implementation
from farskip_compile.tools.prepare.preserve_state import state_kept, warm_up
from farskip_compile.tools.prepare.probe_inputs import ProbeCall
from farskip_compile.tools.prepare.replace import replace_loops


def prepare(model: nn.Module, *args: Any, **kwargs: Any) -> Preparation:
    """Make a model ready for `torch.compile(model, backend="farskip", fullgraph=True)`, in place.

    Args:
        model: the model, not compiled yet, in the dtype it will run in.
        args: example inputs. If there are any, the model is called once on copies of them, without gradients.
        kwargs: example inputs by name.

    Raises:
        ConfigError: `model` is not a module, is compiled already, or is of a version of transformers that does not
            work (`MissingPackageError`). Whatever the call on example inputs raises is
            passed on, after all changes are undone.
    """
    _refuse_compiled(model)
    for package in {cls.__module__.partition(".")[0] for part in model.modules() for cls in type(part).__mro__}:
        if package in ("transformers", "peft"):
            check_version(package)
    with state_kept([model]):  # what is imported on the way may draw random numbers, too
        return _prepare(model, args, kwargs)


def _prepare(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Preparation:
    changes: list[Change] = []
    if is_in_use("transformers"):  # else no part of the model can come from it
        changes += switch_expert_parallel(model)
        changes += choose_implementation(model)
    replaced, notes = replace_loops(model, ProbeCall(args, kwargs) if args or kwargs else None)
    changes += replaced
    if is_in_use("transformers"):
        changes += install_recording(model)
        changes += keep_generate_from_compiling(model)
    if "peft" in sys.modules:
        changes += keep_parametrizations(model)
    preparation = Preparation(tuple(changes), tuple(notes))
    try:
        if args or kwargs:
            warm_up(model, args, kwargs)
    except BaseException:
        preparation.undo()
        raise
    return preparation


def _refuse_compiled(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"prepare takes a module, not {type(model).__name__}", way_out="pass the model itself")
    for name, module in model.named_modules():
        if is_compiled(module):
            raise ConfigError(
                f"{name or 'the model'} is compiled already, prepare changes what is to be compiled",
                way_out="prepare(model) first, then torch.compile(model)",
            )
