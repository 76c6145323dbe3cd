"""Where a session's name is found."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.router.config import RouterConfig
from tierline.router.prompt import read_fields
from tierline.router.sessions import SessionKeys, canonical_key


def find(keys: list[str], head: Mapping[bytes, bytes], body: Mapping[str, object]) -> bytes:
    sessions = SessionKeys([canonical_key(key) for key in keys])
    return sessions.find(head, read_fields(msgspec.json.encode(body), sessions.decode))


def test_the_first_key_that_a_request_has_is_taken() -> None:
    keys = ["X-User-Id", "body:user", "cookie:sid"]
    head = {b"cookie": b"sid=c"}
    assert find(keys, head | {b"x-user-id": b"h"}, {"user": "b"}) == b"h"
    assert find(keys, head, {"user": "b"}) == b"b"
    assert find(keys, head, {}) == b"c"
    assert find(keys, {}, {}) == b""


@pytest.mark.parametrize(
    ("cookies", "session"),
    [(b"sid=1", b"1"), (b"a=2; sid=1;b=3", b"1"), (b"xsid=2; sid2=3", b""), (b"sid", b""), (b"sid=a=b", b"a=b")],
)
def test_a_cookie_is_found_among_others(cookies: bytes, session: bytes) -> None:
    assert find(["cookie:sid"], {b"cookie": cookies}, {}) == session


@pytest.mark.parametrize(
    ("value", "session"), [("Grüße", "Grüße".encode()), (17, b"17"), (None, b""), ({"a": 1}, b""), (["a"], b"")]
)
@pytest.mark.parametrize("key", ["user", "conversation_id", "größe", "user-id"])
def test_any_field_of_the_body_may_name_the_session(key: str, value: object, session: bytes) -> None:
    assert find([f"body:{key}"], {}, {key: value}) == session


def test_fields_that_routing_reads_anyway_may_name_it_too() -> None:
    assert find(["body:cache_salt"], {}, {"cache_salt": "tenant", "model": "m"}) == b"tenant"


@pytest.mark.parametrize("key", ["", "a b", "cookie:", "cookie:a;b", "body:", 'body:"', "body:\\", "name:x"])
def test_a_key_that_is_none_is_refused_with_what_is_allowed(key: str) -> None:
    with pytest.raises(ConfigurationError, match="cookie:NAME"):
        load(RouterConfig, None, {"endpoints": ("http://127.0.0.1:1",), "session_keys": (key,)}, environment={})


@given(st.dictionaries(st.text("aü- :"), st.none() | st.integers() | st.text() | st.lists(st.integers())))
def test_any_body_has_a_session_or_none_but_never_fails(body: dict[str, object]) -> None:
    assert isinstance(find([f"body:{key}" for key in body if key], {}, body), bytes)
