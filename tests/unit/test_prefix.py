"""Block keys: stable across processes and versions, different whenever anything that changes KV is different."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.prefix import (
    CHUNK_TOKENS,
    PrefixIdentity,
    Shard,
    block_chain,
    object_name,
    parse_object_name,
    tenant_field,
    tenant_of,
)

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=64)
IDENTITY = PrefixIdentity(model="m", adapter="a", tenant="t")
SHARD = Shard(kv_dtype="bfloat16", layout="hnd128-1")


def chain(tokens: Sequence[int], identity: PrefixIdentity = IDENTITY, chunk: int = 4) -> list[bytes]:
    return list(block_chain(identity.root(), tokens, chunk))


def test_a_known_chain_never_changes() -> None:
    first, second = block_chain(PrefixIdentity(model="fingerprint").root(), range(2 * CHUNK_TOKENS))
    assert first.hex() == "032cb9c2c0f5a1677fb5c11fbdaa2b4483d2b067fc78f5431025c1253ef586f6"
    assert second.hex() == "7123284dd972ac1c8071d4e9d0ded9273b85989ac088fc5faec424df6129aa92"


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_a_key_does_not_depend_on_the_hash_seed(seed: str) -> None:
    program = (
        "from tierline.prefix import PrefixIdentity, block_chain;"
        "print(*[k.hex() for k in block_chain(PrefixIdentity(model='m').root(), range(512))])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == [key.hex() for key in block_chain(PrefixIdentity(model="m").root(), range(512))]


@given(TOKENS, TOKENS)
def test_two_runs_share_exactly_the_keys_of_their_common_full_blocks(left: list[int], right: list[int]) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    shared = [a == b for a, b in zip(chain(left), chain(right), strict=False)]
    assert shared == [index < common // 4 for index in range(len(shared))]


@given(TOKENS, st.integers(0, 16))
def test_a_chain_can_be_continued_from_any_of_its_keys(tokens: list[int], cut: int) -> None:
    whole = chain(tokens)
    cut = min(cut, len(whole))
    parent = whole[cut - 1] if cut else IDENTITY.root()
    assert whole[:cut] + list(block_chain(parent, tokens[cut * 4 :], 4)) == whole


@pytest.mark.parametrize(
    "other",
    [
        PrefixIdentity(model="m2", adapter="a", tenant="t"),
        PrefixIdentity(model="m", adapter="", tenant="t"),
        PrefixIdentity(model="m", adapter="a", tenant=""),
        PrefixIdentity(model="m", adapter="a", tenant="t", epoch=1),
        PrefixIdentity(model="ma", adapter="", tenant="t"),
    ],
)
def test_another_model_adapter_tenant_or_epoch_shares_no_key(other: PrefixIdentity) -> None:
    assert not set(chain(range(16))) & set(chain(range(16), other))


def test_a_placeholder_block_is_told_apart_by_its_content() -> None:
    root = IDENTITY.root()
    plain, cat, dog = (list(block_chain(root, range(12), 4, extras)) for extras in (None, {1: b"cat"}, {1: b"dog"}))
    assert plain[0] == cat[0] == dog[0]
    assert len({plain[1], cat[1], dog[1]}) == 3
    assert len({plain[2], cat[2], dog[2]}) == 3


def test_object_names_go_there_and_back() -> None:
    shard = Shard(
        kv_dtype="fp8_e4m3", layout="nhd-2", chunk_tokens=256, tensor_rank=3, tensor_size=8, pipeline_rank=1,
        pipeline_size=2, group=4,
    )  # fmt: skip
    (key,) = block_chain(IDENTITY.root(), range(4), 4)
    assert parse_object_name(object_name(key, shard)) == (key, shard)


@given(st.text())
def test_a_tenant_stands_in_its_objects_names_without_its_salt(cache_salt: str) -> None:
    (key,) = block_chain(IDENTITY.root(), range(4), 4)
    name = object_name(key, SHARD, tenant_field(cache_salt))

    assert tenant_of(name) == tenant_field(cache_salt)
    assert parse_object_name(name) == (key, SHARD)
    assert len(cache_salt) < 5 or cache_salt not in name


def test_a_known_tenant_field_never_changes() -> None:
    assert tenant_field("") == ""
    assert tenant_field("team-a") == "5deb89d8448da709"


@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        ("/models/llama@00010000@0@9f3a@acme", "acme"),
        ("/models/llama@00010000@1f@9f3a@f00f00f0", "f00f00f0"),
        ("/models/llama@00010000@0@9f3a", ""),
        ("Qwen/Qwen3-0.6B@1@0@8@bfloat16", ""),
        ("Qwen/Qwen3-0.6B@1@0@8@bfloat16@3", ""),
        ("Qwen/Qwen3-0.6B@1@0@8@bfloat16@tag%acme", ""),
        ("/models/llama@00010000@0@9f3a@acme@more", ""),
        ("/models/llama@00010000@0@9f3a@", ""),
        ("anything", ""),
        ("", ""),
    ],
)
def test_the_salt_of_lmcache_is_a_tenant_and_its_element_type_is_none(name: str, tenant: str) -> None:
    assert tenant_of(name) == tenant


@given(st.text(max_size=200))
def test_names_that_are_not_ours_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a block's object name"):
        parse_object_name(name)


def test_a_shard_refuses_text_that_would_not_parse_back() -> None:
    with pytest.raises(ValueError, match=r"kv_dtype: got 'a\.b'"):
        Shard(kv_dtype="a.b", layout=SHARD.layout)
