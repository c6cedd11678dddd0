# SPDX-License-Identifier: Apache-2.0
"""What rewiring costs a trained model, and what healing brings back: held-out loss and KL before, between and after.

    python examples/heal_and_evaluate.py --out healed

A small Qwen3-MoE learns Python's own documentation, byte by byte. Then it is rewired, repaired in closed form (the
fold) and trained for some steps to say what the original says. The result is a checkpoint with manifest and guard, as
`farskip heal CHECKPOINT --data ...` writes it for a model of yours. It is judged on text that nothing was chosen by.
"""

import argparse
import copy
import tempfile
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

import farskip_compile
from farskip_compile.healing.distill import self_distill

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--teacher-steps", type=int, default=200, help="of training the original")
parser.add_argument("--steps", type=int, default=40, help="of healing")
parser.add_argument("--out", default=None, help="folder of the checkpoint; a temporary one if left out")
args = parser.parse_args()


def batches(documents: list[str], count: int, seed: int) -> list[torch.Tensor]:
    """`count` batches of 16 x 128 bytes from random places."""
    text = 3 + torch.tensor(list("".join(topics[name] for name in documents).encode()))  # as ByT5's tokenizer has it
    starts = torch.randint(0, len(text) - 128, (count, 16), generator=torch.Generator().manual_seed(seed))
    return [torch.stack([text[start : start + 128] for start in row]) for row in starts.tolist()]


def judged(name: str, model: object, teacher: torch.nn.Module) -> None:
    """Print a line: next-byte loss, KL(original || model) and how often both find the same byte most probable."""
    sums = torch.zeros(3)
    for ids in judging:
        with torch.no_grad():
            p, q = (one(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1) for one in (teacher, model))
        loss = -q.gather(-1, ids[:, 1:, None]).mean()
        sums += torch.stack([loss, (p.exp() * (p - q)).sum(-1).mean(), (p.argmax(-1) == q.argmax(-1)).float().mean()])
    loss, kl, same = sums / len(judging)
    print(f"{name:9}{loss:8.4f}{kl:10.4f}{same:8.1%}", flush=True)


train = [name for number, name in enumerate(sorted(topics)) if number % 8 > 1]
choosing, judging = (batches(sorted(topics)[first::8], 4, seed=first) for first in (0, 1))  # held out, both

torch.manual_seed(0)
sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
layers = {"num_hidden_layers": 3, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2}
model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=259, **sizes, **layers))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for ids in batches(train, args.teacher_steps, seed=2):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
teacher = copy.deepcopy(model).eval()
eager = {"inner": "aot_eager"}  # so small a model runs in less time than Inductor takes to compile it

farskip_compile.prepare(model)
recipe = {"fold": True, "learning_rate": 1e-3, "warm_up_steps": 5, "evaluate_every": 20, "progress": False}
healed = self_distill(model, batches(train, 40, seed=3), held_out=choosing, steps=args.steps, options=eager, **recipe)
folder = healed.save(args.out or tempfile.mkdtemp(prefix="healed-"))
kl = {"rewired": healed.before.kl, "folded": healed.folded.kl, "healed": healed.after.kl}
print("held-out KL, nats per byte:", ", ".join(f"{value:.4f} {name}" for name, value in kl.items()))
ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
print(f"written: {folder}\n\njudged by      loss        KL  same byte")

# On other text, and the healed one from its checkpoint, which is guarded: it runs as its manifest says, or not at all.
unhealed, loaded = copy.deepcopy(teacher), AutoModelForCausalLM.from_pretrained(folder).eval()
judged("original", teacher, teacher)
for name, one in ("rewired", unhealed), ("healed", loaded):
    farskip_compile.prepare(one)
    one.compile(backend="farskip", fullgraph=True, options={"manifest": healed.manifest, **eager})
    judged(name, one, teacher)
