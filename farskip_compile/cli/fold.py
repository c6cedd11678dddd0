"""The command `farskip fold CHECKPOINT --data TEXT --out FOLDER`: repair a rewired model in closed form.

Contract: exit status 0 if there is a checkpoint, 1 if the model was refused, 2 for wrong usage. A fold that was
    interrupted
continues from what is in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from farskip_compile.cli.output import AsJson, quiet, show, shown_errors


def fold_command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder from save_pretrained, with its tokenizer.")],
    data: Annotated[list[Path], typer.Option(help="Text, JSONL or chat to fit on; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and what is done so far.")],
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Other text to judge by; left out: 2 % of the documents of --data.")
    ] = None,
    connectivity: Annotated[str, typer.Option(help="full, attention, mlp, lag2 or ladder.")] = "full",
    layers: Annotated[tuple[int, int] | None, typer.Option(help="First and last layer that change.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="To fit on: 100 times the width of the model, or more.")] = 65_536,
    held_out_tokens: Annotated[int, typer.Option(min=1, help="To judge each change by, at most.")] = 16_384,
    sequence_length: Annotated[int, typer.Option(min=2)] = 512,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    inputs_only: Annotated[
        bool, typer.Option("--inputs-only", help="Change what rows read, not what they add.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides which sequences are fitted on.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="Of the parameters; left out: as they are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Multiply what rewiring changes for each sub-block into the weights that read it, without training."""
    import dataclasses

    import torch

    from farskip_compile.causal.batches import arguments, as_batch
    from farskip_compile.causal.ranks import Ranks
    from farskip_compile.describe import describe
    from farskip_compile.distill.checkpoints import save_checkpoint
    from farskip_compile.distill.source import model_of, tokenizer_of
    from farskip_compile.fold import fold
    from farskip_compile.fold.text import fold_table
    from farskip_compile.texts.loaders import text_batches

    quiet("torch")
    with shown_errors():
        model = model_of(str(checkpoint), Path(), dtype)
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
        asked: dict[str, Any] = {"connectivity": connectivity, "layers": layers}
        args, kwargs = arguments(as_batch(held[0], next(model.parameters()).device), model)
        manifest = describe(model, *args, **asked, **kwargs)
        with _progress() as on_site:
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
        save_checkpoint(model, dataclasses.replace(manifest, healing=notes), out / "model", Ranks(model))
        tokenizer.save_pretrained(out / "model")
    show(as_json, found.to_json, lambda _: fold_table(found), [("Checkpoint and manifest", out / "model")])


def _sequences(tokens: int, length: int, batch: int) -> int:
    """Whole batches of at least so many tokens."""
    return -(-tokens // (length * batch)) * batch


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def on_site(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task({"search": "find readers", "fold": "fold"}[what], total=total)
            bar.update(tasks[what], completed=done)

        yield on_site
