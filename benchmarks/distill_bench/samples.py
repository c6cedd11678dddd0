"""How a model goes on from a prompt, for a person to read.

In:    a model, its configuration, and the text.
Out:   for each prompt the most probable continuation, token by token, with a cache, by `model.generate`.
Never: changes a weight. The model stays compiled: this is the last use of it.
"""

from __future__ import annotations

from typing import Any

import torch

from distill_bench.text_data import TextData
from farskip_compile.backend import backend
from farskip_compile.config import FarSkipConfig

PROMPTS = 3
PROMPT_TOKENS = 24


def continue_prompts(model: Any, config: FarSkipConfig, data: TextData, new_tokens: int) -> list[tuple[str, str]]:
    """Prompts, the beginnings of held-out sequences, and how the model goes on from them."""
    ids = torch.cat(data.judged_by["held_out"])
    ids = ids[:: max(1, len(ids) // PROMPTS)][:PROMPTS, :PROMPT_TOKENS]
    torch.compiler.reset()
    model.eval()
    model.compile(backend=backend(config), fullgraph=True)
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=data.tokenizer.eos_token_id,
            eos_token_id=None,
        )
    decode = data.tokenizer.decode
    return [(decode(row[: ids.shape[1]]), decode(row[ids.shape[1] :])) for row in found]
