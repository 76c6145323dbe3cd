"""Answers of servers of the OpenAI API are read whatever else is in them."""

import msgspec
import pytest

from tierline.answers import Models, read_event


def test_a_chats_event_has_what_is_said_and_what_is_thought() -> None:
    said = read_event(b'{"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"}}]}')
    (opening,) = read_event(b'{"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}').choices
    (older,) = read_event(b'{"choices":[{"delta":{"content":null,"reasoning_content":"Hm"}}]}').choices
    (newer,) = read_event(b'{"choices":[{"delta":{"reasoning":"Hm"}}]}').choices

    assert [(choice.said, choice.content) for choice in said.choices] == [("Hi", "Hi")]
    assert (opening.said, opening.content) == ("", "")
    assert (older.said, older.content) == (newer.said, newer.content) == ("", "Hm")


def test_a_completions_event_has_text_and_the_last_one_what_was_cached() -> None:
    last = read_event(
        b'{"choices":[{"text":"a","finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":70,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":64}}}'
    )
    silent = read_event(b'{"choices":[],"usage":{"prompt_tokens":70}}').usage

    assert (last.choices[0].content, last.choices[0].finish_reason) == ("a", "length")
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.cached_tokens) == (70, 64)
    assert silent is not None
    assert silent.cached_tokens is None


@pytest.mark.parametrize(
    ("event", "failure"),
    [
        (b'{"error":{"message":"too long","code":400}}', "too long"),
        (b'{"error":"busy"}', "busy"),
        (b'{"error":{"code":500}}', "{'code': 500}"),
        (b'{"choices":[]}', ""),
    ],
)
def test_a_server_says_what_went_wrong_in_its_own_way(event: bytes, failure: str) -> None:
    assert read_event(event).failure == failure


def test_a_list_of_models_has_their_names_and_something_else_is_none() -> None:
    assert msgspec.json.decode(b'{"object":"list","data":[{"id":"a","created":1}]}', type=Models).data[0].id == "a"
    with pytest.raises(msgspec.DecodeError):
        read_event(b'{"choices":[1]}')
