# SPDX-License-Identifier: Apache-2.0
"""The command `farskip calibrate FILE`: measure this machine, and write its hardware profile.

Contract: under torchrun all ranks measure together and rank 0 writes and prints; alone, one process measures compute.
Exit status 0 if the profile is written, 2 for wrong usage. With `--json`, stdout holds one JSON document and nothing
else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from farskip_compile.base.choices import FloatDtype
from farskip_compile.cli.command import first_rank
from farskip_compile.cli.options import AsJson, among, option
from farskip_compile.cli.output import cannot_write, show, shown_errors

Part = Literal["compute", "links"]
"""The parts that can be measured alone."""
QUICK, NORMAL = 10.0, 45.0
"""Seconds of a measurement."""


def _completed_dtypes(incomplete: str) -> list[str]:
    """Return the types that begin with `incomplete`. Typer has no lists of literals."""
    return [name for name in get_args(FloatDtype) if name.startswith(incomplete)]


def calibrate_command(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Write the profile here (.json).")],
    quick: Annotated[bool, option(None, "Fewer points, in 10 seconds or so.", "--quick")] = False,
    budget: Annotated[float | None, option("SECONDS", "How long it may take; 45 if left out.")] = None,
    dtype: Annotated[
        list[str] | None,
        option(
            "TYPE", f"Type of the products: {among(FloatDtype)}; may be repeated.", autocompletion=_completed_dtypes
        ),
    ] = None,
    device: Annotated[
        str | None,
        option(
            "DEVICE",
            "What to measure, as torch calls it: cpu or cuda:1, for example. The accelerator if there is one, if left "
            "out.",
        ),
    ] = None,
    ranks_per_node: Annotated[int | None, option("N", "Ranks that share a node.", min=1)] = None,
    profile: Annotated[
        str | None, option("PROFILE", "What gives the figures that are not measured: a name or a file.")
    ] = None,
    only: Annotated[Part | None, option("PART", f"Measure nothing else: {among(Part)}.")] = None,
    as_json: AsJson = False,
    everything: Annotated[bool, option(None, "Show every measured point.", "--all")] = False,
) -> None:
    """Measure this machine on the ranks of torchrun, or on one: a profile for the backend's option "profile"."""
    for one in dtype or ():
        if one not in get_args(FloatDtype):
            raise typer.BadParameter(f"{one!r} is not one of {among(FloatDtype)}", param_hint="--dtype")
    import torch

    from farskip_compile.cli.progress import working
    from farskip_compile.costs import load_profile
    from farskip_compile.measure.calibrate.main import CalibrateOptions, measure
    from farskip_compile.measure.calibrate.text import calibration_text

    first = first_rank()
    try:
        if first:
            out.touch()
    except OSError as error:
        raise cannot_write(out, error, "FILE") from None
    chosen: CalibrateOptions = {
        "device": device,
        "budget_seconds": budget if budget is not None else QUICK if quick else NORMAL,
        "ranks_per_node": ranks_per_node,
    }
    if dtype:
        chosen["dtypes"] = [getattr(torch, one) for one in dtype]
    with shown_errors(silent=not first), _ranks(device), working(quiet=not first) as work:
        if profile is not None:
            chosen["base"] = load_profile(profile)
        found = measure(
            **chosen,
            compute=only != "links",
            links=only != "compute",
            tell=work,
        )
    if not first:
        return
    found.profile.save(out)
    show(
        as_json,
        found.to_json,
        lambda console: calibration_text(found, console, everything=everything),
        [("\nProfile", out)],
    )


@contextlib.contextmanager
def _ranks(device: str | None) -> Iterator[None]:
    """Keep the process group of torchrun's ranks, if this process is one of them, until the block ends."""
    import torch
    import torch.distributed as dist

    from farskip_compile.compiler.ranks.process_group import leaving_process_group

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    accelerator = (device or "").partition(":")[0] != "cpu" and torch.accelerator.is_available()
    if accelerator:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group()
    else:
        dist.init_process_group("gloo")
    with leaving_process_group():
        yield
