# SPDX-License-Identifier: Apache-2.0
"""The MODEL argument of the command line: a built-in name, `transformers:FAMILY`, or `package.module:callable`.

Contract: `load` returns a model and example inputs, or raises a `ConfigError` that says what the argument should be.
What the user's callable itself raises is passed on. The current directory is importable.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.base.extras import need
from farskip_compile.errors import ConfigError
from farskip_compile.models import MODELS, build
from farskip_compile.text_utils import did_you_mean

TRANSFORMERS = "transformers:"
"""Prefix of the model type of a family of the zoo, which is built tiny and random."""

EXAMPLE_SHAPE = (2, 8)
_RETURNS = "a function without arguments that returns a model, (model, args) or (model, args, kwargs)"


@dataclass(frozen=True)
class LoadedModel:
    """A model and the inputs to call it with."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def built_in_names() -> list[str]:
    """What MODEL can be, besides `package.module:callable`."""
    return [*MODELS, f"{TRANSFORMERS}FAMILY"]


def load(name: str) -> LoadedModel:
    """The model that `name` means.

    Raises:
        ConfigError: there is no such model, or no example inputs can be made for it.
    """
    if name in MODELS:
        return _with_inputs(name, build(name))
    if name.startswith(TRANSFORMERS):
        return _from_zoo(name)
    if ":" not in name:
        names = built_in_names()
        always = f"one of {', '.join(names)}, or package.module:callable for a model of yours"
        raise ConfigError(f"unknown model {name!r}", way_out=did_you_mean(name, names, always=always))
    return _from_callable(name, _attribute(name))


def _from_zoo(name: str) -> LoadedModel:
    need(name, "transformers")
    from farskip_compile.tools.zoo.families import moe_families
    from farskip_compile.tools.zoo.tiny import CannotBuild, build_tiny

    families = {family.model_type: family for family in moe_families()}
    wanted = name.removeprefix(TRANSFORMERS)
    if wanted not in families:
        raise ConfigError(
            f"transformers has no MoE family {wanted!r}",
            way_out=did_you_mean(wanted, families, always="`farskip check families --list` names all"),
        )
    try:
        return _with_inputs(name, build_tiny(families[wanted]))
    except CannotBuild as error:
        raise ConfigError(error.reason, way_out=error.way_out, where=error.where) from error


def _attribute(name: str) -> Any:
    module_name, _, path = name.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {module_name!r}", way_out="package.module:callable, importable from here"
            ) from error
        raise
    except (TypeError, ValueError) as error:  # an empty or a relative name
        raise ConfigError(f"{module_name!r} is not a module name", way_out="package.module:callable") from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            raise ConfigError(f"module {module_name!r} has no {path!r}", way_out=did_you_mean(part, public))
        found = getattr(found, part)
    return found


def _from_callable(name: str, found: Any) -> LoadedModel:
    if isinstance(found, nn.Module):
        return _with_inputs(name, found)
    if not callable(found):
        raise ConfigError(f"{name} is {type(found).__name__}, not a callable", way_out=_RETURNS)
    made = found()
    if isinstance(made, nn.Module):
        return _with_inputs(name, made)
    match made:
        case (model, tuple() | list() as args) if callable(model):
            return LoadedModel(model, tuple(args))
        case (model, tuple() | list() as args, dict() as kwargs) if callable(model):
            return LoadedModel(model, tuple(args), kwargs)
    raise ConfigError(f"{name}() returned {type(made).__name__}", way_out=_RETURNS)


def _with_inputs(name: str, model: nn.Module) -> LoadedModel:
    """Token ids for a model that says how many there are."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise ConfigError(
            f"{name}: no example inputs can be made for {type(model).__name__}, which has no config.vocab_size",
            way_out="return (model, args) or (model, args, kwargs) from the callable",
        )
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    ids = torch.randint(0, vocabulary, EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    return LoadedModel(model, (ids.to(device),))
