# SPDX-License-Identifier: Apache-2.0
"""The output of all commands: results, errors as a short panel, missing packages as a line, exit statuses.

Contract: a command gives its result to `show`; with `--json`, stdout holds one JSON document and nothing else. All is
printed on a `Terminal`. Inside `shown_errors`, an error of this package is a panel on stderr and ends the command: with
status 2 if it was called wrongly, else with status 1; never a traceback. A package that is missing is one line and
status 2. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from farskip_compile.cli.command import WRONG_USAGE, first_rank
from farskip_compile.cli.streams import document


@contextmanager
def shown_errors(status: int | None = None, *, silent: bool = False) -> Iterator[None]:
    """Turn a `FarSkipError` into a panel (unless `silent`: another rank prints it) and an exit status, by default 2 for
    a `ConfigError` and 1 for any other."""
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.errors import ConfigError, FarSkipError, MissingPackageError
    from farskip_compile.tools.explain import text

    try:
        yield
    except MissingPackageError as error:
        if not silent:
            typer.echo(f"{error.reason}: {error.way_out}", err=True)
        raise typer.Exit(WRONG_USAGE) from None
    except FarSkipError as error:
        if not silent:
            Terminal(stderr=True).print(text.error(error))
        raise typer.Exit(status or (WRONG_USAGE if isinstance(error, ConfigError) else 1)) from None


def needs(what: str, *packages: str, extra: str = "") -> None:
    """End the command if one of `packages`, or of what `extra` brings, is not installed or in a version that does not
    work: before torch is imported, and before any work."""
    from farskip_compile.base.extras import EXTRAS, pip_install, why_not

    for package in packages or EXTRAS[extra]:
        if reason := why_not(what, package):
            if first_rank():
                typer.echo(f"{reason}: {pip_install(package, extra=extra)}", err=True)
            raise typer.Exit(WRONG_USAGE)


def show(
    as_json: bool,
    content: Callable[[], Any],
    text: Callable[[Console], RenderableType],
    files: Iterable[tuple[str, Path | None]] = (),
) -> None:
    """Print a result: its JSON document, or its text and the files that were written (label and path)."""
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.text_utils import printable

    if as_json:
        show_document(content())
        return
    console = Terminal()
    console.print(text(console))
    for label, path in files:
        if path is not None:
            console.print(f"{label}: {printable(str(path))}", soft_wrap=True)


def show_document(content: Any) -> None:
    """Print JSON."""
    document(json.dumps(content, indent=1))


def quiet(*loggers: str) -> None:
    """Silence other packages: a refusal says what they log."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def cannot_write(path: Path, error: OSError, option: str) -> typer.BadParameter:
    """The error of an output file that can't be written."""
    from farskip_compile.text_utils import printable

    return typer.BadParameter(printable(f"can't write {path}: {error.strerror}"), param_hint=option)
