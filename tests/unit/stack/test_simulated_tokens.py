"""The simulated tokenizer: reversible, and stable under appending."""

from hypothesis import given
from hypothesis import strategies as st

from tierline.stack.simulated_engine import tokens

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(TEXT)
def test_text_survives_the_way_to_tokens_and_back(text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text


@given(TEXT, TEXT)
def test_a_prefix_of_the_text_is_a_prefix_of_the_tokens(head: str, tail: str) -> None:
    whole_tokens = len(head.encode()) // 4
    assert tokens.encode(head + tail)[:whole_tokens] == tokens.encode(head)[:whole_tokens]


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), TEXT), min_size=1, max_size=4), st.integers(1, 9))
def test_the_next_turn_of_a_chat_begins_with_the_tokens_of_the_last(turns: list[tuple[str, str]], length: int) -> None:
    prompt = tokens.encode(tokens.render_chat(turns))
    answer = tokens.answer(prompt, length)
    next_turn = tokens.encode(tokens.render_chat([*turns, ("assistant", tokens.decode(answer)), ("user", "more")]))
    assert next_turn[: len(prompt) + length] == prompt + answer


def test_the_same_prompt_has_the_same_answer_however_long() -> None:
    assert tokens.answer([1, 2], 9)[:4] == tokens.answer([1, 2], 4)
    assert tokens.answer([1, 2], 4) != tokens.answer([1, 3], 4)
