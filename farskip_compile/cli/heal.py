# SPDX-License-Identifier: Apache-2.0
"""The command `farskip heal CHECKPOINT --data TEXT... --out FOLDER`: from a checkpoint to a healed one.

Contract: exit status 0 if there is a healed checkpoint, 1 if the model was refused, training could not go on, or the
question was answered with no, 2 for wrong usage, 130 after Ctrl-C. What happens is shown on stdout; with `--json`, on
stderr, and stdout holds one JSON document and nothing else. Nothing is written before the question is answered.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from farskip_compile.cli.choices import Inner, LossOn, Phase, Recipe, Rewired, Trained, among, value_of
from farskip_compile.cli.command import Continuing
from farskip_compile.cli.model import layer_range
from farskip_compile.cli.output import AsJson, needs, quiet, show_document, shown_errors

SEVERAL = ("--data", "--held-out")
FILES = "Files of text, or JSON Lines of texts, prompts with completions or conversations; patterns, too."


class Several(Continuing):
    """A command whose options for files take all that follow, as a pattern of the shell gives them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--data a b` is `--data a --data b`."""
        found: list[str] = []
        option = ""
        for one in args:
            if one.startswith("-"):
                option = one if one in SEVERAL else ""
                found.append(one)
            else:
                found += [option, one] if option and found[-1] != option else [one]
        return super().parse_args(ctx, found)


TEXT, RECIPE, ROWS, RUN = "Text", "Recipe", "What to rewire", "How to run"
"""Panels of the help."""


def heal_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A folder from save_pretrained.")],
    data: Annotated[list[str], typer.Option(metavar="FILE...", help=f"To train on. {FILES}", rich_help_panel=TEXT)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the healed checkpoint, the report and all states.")],
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE...", help="To choose and to judge by; in no training text.", rich_help_panel=TEXT),
    ] = None,
    held_out_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Of the documents of --data instead; 0.02 if left out.", rich_help_panel=TEXT
        ),
    ] = None,
    held_out_sequences: Annotated[
        int,
        typer.Option(metavar="N", help="At most; one half chooses, the other judges.", rich_help_panel=TEXT),
    ] = 256,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", help="Don't compare held-out and training text.", rich_help_panel=TEXT),
    ] = False,
    loss_on: Annotated[
        LossOn | None,
        typer.Option(
            metavar="PART", help=f"What the targets of conversations are: {among(LossOn)}.", rich_help_panel=TEXT
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of the text in JSON Lines.", rich_help_panel=TEXT)
    ] = None,
    sequence_length: Annotated[int, typer.Option(metavar="N", help="In tokens.", rich_help_panel=TEXT)] = 512,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Sequences; small ones are at least as good.", rich_help_panel=RECIPE)
    ] = 2,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Batches of a step.", rich_help_panel=RECIPE)] = 1,
    tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="To train on; all of the text once if left out.", rich_help_panel=RECIPE),
    ] = None,
    recipe: Annotated[
        Recipe,
        typer.Option(
            metavar="NAME",
            help="best (fold, stream, rate by trial), default (KL alone, rate by trial), or paper.",
            rich_help_panel=RECIPE,
        ),
    ] = Recipe.BEST,
    learning_rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="A number, or auto; the recipe's if left out.", rich_help_panel=RECIPE),
    ] = None,
    fold: Annotated[
        bool | None,
        typer.Option("--fold/--no-fold", help="The recipe's if left out.", rich_help_panel=RECIPE),
    ] = None,
    stream_weight: Annotated[
        float | None,
        typer.Option(metavar="WEIGHT", help="The recipe's if left out; 0: none.", rich_help_panel=RECIPE),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the text.", rich_help_panel=RECIPE)] = 0,
    connectivity: Annotated[
        Rewired,
        typer.Option(metavar="FORM", help=f"What to rewire: {among(Rewired)}.", rich_help_panel=ROWS),
    ] = Rewired.FULL,
    layers: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="First and last layer, both inclusive.", rich_help_panel=ROWS),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="KL", help="Only sub-blocks that hide most for so much damage.", rich_help_panel=ROWS),
    ] = None,
    free: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Only as many as free so much of what all of them free: 80%.", rich_help_panel=ROWS
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE",
            help="To simulate with, for --budget and --free: h100, mi300x and others, or a JSON file.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    ep: Annotated[
        int, typer.Option(metavar="N", help="There: ranks that share the experts.", rich_help_panel=ROWS)
    ] = 8,
    tp: Annotated[
        int, typer.Option(metavar="N", help="There: ranks that share the attention.", rich_help_panel=ROWS)
    ] = 1,
    phase: Annotated[
        Phase, typer.Option(metavar="PHASE", help=f"There: {among(Phase)}.", rich_help_panel=ROWS)
    ] = Phase.PREFILL,
    dtype: Annotated[
        Trained,
        typer.Option(metavar="TYPE", help=f"Of the parameters: {among(Trained)}.", rich_help_panel=RUN),
    ] = Trained.FLOAT32,
    precision: Annotated[
        Trained,
        typer.Option(
            metavar="TYPE",
            help=f"Of forward passes: {among(Trained)}. With bfloat16 they run under autocast.",
            rich_help_panel=RUN,
        ),
    ] = Trained.FLOAT32,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=RUN),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="An accelerator if there is one, if left out.", rich_help_panel=RUN),
    ] = None,
    inner: Annotated[
        Inner,
        typer.Option(metavar="BACKEND", help=f"What compiles the rewired graphs: {among(Inner)}.", rich_help_panel=RUN),
    ] = Inner.INDUCTOR,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Heal a checkpoint under FarSkip connectivity, from end to end. The same command again continues."""
    rate, share, chosen = _rate(learning_rate), _share(free), layer_range(layers)
    needs("farskip heal", extra="distill")
    quiet("torch", "transformers", "datasets")
    from farskip_compile.cli.progress import Heartbeat
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.healing.heal.main import Declined, Talk, heal
    from farskip_compile.healing.heal.page import terminal_page
    from farskip_compile.healing.heal.settings import HealSettings
    from farskip_compile.tools.explain import text

    console = Terminal(stderr=as_json)

    def agrees() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to answer the question; nothing was written", param_hint="--yes")
        heart.begin("")  # whoever is asked may think
        return typer.confirm("Continue?", default=False, err=as_json)

    heart = Heartbeat(Terminal(stderr=True))

    def step(line: str) -> None:
        console.print(f"\n{line}", style="bold")
        heart.begin(line)

    def show(found: RenderableType) -> None:
        console.print(found)
        heart.again()

    talk = Talk(
        step=step,
        say=show,
        show=show,
        explained=lambda found: show(text.explanation(found, console)),
        agrees=agrees,
    )
    with shown_errors(), heart:
        settings = HealSettings(
            checkpoint=checkpoint,
            data=_files(data, "--data"),
            out=out,
            held_out=_files(held_out, "--held-out") if held_out else None,
            held_out_fraction=held_out_fraction,
            held_out_sequences=held_out_sequences,
            allow_overlap=allow_overlap,
            loss_on=value_of(loss_on),
            text_field=text_field,
            sequence_length=sequence_length,
            batch_size=batch_size,
            accumulate=accumulate,
            tokens=tokens,
            recipe=value_of(recipe),
            learning_rate=rate,
            fold=fold,
            stream_weight=stream_weight,
            connectivity=value_of(connectivity),
            layers=chosen,
            budget=budget,
            free=share,
            hardware=hardware,
            ep=ep,
            tp=tp,
            phase=value_of(phase),
            dtype=value_of(dtype),
            precision=value_of(precision),
            gradient_checkpointing=gradient_checkpointing,
            device=device,
            inner=value_of(inner),
            seed=seed,
        )
        try:
            report = heal(settings, talk)
        except Declined:
            console.print("Nothing was written.")
            raise typer.Exit(1) from None
    if as_json:
        show_document(report)
        return
    console.print()
    console.print(terminal_page(report))
    console.print(f"\nCheckpoint: {out / 'model'}\nReport: {out / 'report.md'}", soft_wrap=True)


def _files(patterns: list[str], option: str) -> tuple[Path, ...]:
    """Files, in order; what is a pattern matches one at least."""
    found: list[Path] = []
    for one in patterns:
        path = Path(one)
        matches = [path] if path.exists() or not re.search(r"[*?\[]", one) else sorted(_matching(one))
        if not matches or any(match.is_dir() for match in matches):
            what = "is a folder" if path.is_dir() else "matches no file"
            raise typer.BadParameter(f"{one} {what}: give files, such as text/*.txt", param_hint=option)
        found += matches
    return tuple(dict.fromkeys(found))


def _matching(pattern: str) -> list[Path]:
    import glob

    return [Path(one) for one in glob.glob(pattern, recursive=True) if Path(one).is_file()]


def _rate(text: str | None) -> Any:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto", param_hint="--learning-rate") from None


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(0?\.\d+|1(?:\.0*)?)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a share, such as 80% or 0.8", param_hint="--free")
    return float(match[1]) / 100 if match[1] else float(match[2])
