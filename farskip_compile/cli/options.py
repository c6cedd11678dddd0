# SPDX-License-Identifier: Apache-2.0
"""The options that several commands share, and the constructor of all others.

Contract: nothing here imports torch. A `Literal` as the type of an option gives its values to help, completion and
messages. Wrong usage ends a command with status 2, an exception of the user's own code with status 1; both are a short
panel on stderr, never a traceback.
"""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from farskip_compile.base.choices import ConnectivityName, Inner, Rewiring
from farskip_compile.cli.command import missing_package
from farskip_compile.cli.output import shown_errors

if TYPE_CHECKING:
    from farskip_compile.tools.zoo.model_source import LoadedModel

BUILT_IN = ("deepseek_v3", "qwen3_moe", "llama4", "mixtral", "transformers:FAMILY")
"""Repeated here from `zoo.model_source.built_in_names`, which needs torch: help does not."""


def among(literal: Any) -> str:
    """Return the values of a `Literal` as a list in a sentence: `full, mlp or none`."""
    *most, last = get_args(literal)
    return f"{', '.join(most)} or {last}"


def option(metavar: str | None, text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """Return an option for `Annotated[type, option(...)]`.

    Args:
        metavar: the placeholder of the value in help; None for a flag.
        text: the help.
        *names: `--name` and `-n`, if they don't follow from the parameter.
        panel: the panel of the help that shows the option.
        **more: further arguments of `typer.Option`.
    """
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


def _completed(incomplete: str) -> list[str]:
    return [name for name in BUILT_IN if ":" not in name and name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"One of {', '.join(BUILT_IN)}; or package.module:callable for one of yours.",
        autocompletion=_completed,
    ),
]
AsJson = Annotated[bool, option(None, "Print JSON on stdout, and nothing else there.", "--json")]
REWIRED_HELP = f"What to rewire: {among(Rewiring)}."
ConnectivityOption = Annotated[ConnectivityName, option("FORM", f"What to rewire: {among(ConnectivityName)}.")]
LayersOption = Annotated[str | None, option("A:B", "First and last layer to rewire, both inclusive.")]
INNER_HELP = f"What compiles the rewired graphs: {among(Inner)}."
DEVICE_HELP = "An accelerator if there is one, if left out."


def layer_range(text: str | None) -> tuple[int, int] | None:
    """Return the first and the last layer of `--layers A:B`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a range: give A:B, for example 3:60 for layers 3 to 60", param_hint="--layers"
        )
    return int(match[1]), int(match[2])


def load_model(model: str) -> LoadedModel:
    """Return the model that MODEL names, with its inputs."""
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.errors import ConfigError
    from farskip_compile.tools.explain import RefusedModel
    from farskip_compile.tools.explain.text import refusal
    from farskip_compile.tools.zoo.model_source import load

    with shown_errors():
        try:
            with working(f"building {model}"):
                return load(model)
        except ConfigError:
            raise
        except Exception as error:
            if missing_package(error):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            raised = RefusedModel(type(error).__name__, f"{model} raised: {error}", f"at {last.filename}:{last.lineno}")
            Terminal(stderr=True).print(refusal(raised))
            raise typer.Exit(1) from None
