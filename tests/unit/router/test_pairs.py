"""What two endpoints are sent of one body, against Python's own JSON parser; and what is believed of an answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.test_salt import objects

from tierline.router.endpoints import Endpoint
from tierline.router.http.splicing import members_of, object_of
from tierline.router.pairs import Pairing, decode_body, is_of, partners, prefill_body, read_answer, split
from tierline.router.prompt import read_fields
from tierline.router.specs import ROLES, Role
from tierline.router.strategies import RoutingRequest
from tierline.router.strategies.base import Decision

HANDED = b'{"remote_block_ids": [[1, 2]], "remote_host": "p"}'


def parsed(*pieces: bytes | memoryview) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"".join(pieces).decode("utf-8", "surrogatepass"))
    return found


def is_read(body: bytes) -> bool:
    try:
        members_of(body)
    except ValueError:  # half of a surrogate pair
        return False
    return True


@given(objects().filter(is_read))
def test_members_are_what_python_reads(body: bytes) -> None:
    assert parsed(*object_of(members_of(body))) == parsed(body)


@given(
    objects().filter(is_read),
    st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens", "stream", "stream_options", "n"]), st.just(7)
    ),
)
def test_the_two_bodies_differ_from_the_clients_only_where_they_should(body: bytes, more: dict[str, int]) -> None:
    asked = parsed(body) | more
    members = members_of(json.dumps(asked).encode("utf-8", "surrogatepass"))
    assert parsed(*decode_body(members, HANDED)) == asked | {"kv_transfer_params": json.loads(HANDED)}
    sent = parsed(*prefill_body(members))
    assert sent.pop("kv_transfer_params")["do_remote_decode"]
    assert (sent.pop("max_tokens"), sent.pop("stream")) == (1, False)
    assert sent.pop("max_completion_tokens", None) == (1 if "max_completion_tokens" in asked else None)
    left_out = ("max_tokens", "max_completion_tokens", "stream", "stream_options", "kv_transfer_params")
    assert sent == {name: value for name, value in asked.items() if name not in left_out}


@pytest.mark.parametrize(
    ("answer", "handed", "cached"),
    [
        (b'{"kv_transfer_params":{"a":[1]}, "usage":{"prompt_tokens_details":{"cached_tokens":5}}}', b'{"a":[1]}', 5),
        (b'{"kv_transfer_params":null,"usage":{"prompt_tokens_details":null}}', b"", None),
        (b'{"kv_transfer_params":{}}', b"", None),
        (b"{}", b"", None),
    ],
)
def test_an_answer_says_where_the_kv_is_and_what_was_cached(answer: bytes, handed: bytes, cached: int | None) -> None:
    found = read_answer(answer)
    assert found is not None
    assert (found.handed, found.cached_tokens) == (handed, cached)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b"\xff", b'{"usage":5}'])
def test_what_is_no_answer_is_none(answer: bytes) -> None:
    assert read_answer(answer) is None


@pytest.mark.parametrize(
    ("roles", "total_blocks", "uncached", "threshold", "outcome"),
    [
        (ROLES, 9, 5000, 0, None),
        ({"prefill"}, 9, 5000, 0, None),
        ({"decode"}, 9, 4095, 4096, "short"),
        ({"decode"}, 9, 4096, 4096, "split"),
        ({"decode"}, 9, 0, 0, "split"),
        ({"decode"}, 0, 0, 251, "short"),
        ({"decode"}, 0, 0, 250, "split"),
    ],
)
def test_a_prompt_is_computed_elsewhere_from_the_threshold_of_tokens_to_compute_on(
    roles: frozenset[Role], total_blocks: int, uncached: int, threshold: int, outcome: str | None
) -> None:
    """Where the strategy looks at no prompt (no blocks), all of the prompt counts: here 1,000 bytes."""
    body = json.dumps({"prompt": "x" * 1000}).encode()
    endpoint = Endpoint("http://e:1", 0, roles=frozenset(roles))
    decision = Decision(endpoint, "any", total_blocks=total_blocks, uncached_tokens=uncached)
    found = split(RoutingRequest(read_fields(body)), decision, body, threshold)
    kind = found.outcome if isinstance(found, Pairing) else "split" if found is not None else None
    assert kind == outcome


WEIGHTS = st.none() | st.sampled_from(["a", "b", "pod 1"])


@given(st.lists(WEIGHTS, max_size=6), WEIGHTS)
def test_only_endpoints_of_the_same_weights_are_partners(those: list[str | None], weights: str | None) -> None:
    endpoints = [Endpoint(f"http://e:{number}", number, weights=each) for number, each in enumerate(those)]
    found = partners(endpoints, weights)
    assert [endpoint.weights for endpoint in found] == [weights] * those.count(weights)
    assert all(is_of(endpoint, weights) for endpoint in found)
