# SPDX-License-Identifier: Apache-2.0
"""The command `farskip explain MODEL`: what the backend finds in a model, and what it would change.

Contract: the model is captured, not run. Exit status 0 if it would be rewired, 1 if it is refused, 2 for wrong usage.
With `--manifest -`, stdout holds the manifest and nothing else.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farskip_compile.cli.options import (
    AsJson,
    ConnectivityOption,
    LayersOption,
    ModelArgument,
    layer_range,
    load_model,
    option,
)
from farskip_compile.cli.output import needs, quiet, show, shown_errors
from farskip_compile.cli.streams import document, documents_alone

if TYPE_CHECKING:
    from farskip_compile.manifest import Manifest

STDOUT = "-"


def explain_command(
    model: ModelArgument,
    connectivity: ConnectivityOption = "full",
    layers: LayersOption = None,
    as_json: AsJson = False,
    png: Annotated[Path | None, option("FILE", "Draw the table into this file (needs matplotlib).")] = None,
    everything: Annotated[bool, option(None, "Show every layer of a deep model.", "--all")] = False,
    prepared: Annotated[
        bool, option(None, "Make the model ready for capture first, as farskip_compile.prepare does.", "--prepare")
    ] = False,
    manifest: Annotated[
        str | None,
        option(
            "PATH",
            "Write the manifest of this form of the model into a checkpoint folder, its config.json or a JSON file; "
            "- for stdout.",
        ),
    ] = None,
    guard: Annotated[
        bool, option(None, "Give the checkpoint a model_type that only farskip-compile loads.", "--guard/--no-guard")
    ] = True,
) -> None:
    """Show what the backend finds in a model and what it would change. The model is captured, not run."""
    if png is not None:
        needs("--png", extra="plot")
    if manifest == STDOUT and as_json:
        raise typer.BadParameter("--json needs stdout for itself: give a file", param_hint="--manifest")
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.manifest import write_manifest
    from farskip_compile.tools.describe import from_report
    from farskip_compile.tools.explain import explain, text
    from farskip_compile.tools.explain.png import draw
    from farskip_compile.tools.prepare import prepare

    chosen = layer_range(layers)
    quiet("torch")
    described: Manifest | None = None
    with documents_alone() if manifest == STDOUT else nullcontext():
        loaded = load_model(model)
        with shown_errors():
            if prepared:
                Terminal(stderr=True).print(str(prepare(loaded.model)), style="dim")  # type: ignore[arg-type]
            with working(f"capturing {model}"):
                found = explain(loaded.model, *loaded.args, connectivity=connectivity, layers=chosen, **loaded.kwargs)
            found = dataclasses.replace(found, model=model)
            if png is not None and found.report is not None and found.report.rows:
                draw(found.report.table, png, title=text.heading(found))
            if manifest is not None and found.report is not None and found.refusal is None:
                described = from_report(found.report, loaded.model)
        if manifest == STDOUT and described is not None:
            _print_manifest(described)
            return
        written = None
        if manifest is not None and described is not None:
            with shown_errors():
                written = write_manifest(described, manifest, guard=guard)
        show(
            as_json,
            found.to_json,
            lambda console: text.explanation(found, console, everything=everything),
            [("\nPicture", png if png is not None and png.exists() else None), ("\nManifest", written)],
        )
    if found.refusal is not None:
        raise typer.Exit(1)


def _print_manifest(manifest: Manifest) -> None:
    from farskip_compile.manifest.json_text import compact

    document(compact(manifest.to_json()))
