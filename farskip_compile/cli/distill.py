# SPDX-License-Identifier: Apache-2.0
"""The command `farskip distill CONFIG`: heal a model under another connectivity, on text.

Contract: exit status 0 if there is a checkpoint, 1 if the model was refused or training could not go on, 2 for wrong
usage. Runs under torchrun, where the first rank alone prints. With `--json`, stdout holds one JSON document and nothing
else.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from farskip_compile.cli.output import AsJson, needs, quiet, show_document, shown_errors


def distill_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; see above.")],
    as_json: AsJson = False,
) -> None:
    """Train a model to compute under FarSkip connectivity what it computes now (self-distillation).

    CONFIG is a TOML file, such as:

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
    needs("farskip distill", extra="distill")
    import torch.distributed as dist

    from farskip_compile.cli.progress import Heartbeat
    from farskip_compile.cli.terminal import Terminal
    from farskip_compile.compiler.ranks.process_group import leaving_process_group
    from farskip_compile.errors import ConfigError
    from farskip_compile.healing.distill import self_distill
    from farskip_compile.healing.distill.job import read_job
    from farskip_compile.text_utils import printable

    quiet("torch")
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
        if first:
            job.tokenizer.save_pretrained(job.config.output / "model")
    if not first:
        return
    folder = job.config.output / "model"
    if as_json:
        losses = {"before": done.before.to_json(), "after": done.after.to_json()}
        numbers = {"best_step": done.best_step, "steps": done.steps, "tokens": done.tokens}
        overlap = asdict(job.overlap) if job.overlap is not None else None
        counts = {"training_text": asdict(job.data.counts), "held_out_text": asdict(job.held_out.counts)}
        data = {**counts, "bytes_per_token": job.bytes_per_token, "overlap": overlap}
        rest = {"stopped_early": done.stopped_early, "checkpoint": str(folder)}
        show_document({**losses, **numbers, **data, **rest})
        return
    table = Table("held-out", "loss", "KL to the original", "same first token", box=None, pad_edge=False)
    for name, found in (("rewired", done.before), ("healed", done.after)):
        kl = f"{found.kl:.4f}" if found.kl is not None else "-"
        top1 = f"{found.top1:.1%}" if found.top1 is not None else "-"
        table.add_row(name, f"{found.loss:.4f}", kl, top1)
    console = Terminal()
    console.print(table)
    early = ", stopped early" if done.stopped_early else ""
    console.print(f"step {done.best_step} of {done.steps}{early}; {done.tokens:,} tokens seen")
    for name, text in (("training text", job.data.counts), ("held-out text", job.held_out.counts)):
        console.print(f"{name}: {text}")
    console.print(str(job.overlap or "held-out and training text were not compared (allow_overlap)"))
    console.print(f"Checkpoint and manifest: {printable(str(folder))}", soft_wrap=True)
