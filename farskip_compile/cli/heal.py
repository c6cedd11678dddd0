# SPDX-License-Identifier: Apache-2.0
"""The command `farskip heal CHECKPOINT --data TEXT... --out FOLDER`: from a checkpoint to a healed one.

`--recipe fold` repairs without training (`heal_fold`); a TOML file in place of CHECKPOINT has all settings, and is the
way to heal on several ranks (`heal_config`).

Contract: exit status 0 if there is a healed checkpoint, 1 if the model was refused, training could not go on, or the
question was answered with no, 2 for wrong usage, 130 after Ctrl-C. What happens is shown on stdout; with `--json`, on
stderr, and stdout holds one JSON document and nothing else. Nothing is written before the question is answered.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from farskip_compile.base.choices import FloatDtype, HealRecipe, Inner, LossOn, Phase, Rewiring, TrainingDtype
from farskip_compile.cli.command import Continuing
from farskip_compile.cli.heal_config import heal_from_config
from farskip_compile.cli.heal_fold import FoldSettings, heal_by_fold
from farskip_compile.cli.options import DEVICE_HELP, INNER_HELP, REWIRED_HELP, AsJson, among, layer_range, option
from farskip_compile.cli.output import needs, quiet, show_document, shown_errors

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farskip_compile.healing.heal.settings import HealSettings

Recipe = Literal[HealRecipe, "fold"]
SEVERAL = ("--data", "--held-out")
WITH_CONFIG = ("checkpoint", "as_json")
WITH_FOLD = (
    *("data", "out", "held_out", "held_out_sequences", "connectivity", "layers", "tokens", "sequence_length"),
    *("batch_size", "inputs_only", "seed", "dtype", "recipe"),
)
"""The parameters that a TOML file, and the recipe `fold`, leave to the command line."""
FILES = "Files of text, or JSON Lines of texts, prompts with completions or conversations; patterns, too."
TEXT, RECIPE, ROWS, RUN = "Text", "Recipe", "What to rewire", "How to run"
"""Panels of the help."""


class Several(Continuing):
    """A command whose options for files take all that follow, as a pattern of the shell gives them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--data a b` as `--data a --data b`."""
        found: list[str] = []
        several = ""
        for one in args:
            if one.startswith("-"):
                several = one if one in SEVERAL else ""
                found.append(one)
            else:
                found += [several, one] if several and found[-1] != several else [one]
        return super().parse_args(ctx, found)


def heal_command(
    context: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A folder from save_pretrained; or a TOML file, see above.")
    ],
    data: Annotated[list[str] | None, option("FILE...", f"To train on. {FILES}", panel=TEXT)] = None,
    out: Annotated[
        Path | None, option("FOLDER", "For the healed checkpoint, the report and all states.", panel=TEXT)
    ] = None,
    held_out: Annotated[
        list[str] | None, option("FILE...", "To choose and to judge by; in no training text.", panel=TEXT)
    ] = None,
    held_out_fraction: Annotated[
        float | None, option("SHARE", "Of the documents of --data instead; 0.02 if left out.", panel=TEXT)
    ] = None,
    held_out_sequences: Annotated[
        int | None,
        option("N", "At most; one half chooses, the other judges. 256, or 16384 tokens to fold.", panel=TEXT, min=1),
    ] = None,
    allow_overlap: Annotated[
        bool, option(None, "Don't compare held-out and training text.", "--allow-overlap", panel=TEXT)
    ] = False,
    loss_on: Annotated[
        LossOn | None, option("PART", f"What the targets of conversations are: {among(LossOn)}.", panel=TEXT)
    ] = None,
    text_field: Annotated[str | None, option("KEY", "Of the text in JSON Lines.", panel=TEXT)] = None,
    sequence_length: Annotated[int, option("N", "In tokens.", panel=TEXT)] = 512,
    batch_size: Annotated[
        int | None, option("N", "Sequences; small ones are at least as good. 2, or 4 to fold.", panel=RECIPE)
    ] = None,
    accumulate: Annotated[int, option("N", "Batches of a step.", panel=RECIPE)] = 1,
    tokens: Annotated[
        int | None,
        option("N", "To train on; all of the text once if left out. To fold: 65536, or more.", panel=RECIPE, min=1),
    ] = None,
    recipe: Annotated[
        Recipe,
        option(
            "NAME",
            "best (fold, stream, rate by trial), default (KL alone, rate by trial), paper, or fold (no training).",
            panel=RECIPE,
        ),
    ] = "best",
    learning_rate: Annotated[
        str | None, option("RATE", "A number, or auto; the recipe's if left out.", panel=RECIPE)
    ] = None,
    fold: Annotated[bool | None, option(None, "The recipe's if left out.", "--fold/--no-fold", panel=RECIPE)] = None,
    inputs_only: Annotated[
        bool,
        option(None, "With recipe fold: change what rows read, not what they add.", "--inputs-only", panel=RECIPE),
    ] = False,
    stream_weight: Annotated[float | None, option("WEIGHT", "The recipe's if left out; 0: none.", panel=RECIPE)] = None,
    seed: Annotated[int, option("N", "Of the order of the text.", panel=RECIPE)] = 0,
    connectivity: Annotated[Rewiring, option("FORM", REWIRED_HELP, panel=ROWS)] = "full",
    layers: Annotated[str | None, option("A:B", "First and last layer, both inclusive.", panel=ROWS)] = None,
    budget: Annotated[
        float | None, option("KL", "Only sub-blocks that hide most for so much damage.", panel=ROWS)
    ] = None,
    free: Annotated[
        str | None, option("SHARE", "Only as many as free so much of what all of them free: 80%.", panel=ROWS)
    ] = None,
    hardware: Annotated[
        str | None,
        option(
            "PROFILE",
            "To simulate with, for --budget and --free: h100, mi300x and others, or a JSON file.",
            panel=ROWS,
        ),
    ] = None,
    ep: Annotated[int, option("N", "There: ranks that share the experts.", panel=ROWS)] = 8,
    tp: Annotated[int, option("N", "There: ranks that share the attention.", panel=ROWS)] = 1,
    phase: Annotated[Phase, option("PHASE", f"There: {', '.join(Phase)}.", panel=ROWS)] = Phase.PREFILL,
    dtype: Annotated[
        FloatDtype | None,
        option(
            "TYPE",
            f"Of the parameters: {among(TrainingDtype)}; float32 if left out. To fold: {among(FloatDtype)}; as they "
            "are if left out.",
            panel=RUN,
        ),
    ] = None,
    precision: Annotated[
        TrainingDtype,
        option("TYPE", f"Of forward passes: {among(TrainingDtype)}. With bfloat16 they run under autocast.", panel=RUN),
    ] = "float32",
    gradient_checkpointing: Annotated[
        bool, option(None, "Less memory, more time.", "--gradient-checkpointing", panel=RUN)
    ] = False,
    device: Annotated[str | None, option("DEVICE", DEVICE_HELP, panel=RUN)] = None,
    inner: Annotated[Inner, option("BACKEND", INNER_HELP, panel=RUN)] = "inductor",
    yes: Annotated[bool, option(None, "Don't ask.", "--yes", "-y")] = False,
    as_json: AsJson = False,
) -> None:
    """Heal a checkpoint under FarSkip connectivity, from end to end. The same command again continues.

    With `--recipe fold`, nothing is trained: what rewiring changes for each sub-block is multiplied into the weights
    that read it. On several ranks, or to set everything, give a TOML file in place of CHECKPOINT and no other option:

    ```toml
    model = "checkpoint"

    [data]
    train = ["text/*.txt"]
    held_out = ["held_out.txt"]
    sequence_length = 512
    batch_size = 8

    [distill]
    connectivity = "full"
    steps = 2000
    output = "healed"
    ```

    Text files are plain text, or JSON Lines (.jsonl) with one of these on each line:

    ```json
    {"text": ...}
    {"prompt": ..., "completion": ...}
    {"messages": [{"role": ..., "content": ...}]}
    ```

    Of the last two, only what the assistant says is a target, unless `loss_on = "all"`.

    `held_out_fraction = 0.02` holds out documents of `train` and takes the place of `held_out`. Held-out text that is
    in the training text is refused (`overlap_tokens = 50`, `overlap_limit = 0.01`), unless `allow_overlap = true`.
    Further keys of `[data]`: `format`, `text_field`, `chat_template`, `held_out_sequences`. Keys of `[distill]` are the
    options of `DistillConfig`.
    """
    is_config = checkpoint.suffix == ".toml" or checkpoint.is_file()
    if is_config:
        _refuse_options(context, WITH_CONFIG, "is a key of the TOML file, or can't be chosen there")
    elif recipe == "fold":
        _refuse_options(context, (*WITH_CONFIG, *WITH_FOLD), "is of no use to the recipe fold, which does not train")
    elif inputs_only:
        raise typer.BadParameter("only the recipe fold can do so", param_hint="--inputs-only")
    rate, share, chosen = _rate(learning_rate), _share(free), layer_range(layers)
    needs("farskip heal", extra="distill")
    quiet("torch", "transformers", "datasets")
    if is_config:
        heal_from_config(checkpoint, as_json=as_json)
        return
    if not data or out is None:
        raise typer.BadParameter("is needed to heal a folder", param_hint="--out" if data else "--data")
    train_files = _files(data, "--data")
    held_files = _files(held_out, "--held-out") if held_out else None
    if recipe == "fold":
        fold_settings = FoldSettings(
            checkpoint=checkpoint,
            data=train_files,
            out=out,
            held_out=held_files,
            held_out_sequences=held_out_sequences,
            connectivity=connectivity,
            layers=chosen,
            tokens=tokens,
            sequence_length=sequence_length,
            batch_size=batch_size,
            inputs_only=inputs_only,
            seed=seed,
            dtype=dtype,
        )
        heal_by_fold(fold_settings, as_json=as_json)
        return
    from farskip_compile.healing.heal.settings import HealSettings

    with shown_errors():
        settings = HealSettings(
            checkpoint=checkpoint,
            data=train_files,
            out=out,
            held_out=held_files,
            held_out_fraction=held_out_fraction,
            held_out_sequences=256 if held_out_sequences is None else held_out_sequences,
            allow_overlap=allow_overlap,
            loss_on=loss_on,
            text_field=text_field,
            sequence_length=sequence_length,
            batch_size=2 if batch_size is None else batch_size,
            accumulate=accumulate,
            tokens=tokens,
            recipe=recipe,
            learning_rate=rate,
            fold=fold,
            stream_weight=stream_weight,
            connectivity=connectivity,
            layers=chosen,
            budget=budget,
            free=share,
            hardware=hardware,
            ep=ep,
            tp=tp,
            phase=phase,
            dtype=dtype or "float32",  # type: ignore[arg-type]  # HealSettings refuses other types
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            device=device,
            inner=inner,
            seed=seed,
        )
    _heal(settings, yes=yes, as_json=as_json)


def _refuse_options(context: typer.Context, allowed: Collection[str], reason: str) -> None:
    """Raise for the first option that the command line has and `allowed` lacks."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in allowed:
            raise typer.BadParameter(reason, param_hint=parameter.opts[0])


def _heal(settings: HealSettings, *, yes: bool, as_json: bool) -> None:
    from farskip_compile.cli.progress import Heartbeat
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.healing.heal.main import Declined, Talk, heal
    from farskip_compile.healing.heal.page import terminal_page
    from farskip_compile.tools.explain import text

    console, heart = Terminal(stderr=as_json), Heartbeat(Terminal(stderr=True))

    def agrees() -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to answer the question; nothing was written", param_hint="--yes")
        heart.begin("")  # whoever is asked may think
        return typer.confirm("Continue?", default=False, err=as_json)

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
    console.print(f"\nCheckpoint: {settings.out / 'model'}\nReport: {settings.out / 'report.md'}", soft_wrap=True)


def _files(patterns: list[str], option: str) -> tuple[Path, ...]:
    """Return the files that paths and patterns name, in order; a pattern must match at least one."""
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
