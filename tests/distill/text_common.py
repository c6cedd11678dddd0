"""A byte-level tokenizer, chat templates and JSON Lines, for tests of text as data."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.prose import PROSE

TEXT = PROSE
PLAIN = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}</s>\n{% endgeneration %}{% else %}{{ m.content }}</s>\n{% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
"""Marks everything, the first token too."""
FORGETFUL = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content if loop.last else m.content.split('/')[-1] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""Leaves out of earlier turns what comes before a slash, as others leave out what was thought."""
LATE = PLAIN.replace("<s>assistant\n", "<s>assistant\n\n")
"""The header that asks for a turn is not the one that turns have."""


def tokenizer(template: str | None = None, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level, trained on `TEXT`; `<end>` ends text, `<s>` and `</s>` are special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<end>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator([TEXT, "\n\n\nb" * 200], trainer)  # line feeds are joined
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", additional_special_tokens=["<s>", "</s>"])
    fast.chat_template = template
    return fast


def chat_line(*turns: str, system: str | None = None, **more: object) -> dict[str, object]:
    """A conversation: the user's turn and the assistant's by turns."""
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return {"messages": first + [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)], **more}


def write_lines(path: Path, *lines: object) -> Path:
    """JSON Lines; a string is written as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
