"""From EndpointSlices to members: who serves, by which name, at which port."""

from typing import Any

import msgspec
import pytest

from tierline.kube.slices import EndpointSlice
from tierline.pool.members import Member
from tierline.pool.members.kubernetes import members_of

PORTS = [{"name": "http", "port": 9200}, {"name": "transfer", "port": 9240}]


def part(*endpoints: dict[str, Any], family: str = "IPv4", ports: list[dict[str, Any]] | None = None) -> EndpointSlice:
    content = {
        "metadata": {"name": "s"},
        "addressType": family,
        "endpoints": endpoints,
        "ports": PORTS if ports is None else ports,
    }
    return msgspec.json.decode(msgspec.json.encode(content), type=EndpointSlice)


def endpoint(address: str = "10.0.0.1", **content: Any) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": "machine", **content}


@pytest.mark.parametrize(
    ("conditions", "is_member"),
    [
        ({}, True),
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True, "terminating": True}, True),
        ({"ready": False, "serving": False, "terminating": True}, False),
        ({"ready": True, "serving": False}, False),
    ],
)
def test_a_pod_is_a_member_as_long_as_it_serves_also_while_it_ends(
    conditions: dict[str, bool], is_member: bool
) -> None:
    members, _ = members_of({"1": part(endpoint(conditions=conditions))}, "")
    assert bool(members) is is_member


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"hostname": "store-0", "targetRef": {"name": "store-0"}}, "store-0"),
        ({"targetRef": {"name": "store-x7f"}}, "machine"),
        ({"nodeName": None, "topology": {"kubernetes.io/hostname": "old"}}, "old"),
        ({"nodeName": None, "targetRef": {"name": "store-x7f"}}, "store-x7f"),
        ({"nodeName": None}, ""),
    ],
)
def test_a_member_is_called_as_its_node_most_likely_calls_itself(said: dict[str, Any], name: str) -> None:
    assert members_of({"1": part(endpoint(**said))}, "") == ((Member(name, "10.0.0.1", 9240),), frozenset())


def test_a_pod_with_two_families_or_in_two_slices_is_one_member() -> None:
    pod: dict[str, Any] = {"targetRef": {"name": "p", "uid": "u"}}
    slices = {
        "1": part(endpoint("fd00::1", **pod), family="IPv6"),
        "2": part(endpoint(**pod)),
        "3": part(endpoint(**pod)),
    }
    assert members_of(slices, "")[0] == (Member("machine", "10.0.0.1", 9240),)


def test_endpoints_of_one_address_and_different_ports_are_different_members() -> None:
    slices = {"1": part(endpoint()), "2": part(endpoint(), ports=[{"port": 9241}])}
    assert [member.port for member in members_of(slices, "")[0]] == [9240, 9241]


@pytest.mark.parametrize(
    ("ports", "wanted", "port"),
    [
        (PORTS, "", 9240),
        (PORTS, "http", 9200),
        (PORTS, "7", 7),
        ([], "7", 7),
        ([{"name": "any", "port": 5}], "", 5),
        ([{"name": "a", "port": 5}, {"name": "b", "port": 6}], "", None),
        (PORTS, "other", None),
        ([], "", None),
    ],
)
def test_the_port_is_the_one_named_the_only_one_or_the_one_of_transfers(
    ports: list[dict[str, Any]], wanted: str, port: int | None
) -> None:
    members, refused = members_of({"1": part(endpoint(), ports=ports), "2": part(ports=ports)}, wanted)
    assert ([member.port for member in members], refused) == (
        ([], frozenset({"1"})) if port is None else ([port], frozenset())
    )
