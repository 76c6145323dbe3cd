"""What is said of an endpoint from outside: read whole, or refused with the place of the wrong value."""

import re

import pytest

from tierline.errors import ConfigurationError
from tierline.router.specs import MAX_ENDPOINTS, ROLES, EndpointSpec, read_specs


def test_an_entry_is_a_url_or_a_mapping() -> None:
    read = read_specs(
        ["http://a:1/", {"url": "http://b:2", "weight": 2, "roles": ["decode"], "models": ["m"]}], "file.yaml"
    )
    assert read == (
        EndpointSpec(url="http://a:1"),
        EndpointSpec(url="http://b:2", weight=2.0, roles=frozenset({"decode"}), models=frozenset({"m"})),
    )
    assert (read[0].weight, read[0].roles, read[0].models, read[0].kv_events) == (1.0, ROLES, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "f: got None; allowed: a list of endpoints; an empty one is written []"),
        ({"url": "http://a:1"}, "f: got {'url': 'http://a:1'}; allowed: a list"),
        ([7], "f[0]: got 7; allowed: a URL, or a mapping"),
        (["a:1"], "f[0].url: got 'a:1'; allowed: URLs like http://127.0.0.1:8001"),
        (["http://a:99999"], "f[0].url: got 'http://a:99999'; allowed: URLs like"),
        (["http://a:1", {"weight": 1}], "f[1].url: got None; allowed: a value"),
        ([{"url": "http://a:1", "weight": 0}], "f[0].weight: got 0; allowed: greater than or equal to 0.000001"),
        ([{"url": "http://a:1", "weight": 1e-320}], "f[0].weight: got 1e-320"),
        ([{"url": "http://a:1", "weight": float("nan")}], "f[0].weight: got nan"),
        ([{"url": "http://a:1", "roles": ["cook"]}], "f[0].roles.0: got 'cook'; allowed: 'prefill' or 'decode'"),
        ([{"url": "http://a:1", "roles": []}], "f[0].roles: got []"),
        ([{"url": "http://a:1", "models": "m"}], "f[0].models: got 'm'"),
        ([{"url": "http://a:1", "kv_events": "udp://a:1"}], "f[0].kv_events: got 'udp://a:1'"),
        ([{"url": "http://a:1", "wieght": 2}], "f[0].wieght: got 2; allowed: the keys url, weight"),
        (["http://a:1", "http://b:1", "http://a:1/"], "f[2].url: got 'http://a:1'; allowed: each URL once"),
        ([f"http://a:{port}" for port in range(1, MAX_ENDPOINTS + 2)], "f: got '257 endpoints'; allowed: up to 256"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(content: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_specs(content, "f")
