"""The command line: `farskip explain MODEL`, `farskip demo`; the other commands have files of their own.

Contract: exit status 0 if all went well, 1 if a model was refused or a check failed, 2 for wrong usage. Errors of this
package are a short panel, never a traceback. With `--json`, stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from farskip_compile.cli.calibrate import calibrate_command
from farskip_compile.cli.distill import distill_command
from farskip_compile.cli.manifest import manifest_command
from farskip_compile.cli.model import MODEL_HELP, Wish, layer_range, load_model
from farskip_compile.cli.overlap import overlap_command
from farskip_compile.cli.simulate import simulate_command
from farskip_compile.cli.zoo import zoo_command
from farskip_compile.errors import ConfigError
from farskip_compile.explain import explain, text, versions
from farskip_compile.prepare import prepare

app = typer.Typer(
    help="Rewires Mixture-of-Experts models to FarSkip connectivity inside torch.compile.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

app.command("overlap")(overlap_command)
app.command("zoo")(zoo_command)
app.command("calibrate")(calibrate_command)
app.command("manifest")(manifest_command)
app.command("distill")(distill_command)
app.command("simulate")(simulate_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(", ".join(f"{package} {version}" for package, version in reversed(versions().items())))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Rewires Mixture-of-Experts models to FarSkip connectivity inside torch.compile."""


@app.command("explain")
def explain_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP),
    ],
    connectivity: Annotated[Wish, typer.Option(help="What to rewire.")] = Wish.FULL,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="First and last layer to rewire, both inclusive.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the table into this file (needs matplotlib).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every layer of a deep model.")] = False,
    prepared: Annotated[
        bool, typer.Option("--prepare", help="Make the model ready for capture first, as farskip_compile.prepare does.")
    ] = False,
) -> None:
    """Show what the backend finds in a model and what it would change. The model is captured, not run."""
    chosen = layer_range(layers)
    errors = Console(stderr=True)
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # a refusal says what Dynamo logs
    loaded = load_model(model, errors)
    try:
        if prepared:
            errors.print(str(prepare(loaded.model)), style="dim", highlight=False)  # type: ignore[arg-type]
        found = explain(loaded.model, *loaded.args, connectivity=connectivity.value, layers=chosen, **loaded.kwargs)
        found = dataclasses.replace(found, model=model)
        if png is not None and found.report is not None and found.report.rows:
            from farskip_compile.explain.png import draw

            draw(found.report.table, png, title=text.heading(found))
    except ConfigError as error:
        errors.print(text.error(error))
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        console = Console(highlight=False)
        console.print(text.explanation(found, console, everything=everything))
        if png is not None and png.exists():
            console.print(f"\nPicture: {png}", soft_wrap=True)
    if found.refusal is not None:
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out"),
) -> None:
    """Rewire MoE models, on two ranks of this machine, and check them against their hand-written FarSkip forms."""
    from farskip_compile.demo import run_demo
    from farskip_compile.demo.page import page
    from farskip_compile.demo.terminal import case_lines, closing

    console = Console(highlight=False, stderr=as_json)
    report = out / "farskip_demo.html"
    try:  # before a minute of work, not after it
        out.mkdir(parents=True, exist_ok=True)
        report.touch()
    except OSError as error:
        raise typer.BadParameter(f"can't write {report}: {error.strerror}", param_hint="--out") from None
    console.print("This takes a minute or so; most of it is Inductor building kernels the first time.", style="dim")
    with console.status("starting") as status:
        demo = run_demo(
            tell=lambda step: status.update(step),
            done=lambda case: console.print(case_lines(case, console)),
            command=shlex.join(["farskip", *sys.argv[1:]]),
        )
    report.write_text(page(demo), encoding="utf-8")
    if demo.overlap is not None:
        demo.overlap.write_traces(out)
    console.print(closing(demo, report))
    if as_json:
        typer.echo(json.dumps({**demo.to_json(), "html": str(report)}, indent=1))
    if not demo.passed:
        raise typer.Exit(1)
