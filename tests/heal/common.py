"""A checkpoint, its tokenizer and text for `farskip heal`, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.prose import PROSE

TEXT = PROSE.encode("ascii", "ignore").decode()
LENGTH, JUDGED = 16, 8
"""Tokens of a sequence; sequences of each half of the held-out text."""
OPTIONS: dict[str, Any] = {
    "sequence_length": LENGTH,
    "held_out_sequences": 2 * JUDGED,
    "tokens": 600,
    "learning_rate": 2e-3,
    "inner": "eager",
}


def make_checkpoint(folder: Path, model: Any) -> None:
    """`checkpoint`, `train.txt` and `held.txt` in `folder`; the model says something definite, and is not trained."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    (folder / "train.txt").write_text(TEXT[:-3000])
    (folder / "held.txt").write_text(TEXT[-3000:])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=model.config.vocab_size, special_tokens=["<end>"])
    tokenizer.train([str(folder / "train.txt")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder / "checkpoint")
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2.5 if value.dim() > 1 else 1.0)
    model.save_pretrained(folder / "checkpoint")


def tiny_qwen3_moe() -> Any:
    """Two layers without shared experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(config).eval()


def judged_sequences(folder: Path) -> torch.Tensor:
    """Token ids [JUDGED, LENGTH] of the second half of the held-out text, thinned out evenly: by hand."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    ids = [*tokenizer((folder / "held.txt").read_text())["input_ids"], tokenizer.eos_token_id]
    whole = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    half = whole[len(whole) // 2 :]
    return half[[at * len(half) // JUDGED for at in range(JUDGED)]]
