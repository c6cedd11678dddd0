# SPDX-License-Identifier: Apache-2.0
"""The command `farskip fold CHECKPOINT --data TEXT --out FOLDER`: repair a rewired model in closed form.

Contract: exit status 0 if there is a checkpoint, 1 if the model was refused, 2 for wrong usage. A fold that was
interrupted continues from what is in the folder. With `--json`, stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farskip_compile.cli.choices import Float, Rewired, among, value_of
from farskip_compile.cli.output import AsJson, needs, quiet, show, shown_errors

PHASES = {"search": "find readers", "fold": "fold"}
"""What `fold` calls what it does: for the user."""


def fold_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder from save_pretrained, with its tokenizer.")
    ],
    data: Annotated[list[Path], typer.Option(metavar="FILE", help="Text, JSONL or chat to fit on; may be repeated.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the checkpoint and what is done so far.")],
    held_out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Other text to judge by; left out: 2 % of the documents of --data."),
    ] = None,
    connectivity: Annotated[
        Rewired, typer.Option(metavar="FORM", help=f"What to rewire: {among(Rewired)}.")
    ] = Rewired.FULL,
    layers: Annotated[
        tuple[int, int] | None, typer.Option(metavar="A B", help="First and last layer that change, both inclusive.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="To fit on: 100 times the width of the model, or more.")
    ] = 65_536,
    held_out_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="To judge each change by, at most.")
    ] = 16_384,
    sequence_length: Annotated[int, typer.Option(min=2, metavar="N", help="In tokens.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="In sequences.")] = 4,
    inputs_only: Annotated[
        bool, typer.Option("--inputs-only", help="Change what rows read, not what they add.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides which sequences are fitted on.")] = 0,
    dtype: Annotated[
        Float | None, typer.Option(metavar="TYPE", help=f"Of the parameters: {among(Float)}; left out: as they are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Multiply what rewiring changes for each sub-block into the weights that read it, without training."""
    needs("farskip fold", extra="distill")
    import dataclasses

    import torch

    from farskip_compile.cli.progress import bars
    from farskip_compile.healing.causal.batches import arguments, as_batch
    from farskip_compile.healing.causal.ranks import TrainingRanks
    from farskip_compile.healing.distill.checkpoints import save_checkpoint
    from farskip_compile.healing.distill.source import model_of, tokenizer_of
    from farskip_compile.healing.fold import fold
    from farskip_compile.healing.fold.text import fold_table
    from farskip_compile.healing.texts.loaders import text_batches
    from farskip_compile.tools.describe import describe

    quiet("torch")
    with shown_errors():
        model = model_of(str(checkpoint), Path(), value_of(dtype))
        tokenizer = tokenizer_of(str(checkpoint), Path())
        size: dict[str, Any] = {"sequence_length": sequence_length, "batch_size": batch_size}
        size["held_out_fraction"] = None if held_out else 0.02
        train = text_batches(data, tokenizer, **size, limit=_sequences(tokens, sequence_length, batch_size))
        judged = text_batches(
            held_out or data, tokenizer, **size, part="held_out", shuffle=False,
            limit=_sequences(held_out_tokens, sequence_length, batch_size),
        )  # fmt: skip
        torch.manual_seed(seed)  # a fold that continues must have the same sequences
        calibration, held = list(train), list(judged)
        asked: dict[str, Any] = {"connectivity": value_of(connectivity), "layers": layers}
        args, kwargs = arguments(as_batch(held[0], next(model.parameters()).device), model)
        manifest = describe(model, *args, **asked, **kwargs)
        with bars(PHASES) as on_site:
            found = fold(
                model,
                calibration,
                held_out=held,
                outputs=not inputs_only,
                folder=out / "fold",
                on_site=on_site,
                **asked,
            )
        notes = {"fold": {"kl_before": found.kl_before, "kl_after": found.kl_after, "tokens": found.tokens}}
        healed = dataclasses.replace(manifest, healing=notes)
        save_checkpoint(model, healed, out / "model", TrainingRanks(model), also=tokenizer.save_pretrained)
    show(as_json, found.to_json, lambda _: fold_table(found), [("Checkpoint and manifest", out / "model")])


def _sequences(tokens: int, length: int, batch: int) -> int:
    """Whole batches of at least so many tokens."""
    return -(-tokens // (length * batch)) * batch
