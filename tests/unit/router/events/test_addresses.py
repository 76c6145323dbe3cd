"""Addresses of KV events, as users write them."""

import pytest

from tierline.router.events.addresses import SourceAddress, parse_addresses


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("tcp://10.0.0.1:5557", [SourceAddress("tcp://10.0.0.1:5557")]),
        ("tcp://h:5557?replay=5558", [SourceAddress("tcp://h:5557", "tcp://h:5558")]),
        ("tcp://[::1]:1?replay=tcp://h:2", [SourceAddress("tcp://[::1]:1", "tcp://h:2")]),
        ("ipc:///run/a?replay=ipc:///run/b&topic=kv", [SourceAddress("ipc:///run/a", "ipc:///run/b", "kv")]),
        (
            "tcp://h:5557?ranks=2&replay=5657",
            [SourceAddress("tcp://h:5557", "tcp://h:5657"), SourceAddress("tcp://h:5558", "tcp://h:5658")],
        ),
    ],
)
def test_an_address_names_a_publisher_for_each_rank(text: str, sources: list[SourceAddress]) -> None:
    assert list(parse_addresses(text)) == sources


@pytest.mark.parametrize(
    "text",
    ["", "h:5557", "http://h:5557", "tcp://h", "tcp://*:5557", "tcp://h:99999", "tcp://h:1?ranks=0", "tcp://h:1?ranks=x",
     "tcp://h:1?replay=x", "tcp://h:1?other=1", "tcp://h:1/path", "ipc://", "ipc:///a?ranks=2",
     "tcp://h o:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="an address like"):
        parse_addresses(text)
