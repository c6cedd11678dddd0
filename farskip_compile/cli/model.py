"""What commands that take a MODEL have in common: the model itself, `--connectivity` and `--layers`.

Contract: wrong usage ends the command with status 2, what the user's own code raises with status 1; both as a short
panel on stderr, never a traceback.
"""

from __future__ import annotations

import re
import traceback
from enum import StrEnum

import typer
from rich.console import Console

from farskip_compile.errors import ConfigError
from farskip_compile.explain import Refusal
from farskip_compile.explain import text as render_text
from farskip_compile.zoo.model_source import Loaded, built_in_names, load

MODEL_HELP = f"One of {', '.join(built_in_names())}; or package.module:callable for one of yours."


class Wish(StrEnum):
    """Values of --connectivity."""

    FULL = "full"
    ATTENTION = "attention"
    MLP = "mlp"
    NONE = "none"


def layer_range(text: str | None) -> tuple[int, int] | None:
    """The value of --layers."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no range: give A:B, for example 3:60 for layers 3 to 60", param_hint="--layers"
        )
    return int(match[1]), int(match[2])


def load_model(model: str, errors: Console) -> Loaded:
    """The model and its inputs that MODEL names."""
    try:
        return load(model)
    except ConfigError as error:
        errors.print(render_text.error(error))
        raise typer.Exit(2) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = Refusal(type(error).__name__, f"{model} raised: {error}", f"at {last.filename}:{last.lineno}")
        errors.print(render_text.refusal(raised))
        raise typer.Exit(1) from None
