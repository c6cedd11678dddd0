# SPDX-License-Identifier: Apache-2.0
"""The command `farskip evaluate ORIGINAL HEALED --tasks ...`: what healing left of a model's scores, by lm-eval.

Contract: exit status 0 if no metric dropped by more than its limit, 1 if one did or a model did not run as its
manifest says, 2 for wrong usage. With `--json`, stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from farskip_compile.base.choices import FloatDtype, Inner
from farskip_compile.cli.options import DEVICE_HELP, INNER_HELP, AsJson, among, option
from farskip_compile.cli.output import needs, quiet, show, shown_errors

Loaded = Literal["auto", FloatDtype]
"""The types that a checkpoint is loaded in; `auto`: its own."""


def evaluate_command(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="Checkpoint: a folder, or a name on the Hub.")],
    healed: Annotated[str, typer.Argument(metavar="HEALED", help="Checkpoint with a manifest; runs rewired.")],
    tasks: Annotated[str, option("TASK,...", "Tasks of lm-eval, separated by commas.")],
    max_drop: Annotated[
        float | None,
        option(
            "DROP",
            "Fail if a metric drops by more: in its own unit where more is better, as a share of the original's "
            "value where less is.",
            min=0,
        ),
    ] = None,
    limit_drop: Annotated[
        list[str] | None,
        option("LIMIT", "The same for one task or metric, as TASK[:METRIC]=DROP; may be repeated."),
    ] = None,
    limit: Annotated[int | None, option("N", "Samples of each task; all if left out.", min=1)] = None,
    num_fewshot: Annotated[int | None, option("N", "Examples in a prompt; the task's if left out.", min=0)] = None,
    batch_size: Annotated[str, option("N", "A number, or auto.")] = "1",
    include_path: Annotated[
        Path | None, option("FOLDER", "With tasks of your own.", exists=True, file_okay=False)
    ] = None,
    device: Annotated[str | None, option("DEVICE", DEVICE_HELP)] = None,
    dtype: Annotated[
        Loaded, option("TYPE", f"Of the parameters: {among(Loaded)}; auto: as in the checkpoint.")
    ] = "auto",
    apply_chat_template: Annotated[bool, option(None, "For chat models.", "--apply-chat-template")] = False,
    inner: Annotated[Inner, option("BACKEND", INNER_HELP)] = "inductor",
    as_json: AsJson = False,
) -> None:
    """Compare a healed model, rewired as its manifest says, with the original on tasks of lm-eval."""
    needs("farskip evaluate", extra="eval")
    named = dict(_drop(text) for text in limit_drop or ())
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("names no task", param_hint="--tasks")
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise typer.BadParameter(f"{batch_size!r} is neither a number nor auto", param_hint="--batch-size")
    quiet("torch", "lm_eval")
    from farskip_compile.cli.progress import Heartbeat
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.healing.evaluation.difference import MetricLimits
    from farskip_compile.healing.evaluation.run import EvaluationSettings, evaluate
    from farskip_compile.healing.evaluation.table import comparison_table

    settings = EvaluationSettings(
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size if batch_size == "auto" else int(batch_size),
        device=device,
        dtype=dtype,
        include_path=include_path,
        apply_chat_template=apply_chat_template,
        inner=inner,
        limits=MetricLimits(named, max_drop),
    )
    console = Terminal(stderr=True)  # lines, no spinner: lm-eval draws bars of its own on a terminal
    with shown_errors(), Heartbeat(Terminal(stderr=True, quiet=sys.stderr.isatty())) as heart:

        def tell(step: str) -> None:
            console.print(step, style="dim", soft_wrap=True)
            heart.begin(step)

        found = evaluate(original, healed, names, settings, tell=tell)
    show(as_json, found.to_json, lambda _: comparison_table(found))
    if not found.holds:
        raise typer.Exit(1)


def _drop(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        drop = float(number)
    except ValueError:
        drop = -1.0
    if not name or not drop >= 0:
        raise typer.BadParameter(f"{text!r} is not TASK=DROP, such as hellaswag=0.01", param_hint="--limit-drop")
    return name, drop
