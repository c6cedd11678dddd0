# SPDX-License-Identifier: Apache-2.0
"""`python -m farskip_compile.vllm.generate REQUEST ANSWERS`: what vLLM answers, in a process that ends with it.

In:    a JSON file: keyword arguments of `vllm.LLM`, prompts (ids of tokens), how many tokens to add.
Out:   a JSON file: for each prompt the tokens that were chosen, each the most likely one, and their log-probabilities.
Never: reads a prompt's text, so that no tokenizer stands between the two that are compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answers(request: dict[str, Any]) -> list[dict[str, Any]]:
    """See the module's contract."""
    from vllm import LLM, SamplingParams

    engine = LLM(**request["engine"])
    greedy = SamplingParams(temperature=0, max_tokens=request["tokens"], logprobs=0, ignore_eos=True)
    given = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    found = []
    for prompt, done in zip(request["prompts"], engine.generate(given, greedy, use_tqdm=False), strict=True):
        chosen = list(done.outputs[0].token_ids)
        scores = [step[token].logprob for step, token in zip(done.outputs[0].logprobs, chosen, strict=True)]
        found.append({"prompt": prompt, "tokens": chosen, "logprobs": scores})
    return found


if __name__ == "__main__":
    request, place = Path(sys.argv[1]), Path(sys.argv[2])
    place.write_text(json.dumps(answers(json.loads(request.read_text()))))
