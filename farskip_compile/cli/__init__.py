# SPDX-License-Identifier: Apache-2.0
"""The command line, one file a command: `farskip explain MODEL`, `farskip demo`, ...

Contract: exit status 0 if all went well, 1 if a model was refused or a check failed, 2 for wrong usage or a missing
package, 130 after Ctrl-C. Errors of this package are a short panel, never a traceback. With `--json`, stdout holds one
JSON document and nothing else. Help and completion need neither torch nor the rest of this package: each command
imports what it runs when it is called. Help is Markdown: brackets in it are brackets, in every version of typer.
"""

from __future__ import annotations

from typing import Annotated

import typer

from farskip_compile.cli.calibrate import calibrate_command
from farskip_compile.cli.command import Command
from farskip_compile.cli.demo import demo_command
from farskip_compile.cli.evaluate import evaluate_command
from farskip_compile.cli.explain import explain_command
from farskip_compile.cli.families import families_command
from farskip_compile.cli.heal import Several, heal_command
from farskip_compile.cli.overlap import overlap_command
from farskip_compile.cli.serving import serving_command
from farskip_compile.cli.simulate import simulate_command
from farskip_compile.cli.status import status_command

ABOUT = "Rewires Mixture-of-Experts models to FarSkip connectivity inside torch.compile."
app = typer.Typer(help=ABOUT, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_show_locals=False)
app.command("explain", cls=Command)(explain_command)
app.command("demo", cls=Command)(demo_command)
app.command("status", cls=Command)(status_command)
app.command("simulate", cls=Command)(simulate_command)
app.command("calibrate", cls=Command)(calibrate_command)
app.command("overlap", cls=Command)(overlap_command)
app.command("heal", cls=Several)(heal_command)
app.command("evaluate", cls=Command)(evaluate_command)

check = typer.Typer(
    help="Compare what this package makes of models with an independent computation.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
check.command("families", cls=Command)(families_command)
check.command("serving", cls=Command)(serving_command)
app.add_typer(check, name="check")


def _print_version(wanted: bool) -> None:
    if wanted:
        from farskip_compile.tools.explain import versions

        typer.echo(", ".join(f"{package} {version}" for package, version in reversed(versions().items())))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Rewires Mixture-of-Experts models to FarSkip connectivity inside torch.compile."""
