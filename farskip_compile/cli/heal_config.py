# SPDX-License-Identifier: Apache-2.0
"""`farskip heal CONFIG.toml`: heal with all settings in a file, on one rank or under torchrun.

Contract: every rank takes part in training; the first alone prints. The checkpoint is in `output/model`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farskip_compile.cli.output import show, shown_errors

if TYPE_CHECKING:
    from rich.console import Group

    from farskip_compile.healing.distill import Distilled
    from farskip_compile.healing.distill.job import Job


def heal_from_config(config: Path, *, as_json: bool) -> None:
    """Train the model of a TOML file to compute under FarSkip connectivity what it computes now."""
    import torch.distributed as dist

    from farskip_compile.cli.progress import Heartbeat
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.compiler.ranks.process_group import leaving_process_group
    from farskip_compile.errors import ConfigError
    from farskip_compile.healing.distill import self_distill
    from farskip_compile.healing.distill.job import read_job

    ours = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group()
    first = not dist.is_initialized() or dist.get_rank() == 0
    with shown_errors(silent=not first), leaving_process_group() if ours else nullcontext():
        job = read_job(config)
        if job.config.output is None:
            raise ConfigError(f"{config} has no distill.output", way_out='output = "a folder for the checkpoint"')
        with Heartbeat(Terminal(stderr=True, quiet=not first)) as heart:
            heart.begin(f"distilling into {job.config.output}", shown=False)
            done = self_distill(job.model, job.data, job.config, held_out=job.held_out)
        folder = job.config.output / "model"
        if first:
            job.tokenizer.save_pretrained(folder)
    if first:
        show(
            as_json,
            lambda: _document(job, done, folder),
            lambda _: _text(job, done),
            [("Checkpoint and manifest", folder)],
        )


def _document(job: Job, done: Distilled, folder: Path) -> dict[str, Any]:
    return {
        "before": done.before.to_json(),
        "after": done.after.to_json(),
        "best_step": done.best_step,
        "steps": done.steps,
        "tokens": done.tokens,
        "training_text": asdict(job.data.counts),
        "held_out_text": asdict(job.held_out.counts),
        "bytes_per_token": job.bytes_per_token,
        "overlap": asdict(job.overlap) if job.overlap is not None else None,
        "stopped_early": done.stopped_early,
        "checkpoint": str(folder),
    }


def _text(job: Job, done: Distilled) -> Group:
    from rich.console import Group
    from rich.table import Table

    table = Table("held-out", "loss", "KL to the original", "same first token", box=None, pad_edge=False)
    for name, found in (("rewired", done.before), ("healed", done.after)):
        kl = f"{found.kl:.4f}" if found.kl is not None else "-"
        top1 = f"{found.top1:.1%}" if found.top1 is not None else "-"
        table.add_row(name, f"{found.loss:.4f}", kl, top1)
    early = ", stopped early" if done.stopped_early else ""
    return Group(
        table,
        f"step {done.best_step} of {done.steps}{early}; {done.tokens:,} tokens seen",
        f"training text: {job.data.counts}",
        f"held-out text: {job.held_out.counts}",
        str(job.overlap or "held-out and training text were not compared (allow_overlap)"),
    )
