# SPDX-License-Identifier: Apache-2.0
"""What commands that take a MODEL have in common: the model itself, and `--layers`.

Contract: wrong usage ends the command with status 2, what the user's own code raises with status 1; both as a short
panel on stderr, never a traceback.
"""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from farskip_compile.cli.command import missing_package
from farskip_compile.cli.output import shown_errors

if TYPE_CHECKING:
    from farskip_compile.tools.zoo.model_source import LoadedModel

BUILT_IN = ("deepseek_v3", "qwen3_moe", "llama4", "mixtral", "transformers:FAMILY")
"""Repeated here from `zoo.model_source.built_in_names`, which needs torch: help does not."""


def _completed(incomplete: str) -> list[str]:
    return [name for name in BUILT_IN if ":" not in name and name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"One of {', '.join(BUILT_IN)}; or package.module:callable for one of yours.",
        autocompletion=_completed,
    ),
]


def layer_range(text: str | None) -> tuple[int, int] | None:
    """The value of --layers."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a range: give A:B, for example 3:60 for layers 3 to 60", param_hint="--layers"
        )
    return int(match[1]), int(match[2])


def load_model(model: str) -> LoadedModel:
    """The model and its inputs that MODEL names."""
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
