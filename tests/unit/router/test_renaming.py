"""A model's other name in a body: what is decoded differs in that one member, and no other byte changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.http.heads import BadMessage
from tierline.router.renaming import with_id, with_model

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES), st.text(), st.text(), st.integers(0, 3) | st.none(), st.booleans())
def test_only_the_model_is_another(
    members: dict[str, object], alias: str, model: str, indent: int | None, is_ascii: bool
) -> None:
    members["model"] = alias
    body = json.dumps(members, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "replace")
    assert json.loads(with_model(body, model)) == {**json.loads(body), "model": model}


def test_values_keep_their_bytes_and_a_name_that_stood_twice_stands_once() -> None:
    body = b'{ "model" : "a", "x": { "b" : 1.50, "t": "\\u00e9" } , "model": "b"}'
    assert with_model(body, "m") == b'{"model":"m","x":{ "b" : 1.50, "t": "\\u00e9" }}'


@pytest.mark.parametrize("body", [b'{"\xff": 1}', b"[]", b'{"model": }'])
def test_what_is_no_object_of_names_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        with_model(body, "m")


def test_a_card_is_shown_under_another_name() -> None:
    card = b'{"id":"m","object":"model","max_model_len":4096}'
    assert json.loads(with_id(card, "alias")) == {"id": "alias", "object": "model", "max_model_len": 4096}
