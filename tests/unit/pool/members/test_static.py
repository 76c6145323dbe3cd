"""Members that a configuration names."""

import pytest

from tierline.pool.members import Member, StaticMembers, parse_member


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("10.0.0.7:9240", Member("", "10.0.0.7", 9240)),
        ("b=node-b.local:9240", Member("b", "node-b.local", 9240)),
        ("[fd00::7]:9240", Member("", "fd00::7", 9240)),
        ("b=[fd00::7]:65535", Member("b", "fd00::7", 65535)),
    ],
)
def test_a_member_is_an_address_with_or_without_a_name(text: str, member: Member) -> None:
    assert parse_member(text) == member


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":9240", "host:0", "host:65536", "host:x", "fd00::7:9240", "[host]:1", "b=:1", "h:١"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        parse_member(text)


def test_a_member_reads_as_its_name_or_its_address() -> None:
    assert str(parse_member("b=10.0.0.7:9240")) == "b"
    assert str(parse_member("10.0.0.7:9240")) == "10.0.0.7:9240"
    assert str(parse_member("[fd00::7]:9240")) == "[fd00::7]:9240"


async def test_a_static_set_is_told_once() -> None:
    members = [parse_member("a:1"), parse_member("b:2")]
    assert [members_told async for members_told in StaticMembers(members).member_sets()] == [tuple(members)]
