# SPDX-License-Identifier: Apache-2.0
"""Train with expert parallelism on two ranks, and read off the profile how much communication was exposed.

    torchrun --nproc-per-node 2 examples/train_two_ranks.py

The same model twice, on Python's own documentation, byte by byte: by plain `torch.compile`, and rewired. Between two
processes of one machine a network is a copy in memory, so the times show where to look, not what is gained. On a
cluster: `cuda`, "nccl", and a model of yours. Most of the time goes to Inductor's C++ compiler.
"""

import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import farskip_compile
from farskip_compile.measure.profiling import OverlapReport, kernels_visible, overlap, read_trace, record
from farskip_compile.measure.profiling.text import headline, report_text
from farskip_compile.models import ParallelConfig, build

STEPS = 8
dist.init_process_group("gloo")
text = torch.tensor(list("".join(topics.values()).encode()))
rank, ranks = dist.get_rank(), dist.get_world_size()
console = Console(highlight=False, quiet=rank != 0)  # the first rank speaks for all
folder = [tempfile.mkdtemp(prefix="farskip-traces-") if rank == 0 else ""]
dist.broadcast_object_list(folder)


def train(name: str, **how: Any) -> OverlapReport:
    """Train a new model, compiled by `torch.compile(model, **how)`, and profile one step more on all ranks."""
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="padded")  # each rank has half of the experts
    sizes = {"vocab_size": 256, "hidden_size": 128, "moe_intermediate_size": 128}
    model = build("mixtral", layers=("moe", "moe"), parallel=parallel, **sizes)
    compiled = torch.compile(model, fullgraph=True, **how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(rank)  # and text of its own
    losses: list[float] = []

    def forward_and_backward() -> None:
        starts = torch.randint(0, len(text) - 128, (4,), generator=generator)
        ids = torch.stack([text[start : start + 128] for start in starts])
        logits = compiled(ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())

    with kernels_visible():  # a profile shows a CPU's fused kernels only if they were compiled for it
        for _ in range(STEPS):
            forward_and_backward()
            for parameter_name, parameter in model.named_parameters():
                if ".experts." not in parameter_name:
                    dist.all_reduce(parameter.grad)  # all else is the same on all ranks
                parameter.grad /= ranks
            optimizer.step()
            optimizer.zero_grad()
    path = f"{folder[0]}/{name}{{rank}}.json"
    record(forward_and_backward, path=path, warmup=0)
    dist.barrier()  # all traces are written
    console.print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f} after {STEPS} steps")
    return overlap([read_trace(Path(path.format(rank=one))) for one in range(ranks)])


plain = train("plain")
rewired = train("rewired", backend="farskip", options={"memory_increase": 1.0})
console.print(f"{farskip_compile.reports().compiles[-1].summary()}\n")
console.print("plain:", headline(plain), "\nrewired:", report_text(rewired, console), sep="\n")
console.print(f"\nfarskip overlap {folder[0]}/rewired*.json\nshows this again; ui.perfetto.dev draws the files")
dist.barrier()
dist.destroy_process_group()
