"""Canonical prompts and their chained hashes."""

import json
import random
import tracemalloc
from itertools import accumulate
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.router.http.heads import BadMessage
from tierline.router.prompt import BLOCK_BYTES, BLOCKS_MAX, canonical_prompt, hash_blocks, hash_seed, read_fields


def prompt_of(**body: object) -> bytes:
    return b"".join(canonical_prompt(read_fields(json.dumps(body).encode())))


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@settings(max_examples=50)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_prompts_share_exactly_the_blocks_before_their_first_difference(one: bytes, other: bytes) -> None:
    ours, theirs = hash_blocks([one], 7).blocks, hash_blocks([other], 7).blocks
    shared = sum(a == b for a, b in zip(ours, theirs, strict=False))
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert ours[:shared] == theirs[:shared]
    assert shared == min(common // BLOCK_BYTES, len(ours), len(theirs))


def test_a_hash_names_the_whole_prefix() -> None:
    block = b"same" * 64
    first, second, third = hash_blocks([block * 3], 0).blocks
    assert len({first, second, third}) == 3


def test_model_and_salt_have_their_own_chains() -> None:
    seeds = {hash_seed("m", ""), hash_seed("m", "tenant"), hash_seed("adapter", ""), hash_seed("mtenant", "")}
    assert len(seeds) == 4


def test_hashing_stops_at_a_megabyte() -> None:
    assert len(hash_blocks([b"x" * (BLOCKS_MAX + 9) * BLOCK_BYTES], 0).blocks) == BLOCKS_MAX


@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 5))
def test_the_pieces_that_a_prompt_comes_in_make_no_difference(lengths: list[int], seed: int) -> None:
    prompt = random.Random(seed).randbytes(sum(lengths))
    ends = list(accumulate(lengths))
    pieces = [prompt[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    with mock.patch.multiple("tierline.router.prompt", PIECE_CHARACTERS=512, BLOCKS_MAX=20):
        assert hash_blocks(pieces, seed) == hash_blocks([prompt], seed)
        last = hash_blocks([prompt[:-1]], seed)
    assert not prompt or (last.whole, last.size_bytes) != (hash_blocks(pieces, seed).whole, len(prompt))


@pytest.mark.parametrize(
    ("body", "times"),
    [
        ({"prompt": "word " * 200_000}, 1.5),
        ({"messages": [{"role": "user", "content": "word " * 200_000}]}, 1.5),
        ({"messages": [{"role": "user", "content": "a line\n" * 150_000}]}, 2.8),  # with a buffer of the decoder's own
    ],
)
def test_a_prompt_of_a_mebibyte_is_decoded_once_and_nowhere_else_as_a_whole(body: object, times: float) -> None:
    fields = read_fields(json.dumps(body).encode())
    tracemalloc.start()
    try:
        prompt = hash_blocks(canonical_prompt(fields), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert prompt.size_bytes >= 10**6
    assert peak < times * prompt.size_bytes


def test_a_conversation_extends_the_bytes_of_its_last_turn() -> None:
    turns = [user("question"), {"role": "assistant", "content": "answer"}, user("more")]
    before, after = prompt_of(messages=turns[:1]), prompt_of(messages=turns)
    assert after.startswith(before)


def test_how_the_json_is_written_changes_nothing() -> None:
    body = {
        "tools": [{"name": "f", "parameters": {"a": 1}}],
        "messages": [user("Grüße"), user([{"type": "text", "text": "a"}])],
    }
    compact = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    spread = json.dumps(dict(reversed(body.items())), indent=3).encode()
    assert list(canonical_prompt(read_fields(compact))) == list(canonical_prompt(read_fields(spread)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [user("a")]}, {"messages": [{"role": "system", "content": "a"}]}),
        ({"messages": [user("a"), user("b")]}, {"messages": [user("ab")]}),
        ({"messages": [user("a")], "tools": [{"name": "f"}]}, {"messages": [user("a")]}),
        (
            {"messages": [user([{"type": "image_url", "image_url": {"url": "data:a"}}])]},
            {"messages": [user([{"type": "image_url", "image_url": {"url": "data:b"}}])]},
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "2"}]}]},
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, {"messages": [{"role": "tool", "tool_call_id": "2"}]}),
        ({"prompt": [1, 2]}, {"prompt": [2, 1]}),
        ({"prompt": ["a", "b"]}, {"prompt": "ab"}),
    ],
    ids=["role", "boundary", "tools", "image", "tool call", "tool call id", "token ids", "batch"],
)
def test_what_a_chat_template_writes_differently_has_other_bytes(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert prompt_of(**one) != prompt_of(**other)


def test_an_image_counts_by_its_content_whatever_its_size() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert len(prompt_of(messages=[user([part])])) < 64


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"image_url": {"url": "data:image/jpeg;base64,AAAA"}, "type": "image_url"},
        ),
        (
            {"type": "image_url", "image_url": {"url": "http://host/a.png"}},
            {"type": "image_url", "image_url": "http://host/a.png"},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"input_audio": {"format": "mp3", "data": "AAAA"}, "type": "input_audio"},
        ),
    ],
    ids=["data URL", "http URL", "sound"],
)
def test_the_same_content_is_the_same_however_it_is_described(one: object, other: object) -> None:
    assert prompt_of(messages=[user([one])]) == prompt_of(messages=[user([other])])


def test_an_image_sent_and_an_image_elsewhere_differ() -> None:
    parts = [
        {"type": kind, kind: {"url": url}} for kind in ("image_url", "video_url") for url in ("data:,a", "data:,b")
    ]
    parts.append({"type": "image_url", "image_url": {"url": "http://host/a"}})
    assert len({prompt_of(messages=[user([part])]) for part in parts}) == len(parts)


def test_token_ids_take_four_bytes_each() -> None:
    assert len(prompt_of(prompt=[1, 2, 70_000])) == 12
    assert prompt_of(prompt=[1, 2, 3]).startswith(prompt_of(prompt=[1, 2]))


@pytest.mark.parametrize(
    "body", [{"prompt": [-1]}, {"prompt": [2**40]}, {"prompt": {"a": 1}}, {"messages": "text"}, {"messages": [1]}]
)
def test_a_shape_that_is_unknown_is_left_to_the_engine(body: dict[str, object]) -> None:
    assert prompt_of(**body)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    )
)
def test_any_json_object_has_a_prompt_or_none_but_never_fails(value: object) -> None:
    for field in ("messages", "prompt", "tools"):
        prompt_of(**{field: value})
    prompt_of(messages=[user(value)])


@pytest.mark.parametrize(
    ("body", "path"),
    [(b'{"model": 1}', "model"), (b'{"cache_salt": 7}', "cache_salt"), (b"\xff", "body"), (b"", "body")],
)
def test_a_body_that_cannot_be_read_says_where(body: bytes, path: str) -> None:
    with pytest.raises(BadMessage, match=path):
        read_fields(body)


def test_a_system_prompt_in_a_field_of_its_own_is_the_chat_s_first_message() -> None:
    question = user([{"type": "text", "text": "a"}])
    system = {"role": "system", "content": "be brief"}
    chat = prompt_of(messages=[system, question])
    assert prompt_of(system="be brief", messages=[question]) == chat
    blocks = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    assert prompt_of(system=blocks, messages=[question]) != prompt_of(messages=[question])


@pytest.mark.parametrize(
    ("asked", "as_chat"),
    [
        ({"input": "a"}, {"messages": [user("a")]}),
        (
            {"input": [user([{"type": "input_text", "text": "a"}])]},
            {"messages": [user([{"type": "text", "text": "a"}])]},
        ),
        (
            {"instructions": "be brief", "input": "a"},
            {"messages": [{"role": "system", "content": "be brief"}, user("a")]},
        ),
    ],
)
def test_what_responses_are_asked_for_counts_as_the_same_chat(
    asked: dict[str, object], as_chat: dict[str, object]
) -> None:
    assert prompt_of(**asked) == prompt_of(**as_chat)


def test_calls_and_what_came_of_them_count_in_an_input() -> None:
    def after(output: str) -> bytes:
        call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}
        return prompt_of(input=[user("a"), call, {"type": "function_call_output", "call_id": "1", "output": output}])

    assert after("1") != after("2")
    assert after("1").startswith(prompt_of(input=[user("a")]))


@pytest.mark.parametrize("body", [{"input": {"a": 1}}, {"input": 7}, {"system": 7, "messages": [user("a")]}])
def test_an_input_that_cannot_be_read_counts_as_it_is_written(body: dict[str, object]) -> None:
    assert prompt_of(**body)
