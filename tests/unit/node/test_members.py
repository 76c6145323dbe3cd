"""Which source of members a configuration means."""

import pytest

from tierline.configuration import load
from tierline.node.config import NodeConfig
from tierline.node.members import member_source


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"peers": "10.0.0.1:9240,b=10.0.0.2:9240"}, "static"),
        ({"peers_kubernetes": "ns/store:transfer"}, "kubernetes ns/store:transfer"),
        ({"peers_etcd": "https://pool@a:2379,b:2379"}, "etcd https://a:2379,https://b:2379/tierline/members"),
    ],
)
def test_members_come_from_the_one_source_that_is_configured(settings: dict[str, str], name: str) -> None:
    source = member_source(load(NodeConfig, None, {"transfer_address": "0.0.0.0:9240", **settings}, {}))
    assert source is not None
    assert source.name == name


def test_a_node_that_names_no_source_is_in_no_pool() -> None:
    assert member_source(load(NodeConfig, None, {"transfer_address": "0.0.0.0:9240"}, {})) is None
