"""Batches of KV events: every encoding that vLLM had, and whatever else arrives."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.events.decoding import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    UnreadableBatch,
    decode_batch,
)

TOKENS = list(range(32))
STORED = {
    "type": "BlockStored",
    "block_hashes": [11, 12],
    "parent_block_hash": 10,
    "token_ids": TOKENS,
    "block_size": 16,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
}
DIGESTS: list[int | bytes] = [b"\x01" * 32, b"\x02" * 32]


def batch(*events: object, rank: int | None = None) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), *([] if rank is None else [rank])])


def test_a_name_that_is_longer_than_any_digest_is_not_taken_into_an_index() -> None:
    assert decode_batch(batch(STORED | {"block_hashes": [bytes(64), 1]})).events
    with pytest.raises(UnreadableBatch, match="length <= 64"):
        decode_batch(batch(STORED | {"block_hashes": [bytes(65), 1]}))


def test_maps_are_read_as_vllm_writes_them_since_0_24() -> None:
    newest = STORED | {
        "extra_keys": [["salt"], None],
        "group_idx": 1,
        "kv_cache_spec_kind": "full_attention",
        "kv_cache_spec_sliding_window": None,
        "locality": "LOCAL",
        "ownership": "fs",
        "session_id": "s",
        "a field of tomorrow": {"nested": [1]},
    }
    removed = {"type": "BlockRemoved", "block_hashes": [11], "medium": "CPU", "group_idx": 1, "locality": "REMOTE"}
    read = decode_batch(batch(newest, removed, {"type": "AllBlocksCleared"}, rank=3))
    assert (read.timestamp, read.rank, read.unknown) == (1.5, 3, 0)
    assert read.events == [
        BlockStored(
            [11, 12],
            10,
            TOKENS,
            16,
            medium="GPU",
            extra_keys=[["salt"], None],
            group_idx=1,
            kv_cache_spec_kind="full_attention",
            locality="LOCAL",
        ),
        BlockRemoved([11], "CPU", 1, "REMOTE"),
        AllBlocksCleared(),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param([DIGESTS, None, TOKENS, 16, None], BlockStored(DIGESTS, None, TOKENS, 16), id="0.10"),
        pytest.param([[11, 12], 10, TOKENS, 16, 7, "GPU"], BlockStored([11, 12], 10, TOKENS, 16, 7, "GPU"), id="0.11"),
        pytest.param(
            [[11, 12], 10, TOKENS, 16, 7, "GPU", "lora", [["lora"], None], 0],
            BlockStored([11, 12], 10, TOKENS, 16, 7, "GPU", "lora", [["lora"], None], 0),
            id="0.20",
        ),
        pytest.param(
            [[11], None, TOKENS[:16], 16, None, "GPU", None, None, 0, "mamba", None, "a field of tomorrow", *range(9)],
            BlockStored([11], None, TOKENS[:16], 16, None, "GPU", group_idx=0, kv_cache_spec_kind="mamba",
                        locality="a field of tomorrow"),
            id="longer than ours",
        ),
    ],
)  # fmt: skip
def test_arrays_are_read_as_vllm_wrote_them_up_to_0_23(fields: list[Any], expected: BlockStored) -> None:
    payload = batch(["BlockStored", *fields], ["BlockRemoved", [11]], ["AllBlocksCleared"])
    assert decode_batch(payload).events == [expected, BlockRemoved([11]), AllBlocksCleared()]


def test_events_of_unknown_types_are_counted_and_skipped() -> None:
    read = decode_batch(batch({"type": "BlockMoved", "from": 1}, STORED, ["BlockMoved", 1], ["AllBlocksCleared"]))
    assert read.unknown == 2
    assert [type(event) for event in read.events] == [BlockStored, AllBlocksCleared]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x01" + b"\x91" * 100_000,
        b"\x92\xcb" + 8 * b"\0" + b"\xdd\x7f\xff\xff\xff\x80",
        b"\x81\xa1\xff\x00",
        batch(STORED)[:-1],
        batch(STORED | {"block_size": -1}),
        batch(STORED | {"block_size": 2**31}),
        batch(STORED | {"token_ids": [-1]}),
        batch(STORED | {"token_ids": [2**32]}),
        batch(STORED | {"block_hashes": "no list"}),
        batch({"type": "BlockRemoved"}),
        batch([]),
        batch([7]),
        batch("text"),
        msgspec.msgpack.encode({"ts": 1.5, "events": []}),
    ],
)
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(UnreadableBatch):
        decode_batch(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    try:
        read = decode_batch(payload)
    except UnreadableBatch:
        return
    assert all(isinstance(event, BlockStored | BlockRemoved | AllBlocksCleared) for event in read.events)


_JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(sorted(STORED)), _JSON_LIKE, st.booleans())
def test_a_known_event_with_any_field_of_any_type_is_read_or_refused(field: str, value: Any, is_array: bool) -> None:
    event = STORED | {field: value}
    try:
        read = decode_batch(batch(list(event.values()) if is_array else event))
    except UnreadableBatch:
        return
    assert len(read.events) + read.unknown == 1


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_damaged_batch_is_read_or_refused(damage: bytes, where: int) -> None:
    payload = bytearray(batch(STORED, rank=0))
    start = where % len(payload)
    payload[start : start + len(damage)] = damage
    try:
        decode_batch(bytes(payload))
    except UnreadableBatch:
        return
