# SPDX-License-Identifier: Apache-2.0
"""Losses in chunks where parameters are spread over ranks: gradients are those of whole logits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.losses import next_token_loss
from tests.compare import relative_difference
from tests.distill.common import VOCABULARY, batches, small
from tests.distributed.ranks import run_ranks

DATA = batches(2)
ROWS = 3 * VOCABULARY * 8


def averaged(batch):
    """Means over the ranks of the gradients of whole logits."""
    model = small(layers=("moe",))
    next_token_loss(model(batch.inputs["input_ids"]), batch.targets).backward()
    for value in model.parameters():
        dist.all_reduce(value.grad)
        value.grad /= 2
    return {name: value.grad for name, value in model.named_parameters()}


def sharded(how):
    model, mesh = small(layers=("moe",)), init_device_mesh("cpu", (2,))
    if how == "head":  # computed from parts by hand: the module takes only whole ones
        model.lm_head = Gathering(distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)]))
        return model, model
    fully_shard(model, mesh=mesh)
    if how == "eager":
        return model, model
    return model, torch.compile(
        model, backend="farskip", fullgraph=True, options={"inner": "eager", "connectivity": "none"}
    )


class Gathering(nn.Module):
    """A head whose weight is spread over the ranks."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        weight = self.weight
        return x @ (weight.full_tensor() if isinstance(weight, DTensor) else weight).T


def on_rank(rank, world_size):
    batch = as_batch(DATA[rank][: 2 - rank], torch.device("cpu"))  # so that ranks have different numbers of chunks
    expected, found = averaged(batch), {}
    for how in ("head", "eager", "compiled"):
        torch.compiler.reset()
        model, called = sharded(how)
        asking = Asking(model, batch)
        answer = asking.of(called)(batch)
        assert answer.hidden is not None, asking.reason
        loss = next_token_loss(answer.said, batch.targets, ROWS) + answer.tie()
        loss.backward()
        grads = {name: value.grad for name, value in model.named_parameters()}
        if how == "head":
            grads = {"lm_head.weight": grads["lm_head.weight"]}
        whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
        found[how] = (
            max(relative_difference(whole[name], expected[name]) for name in whole),
            isinstance(grads["lm_head.weight"], DTensor),
        )
    return found


def test_parameters_in_parts():
    for found in run_ranks(on_rank, 2, timeout=300):
        for how, (apart, is_spread) in found.items():
            assert apart < 1e-9, (how, found)
            assert is_spread
