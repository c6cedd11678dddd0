"""The command `farskip manifest MODEL`: write down which FarSkip form of a model a checkpoint is for.

Contract: the model is captured, not run. Exit status 0 if there is a manifest, 1 if the model was refused, 2 for wrong
usage. Without `--out`, stdout holds the manifest and nothing else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from farskip_compile.cli.model import MODEL_HELP, Wish, layer_range, load_model
from farskip_compile.describe import describe
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.explain import text
from farskip_compile.manifest import save_manifest
from farskip_compile.manifest.json_text import compact


def manifest_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    connectivity: Annotated[Wish, typer.Option(help="The form that the checkpoint was trained in.")] = Wish.FULL,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="First and last layer that are rewired, both inclusive.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write it there: a checkpoint folder, its config.json, or a JSON file.")
    ] = None,
) -> None:
    """Write the manifest of a model: connectivity, sub-blocks and parameters, to be checked by the backend."""
    chosen = layer_range(layers)
    errors = Console(stderr=True)
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # a refusal says what Dynamo logs
    loaded = load_model(model, errors)
    try:
        found = describe(loaded.model, *loaded.args, connectivity=connectivity.value, layers=chosen, **loaded.kwargs)
    except FarSkipError as error:
        errors.print(text.error(error))
        raise typer.Exit(1) from None
    if out is None:
        typer.echo(compact(found.to_json()))
        return
    try:
        written = save_manifest(found, out)
    except ConfigError as error:
        errors.print(text.error(error))
        raise typer.Exit(2) from None
    Console(highlight=False).print(f"Manifest: {written}", soft_wrap=True)
