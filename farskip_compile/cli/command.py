# SPDX-License-Identifier: Apache-2.0
"""What surrounds each command, so that it ends quietly whatever ends it.

Contract, for every command of this class:
- with `--json`, only the document is on stdout (`streams`);
- Ctrl-C is one line on stderr and exit status 130;
- a reader that went away (`| head`) is exit status 1, without a word;
- a package that an extra would have installed, and that is missing, is one line on stderr and exit status 2; so is a
  torch that is too old;
- where stderr is not a terminal, other packages draw no progress bars;
- models that the command compiles for itself do not announce that they are rewired.

Any other exception is a defect and passes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from farskip_compile.cli.streams import documents_alone, forget_stdout

STOPPED, WRONG_USAGE = 130, 2
NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Variables that turn off the bars of lm-eval, transformers, huggingface_hub and datasets."""


def first_rank() -> bool:
    """Whether this process is the one that prints, among those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class Command(TyperCommand):
    """A command of this package."""

    stopped = "Stopped."

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        alone = documents_alone() if ctx.params.get("as_json") else contextlib.nullcontext()
        with _quiet_ends(self.stopped), alone, _no_bars_in_files(), _no_first_step():
            return super().invoke(ctx)


class Continuing(Command):
    """A command that goes on where it stopped, if it is given again."""

    stopped = "Stopped. The same command continues."


@contextlib.contextmanager
def _quiet_ends(stopped: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, typer.Abort) as error:  # the latter at a question, for Ctrl-C and for Ctrl-D
        if first_rank():
            typer.echo(f"\n{stopped}" if sys.stderr.isatty() else stopped, err=True)  # a terminal shows ^C before it
        at_once = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
        raise typer.Exit(STOPPED if at_once else 1) from None
    except BrokenPipeError:
        forget_stdout()
        raise typer.Exit(1) from None
    except ImportError as error:
        from farskip_compile.base.extras import SPELLED, pip_install
        from farskip_compile.versions import VersionError

        package = missing_package(error)
        if not package and not isinstance(error, VersionError):
            raise
        if first_rank():
            needed = f"this needs {SPELLED.get(package, package)}: {pip_install(package)}" if package else str(error)
            typer.echo(needed, err=True)
        raise typer.Exit(WRONG_USAGE) from None


def missing_package(error: Exception) -> str:
    """The package that could not be imported, if it is one that this package knows how to install."""
    from farskip_compile.base.extras import INSTALLED_BY

    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    package = name.partition(".")[0]
    return package if package in INSTALLED_BY else ""


@contextlib.contextmanager
def _no_bars_in_files() -> Iterator[None]:
    added = [] if sys.stderr.isatty() else [name for name in NO_BARS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _no_first_step() -> Iterator[None]:
    """Unless it is a warning; see `farskip_compile.records.line`."""
    log = logging.getLogger("farskip_compile.first_step")
    before = log.level
    log.setLevel(before or logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
