# SPDX-License-Identifier: Apache-2.0
"""Serve a rewired checkpoint: it loads in a fresh process, generates with its cache, and is held to what it should say.

    python examples/serve.py [CHECKPOINT]

CHECKPOINT is what `farskip heal` or heal_and_evaluate.py wrote; left out, a small Qwen3-MoE with random weights is
converted first. vLLM serves the same folder; it is not needed here, and the commands for it are printed.
"""

import shlex
import subprocess
import sys
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, Qwen3MoeConfig


def convert(folder: str) -> None:
    """Save a model, then the manifest of the form that its weights are for; that guards the folder's config.json."""
    import farskip_compile

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 3, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(vocab_size=259, eos_token_id=None, initializer_range=0.1, **sizes, **layers)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)  # a token for each byte, and three more
    farskip_compile.prepare(model)
    farskip_compile.save_manifest(model, folder, torch.zeros(1, 8, dtype=torch.long), use_cache=False)


def generate(folder: str) -> None:
    """Load the checkpoint, generate with a static cache, and compare with whole sequences, which need no cache."""
    try:
        AutoConfig.from_pretrained(folder)
    except ValueError as error:
        print("without farskip_compile:", str(error).split(" but ")[0])
    import farskip_compile

    model, original = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["The residual stream ", "All ranks must issue"]  # of one length, so that nothing is padded
    prompts = tokenizer(texts, add_special_tokens=False, return_tensors="pt").input_ids
    try:
        model(prompts)
    except farskip_compile.OriginalWiringError as error:
        print("not compiled:", str(error).split(", and")[0])
    farskip_compile.prepare(model)
    model.compile(backend="farskip", fullgraph=True, options={"manifest": folder, "inner": "aot_eager"})
    tokens = model.generate(prompts, max_new_tokens=16, do_sample=False, cache_implementation="static")
    for report in farskip_compile.reports().compiles:  # of the prompts, and of all single tokens after them
        print(report.summary())
    print(*map(repr, tokenizer.batch_decode(tokens)), sep="\n")
    farskip_compile.unguard(original)  # to see that the two can be told apart
    for name, one in ("rewired", model), ("as written", original):
        with torch.no_grad():
            choice = one(tokens[:, :-1], use_cache=False).logits[:, prompts.shape[1] - 1 :].argmax(-1)
        same = (choice == tokens[:, prompts.shape[1] :]).sum().item()
        print(f"generated tokens that the model chooses without a cache, {name}: {same} of {choice.numel()}")


if sys.argv[1:2] == ["--generate"]:
    generate(sys.argv[2])
else:
    folder = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="farskip-serve-")
    if not sys.argv[1:]:
        convert(folder)
    subprocess.run([sys.executable, __file__, "--generate", folder], check=True)  # nothing is left of this process
    print(f"\nvllm serve {shlex.quote(folder)}\nfarskip check serving {shlex.quote(folder)}")
