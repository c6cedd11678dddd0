# SPDX-License-Identifier: Apache-2.0
"""FSDP2 on each layer, activation checkpoints, and layers compiled one by one, as training stacks do it.

    torchrun --nproc-per-node 2 examples/regional_fsdp2.py

A small Qwen3-MoE learns Python's own documentation, byte by byte. Each layer is a graph of its own, and the result of
the routed experts crosses from one graph into the next.
"""

from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import farskip_compile

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)  # the same model on all ranks
config = Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=64,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=2,
    use_cache=False,
)
model = Qwen3MoeForCausalLM(config)
farskip_compile.prepare(model)
model.activation_checkpointing_enable({"use_reentrant": False})  # before transformers 5.24: gradient_checkpointing_...
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)

# In place of torch.compile. Leave "inner" out to compile with Inductor.
layers = farskip_compile.regional(model, "full", inner="aot_eager")

text = torch.tensor(list("".join(topics.values()).encode()))
generator = torch.Generator().manual_seed(1 + rank)  # but tokens of its own on each
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(20):
    starts = torch.randint(0, len(text) - 64, (8,), generator=generator)
    ids = torch.stack([text[start : start + 64] for start in starts])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0 and step in (0, 4, 9, 14, 19):
        print(f"step {step}: loss {loss.item():.3f}")

if rank == 0:
    print(layers.report.summary())  # of the whole model, put together from its layers
    for row, terms in layers.report.left_out.items():
        print(f"  {row} leaves out {', '.join(terms)}")
dist.barrier()
dist.destroy_process_group()
