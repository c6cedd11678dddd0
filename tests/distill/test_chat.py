# SPDX-License-Identifier: Apache-2.0
"""Which tokens of conversations and completions are targets; the oracle is the text that they decode to."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from farskip_compile import ConfigError
from farskip_compile.healing.texts.chat import check_tokenizer, completion, conversation, rendered
from tests.distill.text_common import FORGETFUL, LATE, MARKED, PLAIN, chat_line, tokenizer

TURNS = ("What is 東京?", "A city 🎉.", "Thanks", "You are welcome")


def targets(made, ids, is_target) -> str:
    assert len(ids) == len(is_target)
    return made.decode([one for one, wanted in zip(ids, is_target, strict=True) if wanted])


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_only_what_the_assistant_says(template, system):
    made, line = tokenizer(template), chat_line(*TURNS, system=system)
    ids, is_target = conversation(made, line, "here", "assistant")
    whole = made.apply_chat_template(line["messages"], tokenize=False)
    assert made.decode(ids) == whole == rendered(made, line, "here")
    assert targets(made, ids, is_target) == "A city 🎉.</s>\nYou are welcome</s>\n"
    ids, is_target = conversation(made, line, "here", "all")
    assert targets(made, ids, is_target) == whole


def test_turns_that_are_alike_are_told_apart():
    made = tokenizer(PLAIN)
    line = chat_line("same", "same", "same", "same")
    ids, is_target = conversation(made, line, "here", "assistant")
    text = "".join(f"<s>{role}\n{'same'}</s>\n" for role in ("user", "assistant") * 2)
    assert made.decode(ids) == text
    spans = "".join("x" if wanted else "." for wanted in is_target)
    said = made("same</s>\n", add_special_tokens=False)["input_ids"]
    assert spans.count("x") == 2 * len(said)
    assert spans.endswith("x")
    assert spans.index("x") == len(made("<s>user\nsame</s>\n<s>assistant\n", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        (
            FORGETFUL,
            chat_line("a", "thought/b", "c", "d"),
            "those through message 1: the chat template writes it in another way",
        ),
        (LATE, chat_line("a", "b"), "through message 1 do not begin with those of what comes before it and its header"),
        (PLAIN, {"messages": [{"role": "assistant", "content": "Hello"}]}, "the assistant speaks first"),
        ("{{ raise_exception('roles') }}", chat_line("a", "b"), "the chat template refuses the messages"),
        ("{{ messages[5].content + 1 }}", chat_line("a", "b"), "the chat template refuses the messages"),
    ],
)
def test_what_a_template_does_not_show_is_refused(template, line, words):
    with pytest.raises(ConfigError, match=words) as error:
        conversation(tokenizer(template), line, "file.jsonl, line 7", "assistant")
    assert error.value.reason.startswith("file.jsonl, line 7: ")
    assert error.value.way_out


def test_a_turn_whose_first_token_holds_a_part_of_the_header_is_refused():
    """A byte-level tokenizer joins line feeds; a template with marks knows which characters are the assistant's."""
    line = chat_line("a", "\n\nb")
    with pytest.raises(ConfigError, match="and its header"):
        conversation(tokenizer(PLAIN), line, "here", "assistant")
    made = tokenizer(MARKED)
    assert targets(made, *conversation(made, line, "here", "assistant")).endswith("\n\nb</s>\n")


def test_a_template_that_forgets_is_taken_where_it_forgets_nothing():
    made = tokenizer(FORGETFUL)
    ids, is_target = conversation(made, chat_line("a", "b", "c", "thought/d"), "here", "assistant")
    assert targets(made, ids, is_target) == "b</s>\nthought/d</s>\n"


@pytest.mark.parametrize(
    ("prompt", "answer"), [("Q: 2+2? A:", " 4 東"), ("Ends in a space: ", "the rest"), ("", "all"), ("nothing:", "")]
)
def test_completions(prompt, answer):
    made = tokenizer()
    ids, is_target = completion(made, {"prompt": prompt, "completion": answer}, "assistant")
    assert made.decode(ids) == prompt + answer + "<end>"
    said = targets(made, ids, is_target)
    extra = " " if prompt.endswith(" ") else ""  # one token holds the space and "the": it is a part of the completion
    assert said == extra + answer + "<end>"
    assert all(completion(made, {"prompt": prompt, "completion": answer}, "all")[1])


def test_what_a_tokenizer_must_say():
    with pytest.raises(ConfigError, match="no chat template"):
        check_tokenizer(tokenizer(), "chat", "all")

    class Slow:
        is_fast = False
        chat_template = MARKED

        def get_chat_template(self, tools):
            return MARKED

    with pytest.raises(ConfigError, match="which characters a token holds"):
        check_tokenizer(Slow(), "pairs", "assistant")
    with pytest.raises(ConfigError, match="which tokens hold them"):
        conversation(Slow(), chat_line("a", "b"), "here", "assistant")
    check_tokenizer(Slow(), "pairs", "all")
    check_tokenizer(tokenizer(PLAIN), "chat", "assistant")


def test_a_conversation_whose_targets_would_take_too_long_is_refused_at_once():
    """Time that grows with the square of a line's length; a template with marks is applied once."""
    line = chat_line(*("x" * 8000,) * 200)
    with pytest.raises(ConfigError, match=r"200 messages of 1,600,000 characters\. .* 160,800,000 characters") as error:
        conversation(tokenizer(PLAIN), line, "file.jsonl, line 7", "assistant")
    assert "{% generation %}" in error.value.way_out
    assert targets(tokenizer(MARKED), *conversation(tokenizer(MARKED), line, "here", "assistant")).count("</s>") == 100
