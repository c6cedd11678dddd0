# SPDX-License-Identifier: Apache-2.0
"""Explain and rewire a model of transformers: what it is made of, what changes, and how to see that it ran.

    python examples/rewire_transformers.py

A Qwen3-MoE of four layers with random weights. Yours: `AutoModelForCausalLM.from_pretrained(...)`, the rest stays.
"""

import torch
from rich.console import Console
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import farskip_compile
from farskip_compile.tools.explain.text import explanation

torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=2,
    initializer_range=0.1,
)
model = Qwen3MoeForCausalLM(config).eval()
ids = torch.randint(0, config.vocab_size, (2, 32))
with torch.no_grad():
    as_written = model(ids).logits.log_softmax(-1)
console = Console(highlight=False)

# 1. Some models need help to be captured as one graph. It changes no result, and says what it did.
console.print(str(farskip_compile.prepare(model)), style="dim")

# 2. What it is, and what would change: o marks what a sub-block no longer reads. The model is captured, not run.
found = farskip_compile.explain(model, ids, connectivity="full")
console.print(explanation(found, console))

# 3. Compiled in place, so that `generate` runs rewired, too. Leave "inner" out to compile with Inductor.
model.compile(backend="farskip", fullgraph=True, options={"connectivity": "full", "inner": "aot_eager"})
with torch.no_grad():
    rewired = model(ids).logits.log_softmax(-1)

# 4. What ran, and how far it is from the original: these weights were not trained for it, heal_and_evaluate.py does.
report = farskip_compile.reports().compiles[-1]
print(f"\nThis ran:\n{report.summary()}")
for row, terms in report.left_out.items():
    print(f"  {row} leaves out {', '.join(terms)}")
kl = (as_written.exp() * (as_written - rewired)).sum(-1).mean()
same = (as_written.argmax(-1) == rewired.argmax(-1)).float().mean()
print(f"KL to the original: {kl:.3f} nats per token; the same most probable token: {same:.0%}")
