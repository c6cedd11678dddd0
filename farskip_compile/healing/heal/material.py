# SPDX-License-Identifier: Apache-2.0
"""The model and the text of a healing.

In:    `HealSettings`.
Out:   `Material`: the model, ready for capture, on its device; its tokenizer; training text; held-out sequences in two
       halves: by the first, rows and weights are chosen; the second judges, and nothing is chosen by it.
Never: text in two of the three parts: held-out text that is in the training text is refused (`contamination`), unless
       that is allowed. Writes anything but the caches of `datasets`.

The held-out sequences are in the order of their documents. Both halves, the first and the second, are thinned out
evenly where there are more than asked for; so at most one document is in both of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.identity import bytes_of, checksum
from farskip_compile.healing.distill.source import model_of, tokenizer_of, whole_model
from farskip_compile.healing.heal.settings import LEAST_HELD_OUT, HealSettings
from farskip_compile.healing.texts.contamination import TextOverlap, find_overlap
from farskip_compile.healing.texts.loaders import TextBatches, text_batches
from farskip_compile.manifest.files import CONFIG
from farskip_compile.manifest.guarded import is_guarded


@dataclass(frozen=True)
class Half:
    """Held-out sequences."""

    batches: tuple[Any, ...]
    """As `self_distill` takes them: token ids [B, T], or mappings of `input_ids` and `labels`."""
    sequences: int
    targets: int
    bytes: int | None
    """Of the text that the targets stand for; None: not known."""

    @property
    def bytes_per_token(self) -> float | None:
        """Bits per byte = nats per target / ln 2 / this."""
        return self.bytes / self.targets if self.bytes else None


@dataclass(frozen=True)
class Material:
    """See the module."""

    model: nn.Module
    tokenizer: Any
    train: TextBatches
    choosing: Half
    judging: Half
    held_out_documents: int
    overlap: TextOverlap | None
    """None: not compared."""
    model_digest: str
    text_digest: str
    """Of all that is trained on and judged by."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def call(self) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """An example call of the model."""
        ids = _ids(self.choosing.batches[0]).to(self.device)
        return (ids,), {"use_cache": False}


def device_of(settings: HealSettings) -> torch.device:
    """Where the model runs.

    Raises:
        ConfigError: there is no such device.
    """
    if settings.device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"there is no device {settings.device}: {reason}", way_out="cpu, cuda, cuda:1") from error
    return device


def check_checkpoint(folder: Path) -> None:
    """A `ConfigError` if `folder` is not the checkpoint of an original model of transformers."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} has no {CONFIG}", way_out="a folder from save_pretrained")
    try:
        text = (folder / CONFIG).read_text()
        guarded = is_guarded(text)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"can't read {folder / CONFIG}: {error}", way_out="a folder from save_pretrained") from error
    if guarded:
        raise ConfigError(f"{folder} is a healed checkpoint already", way_out="the checkpoint of the original model")


def plain_model(settings: HealSettings) -> Any:
    """The model as it is written, as transformers loads it, on its device."""
    found = whole_model(settings.checkpoint)
    return found.to(getattr(torch, settings.dtype)).to(device_of(settings))


def load_material(settings: HealSettings) -> Material:
    """Read all of it.

    Raises:
        ConfigError: a file, the model or a package is missing; a text is too short, or held-out text is trained on.
    """
    check_checkpoint(settings.checkpoint)
    tokenizer = tokenizer_of(str(settings.checkpoint.resolve()), Path())
    common: dict[str, Any] = {
        "sequence_length": settings.sequence_length,
        "format": settings.format,
        "text_field": settings.text_field,
        "loss_on": settings.loss_on,
        "held_out_fraction": settings.fraction,
    }
    train = text_batches(settings.data, tokenizer, batch_size=settings.batch_size, **common)
    held_out = text_batches(
        settings.held_out or settings.data,
        tokenizer,
        batch_size=1,
        shuffle=False,
        count_bytes=True,
        part="held_out",
        **common,
    )
    overlap = None
    if not settings.allow_overlap:
        overlap = find_overlap(train, held_out, tokenizer)
        try:
            overlap.check()
        except ConfigError as error:
            raise ConfigError(
                error.reason,
                way_out="remove it from one of them; --held-out-fraction instead of --held-out; or --allow-overlap",
            ) from None
    choosing, judging = halves(held_out, settings.held_out_sequences, settings.batch_size)
    model = model_of(str(settings.checkpoint.resolve()), Path(), settings.dtype).to(device_of(settings))
    text = _digest(train, choosing, judging)
    return Material(
        model, tokenizer, train, choosing, judging, held_out.counts.documents, overlap, checksum(model), text
    )


def halves(held_out: TextBatches, most: int, batch_size: int) -> tuple[Half, Half]:
    """Both halves of the held-out sequences, `most` sequences together.

    Raises:
        ConfigError: there are too few.
    """
    count, least = len(held_out.used), max(LEAST_HELD_OUT, 2 * batch_size)
    if count < least:
        raise ConfigError(
            f"the held-out text has {count} sequences of {held_out.sequence_length} tokens, and both halves together "
            f"need {least}",
            way_out="more held-out text (--held-out, --held-out-fraction), or a smaller --sequence-length",
        )
    found = []
    for first, last in ((0, count // 2), (count // 2, count)):
        size = max(min(most // 2, last - first) // batch_size, 1) * batch_size
        found.append(_half(held_out, [first + at * (last - first) // size for at in range(size)], batch_size))
    return found[0], found[1]


def _half(held_out: TextBatches, chosen: list[int], batch: int) -> Half:
    data: Any = held_out.dataset
    rows: Mapping[str, torch.Tensor] = data[chosen]
    numbers = data.with_format("numpy", columns=["targets", "bytes"])[chosen]
    parts = {name: value.split(batch) for name, value in rows.items()}
    batches = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    plain = tuple(one if "labels" in one else one["input_ids"] for one in batches)
    size = int(numbers["bytes"].sum()) if held_out.counts.bytes is not None else None
    return Half(plain, len(chosen), int(numbers["targets"].sum()), size)


def _digest(train: TextBatches, *held_out: Half) -> str:
    """The documents by their hashes, in order; how they are cut and masked; all held-out tokens."""
    digest = hashlib.sha256()
    for rows in train.tokens.select_columns(["digest"]).iter(1000):
        digest.update("".join(rows["digest"]).encode())
    counts = [train.sequence_length, train.batch_size, train.counts.sequences, train.counts.targets]
    digest.update(json.dumps(counts).encode())
    first: Mapping[str, torch.Tensor] = train.dataset[0]
    for one in (first, *(batch for half in held_out for batch in half.batches)):
        for value in one.values() if isinstance(one, Mapping) else [one]:
            digest.update(bytes_of(value))
    return digest.hexdigest()


def _ids(batch: Any) -> torch.Tensor:
    found: torch.Tensor = batch["input_ids"] if isinstance(batch, Mapping) else batch
    return found
