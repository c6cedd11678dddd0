# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a training step under FSDP2 with a shard group for each layer: ours against plain Inductor by layer.

In:    forms, and whether layers are checkpointed.
Out:   a `Sharded` for each: plain data.
Never: times anything: the ranks talk over the loopback interface.

Algorithm: two ranks build a DeepSeek-V3 style model with its experts spread over them, compile its layers one by one,
and shard each, but for the experts, with `fully_shard`. After a step that compiles, the profiler records what one
step allocates and frees (`overlap_bench.profiled.peak_memory`): the most bytes that it holds over what was there
before. The larger figure of both ranks counts; what was there before are the parameters' shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from harness import Network

PLAIN, NONE, FULL = "plain, by layer", "none, by layer", "full, by layer"
FORMS = (PLAIN, NONE, FULL)
RANKS = 2
SIZES: dict[str, Any] = {
    "layers": ("dense", *["moe"] * 7),
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "experts": 8,
}
TOKENS = (2, 256)
TIMEOUT = 1200.0
QUIET = {"KINETO_LOG_LEVEL": "99"}
"""The profiler's own log."""


@dataclass(frozen=True)
class Sharded:
    """One form, with or without checkpoints."""

    form: str
    checkpointed: bool
    """Full activation checkpointing of each layer."""
    parameters: int
    """Bytes of the shards, and of a rank's own experts."""
    peak: int
    """Bytes that a step holds over them, gradients among them."""

    @property
    def key(self) -> tuple[str, bool]:
        """What it is a measurement of."""
        return self.form, self.checkpointed

    @property
    def held(self) -> int:
        """Both."""
        return self.parameters + self.peak


def tasks() -> list[tuple[str, bool]]:
    """Keys of what is to be measured."""
    return [(form, checkpointed) for checkpointed in (False, True) for form in FORMS]


def measure(wanted: Iterable[tuple[str, bool]]) -> Iterator[Sharded]:
    """One after another, each in fresh processes."""
    for key in wanted:
        with Network(RANKS, None) as network:
            found = [
                one.value
                for one in network.run(step_on_rank, lambda rank, key=key: (rank, *key), env=QUIET, timeout=TIMEOUT)
            ]
        parameters, peaks = zip(*found, strict=True)
        yield Sharded(*key, parameters=max(parameters), peak=max(peaks))


def step_on_rank(rank: int, form: str, checkpointed: bool) -> tuple[int, int]:
    """Bytes of parameters, and the peak over them."""
    import torch.distributed as dist

    from farskip_compile.compiler.ranks.process_group import leaving_process_group

    dist.init_process_group("gloo")
    with leaving_process_group():
        return _measured(rank, form, checkpointed)


def _measured(rank: int, form: str, checkpointed: bool) -> tuple[int, int]:
    import torch
    import torch.distributed as dist
    from overlap_bench.profiled import peak_memory
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import farskip_compile
    from farskip_compile.models import ParallelConfig, build

    torch.set_num_threads(1)
    parallel = ParallelConfig(ep_group=dist.group.WORLD, capacity_factor=1.25)
    model: Any = build("deepseek_v3", parallel=parallel, **SIZES)
    experts = {one for name, one in model.named_parameters() if ".experts" in name}
    if checkpointed:
        for number, layer in enumerate(model.layers):
            model.layers[number] = checkpoint_wrapper(layer)
    if form == PLAIN:
        for layer in model.layers:
            layer.compile(backend="inductor", fullgraph=True)
    else:
        farskip_compile.regional(model, form.partition(",")[0])
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in (*model.layers, model):
        fully_shard(layer, mesh=mesh, ignored_params=experts)
    ids = torch.randint(0, SIZES["vocab_size"], TOKENS, generator=torch.Generator().manual_seed(rank))

    def step() -> None:
        logits = model(ids)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        model.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    held = sum(getattr(one, "_local_tensor", one).nbytes for one in model.parameters())
    return held, peak_memory(step)
