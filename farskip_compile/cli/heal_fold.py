# SPDX-License-Identifier: Apache-2.0
"""`farskip heal CHECKPOINT --recipe fold`: repair a rewired model in closed form, without training.

Contract: `FOLDER/model` is the checkpoint. A fold that was interrupted continues from `FOLDER/fold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farskip_compile.base.choices import FloatDtype, Rewiring
from farskip_compile.cli.output import show, shown_errors

PHASES = {"search": "find readers", "fold": "fold"}
"""The phases of `healing.fold.fold`, and their names on the progress bars."""
TOKENS, HELD_OUT_TOKENS, HELD_OUT_FRACTION, BATCH_SIZE = 65_536, 16_384, 0.02, 4


@dataclass(frozen=True, kw_only=True)
class FoldSettings:
    """The options of one fold. None: the default of this module."""

    checkpoint: Path
    data: Sequence[Path]
    out: Path
    held_out: Sequence[Path] | None
    held_out_sequences: int | None
    connectivity: Rewiring
    layers: tuple[int, int] | None
    tokens: int | None
    sequence_length: int
    batch_size: int | None
    inputs_only: bool
    seed: int
    dtype: FloatDtype | None


def heal_by_fold(settings: FoldSettings, *, as_json: bool) -> None:
    """Multiply what rewiring changes for each sub-block into the weights that read it, and save the checkpoint."""
    import dataclasses

    import torch

    from farskip_compile.cli.progress import bars
    from farskip_compile.healing.causal.batches import arguments, as_batch
    from farskip_compile.healing.causal.ranks import TrainingRanks
    from farskip_compile.healing.distill.checkpoints import save_checkpoint
    from farskip_compile.healing.distill.source import model_of, tokenizer_of
    from farskip_compile.healing.fold import fold
    from farskip_compile.healing.fold.text import fold_table
    from farskip_compile.tools.describe import describe

    with shown_errors():
        model = model_of(str(settings.checkpoint), Path(), settings.dtype)
        tokenizer = tokenizer_of(str(settings.checkpoint), Path())
        torch.manual_seed(settings.seed)  # a fold that continues must have the same sequences
        calibration, held = _batches(settings, tokenizer)
        asked: dict[str, Any] = {"connectivity": settings.connectivity, "layers": settings.layers}
        args, kwargs = arguments(as_batch(held[0], next(model.parameters()).device), model)
        manifest = describe(model, *args, **asked, **kwargs)
        with bars(PHASES) as on_site:
            found = fold(
                model,
                calibration,
                held_out=held,
                outputs=not settings.inputs_only,
                folder=settings.out / "fold",
                on_site=on_site,
                **asked,
            )
        notes = {"fold": {"kl_before": found.kl_before, "kl_after": found.kl_after, "tokens": found.tokens}}
        healed = dataclasses.replace(manifest, healing=notes)
        folder = settings.out / "model"
        save_checkpoint(model, healed, folder, TrainingRanks(model), also=tokenizer.save_pretrained)
    show(as_json, found.to_json, lambda _: fold_table(found), [("Checkpoint and manifest", folder)])


def _batches(settings: FoldSettings, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return the batches to fit on, and those to judge each change by."""
    from farskip_compile.healing.texts.loaders import text_batches

    batch = settings.batch_size or BATCH_SIZE
    size: dict[str, Any] = {"sequence_length": settings.sequence_length, "batch_size": batch}
    size["held_out_fraction"] = None if settings.held_out else HELD_OUT_FRACTION
    fitted = -(-(settings.tokens or TOKENS) // settings.sequence_length)
    judged = settings.held_out_sequences or -(-HELD_OUT_TOKENS // settings.sequence_length)
    train = text_batches(settings.data, tokenizer, **size, limit=_whole_batches(fitted, batch))
    held_out = text_batches(
        settings.held_out or settings.data,
        tokenizer,
        **size,
        part="held_out",
        shuffle=False,
        limit=_whole_batches(judged, batch),
    )
    return list(train), list(held_out)


def _whole_batches(sequences: int, batch: int) -> int:
    """Return the least number of sequences that is at least `sequences` and fills whole batches."""
    return -(-sequences // batch) * batch
