"""The tokenizer stand-in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute_lab.simulator import tokenizer

SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": "What is a pod? Tell me in three words."}


def test_about_four_bytes_a_token() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 100
    assert tokenizer.token_count(tokenizer.encode_text(text)) == pytest.approx(len(text) / 4, rel=0.01)


@given(st.integers(0, 2**64 - 1), st.integers(1, 60), st.text())
def test_the_next_turn_has_the_tokens_that_were_generated(seed: int, tokens: int, question: str) -> None:
    answer = tokenizer.generate(seed, tokens)
    prompt = tokenizer.encode_chat([SYSTEM, USER])
    following = [SYSTEM, USER, {"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    generated = prompt + tokenizer.encode_text(answer)
    assert tokenizer.token_count(generated) == tokenizer.token_count(prompt) + tokens
    assert tokenizer.encode_chat(following).startswith(generated)


def test_answers_can_be_cut_and_put_together_by_tokens() -> None:
    answer = tokenizer.generate(5, 20)
    assert answer.isascii()
    assert answer == answer.strip()
    assert len(answer) == 20 * tokenizer.TOKEN_BYTES
    assert answer == tokenizer.generate(5, 20)
    assert answer != tokenizer.generate(6, 20)


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "system", "content": "You are verbose."}, USER]},
        {"messages": [SYSTEM, {"role": "assistant", "content": USER["content"]}]},
        {"messages": [USER]},
        {"messages": [SYSTEM, USER], "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [SYSTEM, USER], "template_arguments": {"enable_thinking": False}},
        {"messages": [SYSTEM, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [SYSTEM, {**USER, "tool_calls": [{"id": "1"}]}]},
        {"messages": [SYSTEM, {**USER, "role": "tool"}]},
    ],
)
def test_what_the_template_renders_makes_a_difference(other: dict[str, list[object]]) -> None:
    assert tokenizer.encode_chat(**other) != tokenizer.encode_chat([SYSTEM, USER])  # type: ignore[arg-type]


def test_text_in_parts_is_text() -> None:
    parts = [{"type": "text", "text": USER["content"]}]
    assert tokenizer.encode_chat([SYSTEM, {"role": "user", "content": parts}]) == tokenizer.encode_chat([SYSTEM, USER])


def test_an_image_costs_tokens() -> None:
    def with_image(url: str) -> bytes:
        return tokenizer.encode_chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])

    assert with_image("a") == with_image("a") != with_image("b")
    assert tokenizer.token_count(with_image("a")) > 256


def test_wire_ids_are_within_the_vocabulary() -> None:
    ids = tokenizer.token_ids(tokenizer.encode_chat([SYSTEM, USER]))
    assert all(0 <= value < tokenizer.VOCABULARY for value in ids)
    with pytest.raises(OverflowError):
        tokenizer.encode_ids([-1])
