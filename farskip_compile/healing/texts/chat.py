# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a conversation, or of a prompt with its completion, are targets.

In:    a tokenizer of `transformers`; the messages of a conversation, or a prompt and a completion.
Out:   token ids, and for each of them whether it is a target.
Never: guesses where the assistant's turn begins or ends; makes the first token a target: nothing comes before it.

A conversation is what the tokenizer's chat template makes of it; nothing is appended, since templates end turns
themselves. Steps:
1. A template with `{% generation %}` marks what the assistant says; `transformers` gives the mask.
2. Any other is applied to the messages before an assistant's turn, with the header of that turn (the generation
   prompt), to the messages through it, and to all. Each must begin with the tokens of the one before; then the tokens
   that the turn adds after the header are its targets, with the mark that ends it. A template that writes earlier
   turns in another way than the last one is refused: some leave out what was thought, or add an empty thought.
   The beginning is tokenized again for each turn, which grows with the square of the length: a conversation for which
   that is more than `MOST_TOKENIZED` characters is refused before it begins.

A completion follows its prompt directly, and both are tokenized together. Tokens that hold a character of the
completion are targets, and so is the end-of-text token after it, if the tokenizer has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from farskip_compile.errors import ConfigError

GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
ALL = 'loss_on = "all"'
MOST_TOKENIZED = 2**26
"""Characters, about half a minute: a hundred messages of a megabyte in all, or a thousand of a hundred kilobytes."""


def check_tokenizer(tokenizer: Any, kind: str, loss_on: str) -> None:
    """A `ConfigError` if `tokenizer` can't say what is needed of documents of this kind."""
    if kind == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "the tokenizer has no chat template",
            way_out="chat_template = a file, or tokenizer = a folder with one, such as the instruct model's",
        )
    if kind == "pairs" and loss_on == "assistant" and not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            "the tokenizer does not say which characters a token holds",
            way_out=f"a tokenizer of the library tokenizers (tokenizer.json), or {ALL}",
        )


def rendered(tokenizer: Any, chat: Mapping[str, Any], where: str) -> str:
    """The text of a conversation: `messages` and perhaps `tools`."""
    return str(_apply(tokenizer, chat["messages"], chat.get("tools"), where, tokenize=False))


def conversation(tokenizer: Any, chat: Mapping[str, Any], where: str, loss_on: str) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which are targets: what the assistant says, or (`loss_on="all"`) all.

    Raises:
        ConfigError: the template refuses the messages, or does not show which tokens are the assistant's. The error
            names `where`.
    """
    messages, tools = chat["messages"], chat.get("tools")
    if loss_on == "all":
        ids = _apply(tokenizer, messages, tools, where)["input_ids"]
        return ids, [True] * len(ids)
    if GENERATION.search(tokenizer.get_chat_template(tools=tools)):
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"{where}: the chat template marks characters, and the tokenizer does not say which tokens hold them",
                way_out=f"a tokenizer of the library tokenizers (tokenizer.json), or {ALL}",
            )
        found = _apply(tokenizer, messages, tools, where, return_assistant_tokens_mask=True)
        return found["input_ids"], [bool(one) for one in found["assistant_masks"]]
    _check_work(messages, where)
    ids = _apply(tokenizer, messages, tools, where)["input_ids"]
    is_target = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if number == 0:
            raise ConfigError(
                f"{where}: the assistant speaks first, and the chat template does not mark what it says",
                way_out=f"a message before it, chat_template = a file with {{% generation %}}, or {ALL}",
            )
        before = _apply(tokenizer, messages[:number], tools, where, add_generation_prompt=True)["input_ids"]
        through = _apply(tokenizer, messages[: number + 1], tools, where)["input_ids"]
        if through[: len(before)] != before or ids[: len(through)] != through:
            reason = (
                f"the tokens through message {number} do not begin with those of what comes before it and its header"
                if through[: len(before)] != before
                else f"the tokens of all messages do not begin with those through message {number}: the chat template "
                "writes it in another way if messages follow"
            )
            raise ConfigError(
                f"{where}: {reason}, so it is not known which are the assistant's",
                way_out=f"chat_template = a file with {{% generation %}} around what the assistant says, or {ALL}",
            )
        is_target[len(before) : len(through)] = [True] * (len(through) - len(before))
    return ids, is_target


def _check_work(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    """A `ConfigError` if finding the targets would take too long."""
    length = work = 0
    for message in messages:
        before, length = (
            length,
            length + len(str(message.get("content") or "")) + len(str(message.get("tool_calls", ""))),
        )
        if message["role"] == "assistant":
            work += before + length
    if work > MOST_TOKENIZED:
        raise ConfigError(
            f"{where}: {len(messages)} messages of {length:,} characters. To find what the assistant says, the chat "
            f"template would be applied to the beginning before each turn: {work:,} characters, and {MOST_TOKENIZED:,} "
            "is the limit",
            way_out="shorter conversations, or chat_template = a file with {% generation %} around what the assistant "
            f"says, which is applied once, or {ALL}",
        )


def completion(tokenizer: Any, pair: Mapping[str, str], loss_on: str) -> tuple[list[int], list[bool]]:
    """Token ids of prompt and completion, and which are targets: the completion's, or (`loss_on="all"`) all."""
    text = pair["prompt"] + pair["completion"]
    masked = loss_on != "all"
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=masked)
    ids = list(found["input_ids"])
    is_target = [end > len(pair["prompt"]) for _, end in found["offset_mapping"]] if masked else [True] * len(ids)
    if (end := getattr(tokenizer, "eos_token_id", None)) is not None:
        ids, is_target = [*ids, end], [*is_target, True]
    return ids, is_target


def _apply(tokenizer: Any, messages: Sequence[Any], tools: Any, where: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), tools=tools, **{"return_dict": True, **options})
    except Exception as error:  # a template is a program: it may raise whatever it wants
        raise ConfigError(
            f"{where}: the chat template refuses the messages: {type(error).__name__}: {error}",
            way_out="roles and contents that the template takes",
        ) from error
