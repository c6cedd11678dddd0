# SPDX-License-Identifier: Apache-2.0
"""The command `farskip manifest MODEL`: write down which FarSkip form of a model a checkpoint is for.

Contract: the model is captured, not run. Exit status 0 if there is a manifest, 1 if the model was refused, 2 for wrong
usage. Without `--out`, stdout holds the manifest and nothing else.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.choices import Connectivity, among, value_of
from farskip_compile.cli.model import Model, layer_range, load_model
from farskip_compile.cli.output import quiet, shown_errors
from farskip_compile.cli.streams import document, documents_alone


def manifest_command(
    model: Model,
    connectivity: Annotated[
        Connectivity,
        typer.Option(metavar="FORM", help=f"The form that the checkpoint was trained in: {among(Connectivity)}."),
    ] = Connectivity.FULL,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="First and last layer that are rewired, both inclusive.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write it there: a checkpoint folder, its config.json, or a JSON file."),
    ] = None,
    guard: Annotated[bool, typer.Option(help="Give a checkpoint a model_type that only farskip-compile loads.")] = True,
) -> None:
    """Write the manifest of a model: connectivity, sub-blocks and parameters, to be checked by the backend."""
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.manifest import save_manifest
    from farskip_compile.manifest.json_text import compact
    from farskip_compile.text_utils import printable
    from farskip_compile.tools.describe import describe

    chosen = layer_range(layers)
    quiet("torch")
    with documents_alone() if out is None else nullcontext():
        loaded = load_model(model)
        asked = {"connectivity": value_of(connectivity), "layers": chosen}
        with shown_errors(status=1), working(f"capturing {model}"):
            found = describe(loaded.model, *loaded.args, **asked, **loaded.kwargs)
        if out is None:
            document(compact(found.to_json()))
            return
    with shown_errors():
        written = save_manifest(found, out, guard=guard)
    Terminal().print(f"Manifest: {printable(str(written))}", soft_wrap=True)
