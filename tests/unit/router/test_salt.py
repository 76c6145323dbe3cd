"""The splice of ``cache_salt``, against Python's own JSON parser."""

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from tierline.router.http.heads import BadMessage
from tierline.router.prompt import read_fields
from tierline.router.salt import with_cache_salt

BLANKS = st.text(alphabet=" \t\r\n", max_size=3)
NAMES = st.one_of(
    st.sampled_from(["cache_salt", "Cache_Salt", "cache_salt\x00", "model", "prompt", "", "}", '"', "\\"]), st.text()
)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


def escaped(text: str) -> str:
    """A JSON string of which every character is an escape."""
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """An object as a client may write it: blanks anywhere, names escaped, repeated and nested."""
    members = draw(st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=4))
    written = []
    for name, value, is_escaped in members:
        spelled = escaped(name) if is_escaped else json.dumps(name)
        written.append(f"{draw(BLANKS)}{spelled}{draw(BLANKS)}:{json.dumps(value)}{draw(BLANKS)}")
    return f"{draw(BLANKS)}{{{','.join(written) or draw(BLANKS)}}}{draw(BLANKS)}".encode("utf-8", "surrogatepass")


def names_in(body: bytes) -> list[str]:
    found: list[list[str]] = []

    def keep(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found.append([name for name, _ in pairs])
        return dict(pairs)

    json.loads(body, object_pairs_hook=keep)
    return found[-1]  # the outermost is read last


@given(objects(), st.text(min_size=1))
@example(b'{"a":{"cache_salt":"x"}}', "s")
@example(b'{"cache\\u005fsalt":null}', "s")
@example(b'{"cache_salt":"a","cache_salt":null}', "s")
@example(b"{}", "}")
def test_a_salt_is_seen_where_python_sees_one_and_else_added_and_nothing_changed(body: bytes, salt: str) -> None:
    try:
        fields = read_fields(body)
    except BadMessage:  # a field of a wrong type, or half of a surrogate pair
        return
    if fields.cache_salt is not msgspec.UNSET:
        assert "cache_salt" in names_in(body)
        return
    assert "cache_salt" not in names_in(body)
    if any(0xD800 <= ord(character) < 0xE000 for character in salt):
        return
    salted = b"".join(with_cache_salt(body, salt))
    parsed: dict[str, Any] = json.loads(salted)
    assert parsed.pop("cache_salt") == salt
    assert parsed == json.loads(body)
    assert read_fields(salted).cache_salt == salt
    member = b'"cache_salt":' + msgspec.json.encode(salt)
    assert salted.replace(b"," + member, b"").replace(member, b"") == body


def test_a_body_that_ends_in_megabytes_of_blanks_costs_no_loop() -> None:
    body = b'{"a":1}' + b" " * 2**24
    assert b"".join(with_cache_salt(body, "s")) == b'{"a":1,"cache_salt":"s"}' + b" " * 2**24
