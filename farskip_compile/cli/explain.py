# SPDX-License-Identifier: Apache-2.0
"""The command `farskip explain MODEL`: what the backend finds in a model, and what it would change.

Contract: the model is captured, not run. Exit status 0 if it would be rewired, 1 if it is refused, 2 for wrong usage.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.choices import Connectivity, among, value_of
from farskip_compile.cli.model import Model, layer_range, load_model
from farskip_compile.cli.output import AsJson, needs, quiet, show, shown_errors


def explain_command(
    model: Model,
    connectivity: Annotated[
        Connectivity, typer.Option(metavar="FORM", help=f"What to rewire: {among(Connectivity)}.")
    ] = Connectivity.FULL,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="First and last layer to rewire, both inclusive.")
    ] = None,
    as_json: AsJson = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the table into this file (needs matplotlib).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every layer of a deep model.")] = False,
    prepared: Annotated[
        bool, typer.Option("--prepare", help="Make the model ready for capture first, as farskip_compile.prepare does.")
    ] = False,
) -> None:
    """Show what the backend finds in a model and what it would change. The model is captured, not run."""
    if png is not None:
        needs("--png", extra="plot")
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.tools.explain import explain, text
    from farskip_compile.tools.explain.png import draw
    from farskip_compile.tools.prepare import prepare

    chosen = layer_range(layers)
    quiet("torch")
    loaded = load_model(model)
    with shown_errors():
        if prepared:
            Terminal(stderr=True).print(str(prepare(loaded.model)), style="dim")  # type: ignore[arg-type]
        with working(f"capturing {model}"):
            found = explain(
                loaded.model, *loaded.args, connectivity=value_of(connectivity), layers=chosen, **loaded.kwargs
            )
        found = dataclasses.replace(found, model=model)
        if png is not None and found.report is not None and found.report.rows:
            draw(found.report.table, png, title=text.heading(found))
    show(
        as_json,
        found.to_json,
        lambda console: text.explanation(found, console, everything=everything),
        [("\nPicture", png if png is not None and png.exists() else None)],
    )
    if found.refusal is not None:
        raise typer.Exit(1)
