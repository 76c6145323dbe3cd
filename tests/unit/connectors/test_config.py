"""Settings come from vLLM's extra config; whatever is wrong in them names its key, its value and what is allowed."""

from pathlib import Path

import pytest

from tierline.connectors.vllm import kv_transfer_config
from tierline.connectors.vllm.config import ConnectorConfig, read_config
from tierline.errors import ConfigurationError


def test_the_launch_flag_is_read_back() -> None:
    extra = kv_transfer_config("/run/node.sock")["kv_connector_extra_config"]
    assert isinstance(extra, dict)
    assert read_config(extra) == ConnectorConfig(socket="/run/node.sock")


def test_keys_of_others_are_left_alone() -> None:
    extra = {"tierline.socket": "s", "tierline.lookup_budget_ms": 5, "other.key": object()}
    assert read_config(extra) == ConnectorConfig(socket="s", lookup_budget_ms=5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "tierline.socket: got None"),
        ({"tierline.socket": ""}, "tierline.socket: got ''"),
        ({"tierline.socket": "s", "tierline.sockets": 1}, "tierline.sockets: got 1; allowed: the keys"),
        ({"tierline.socket": "s", "tierline.lookup_budget_ms": 0}, "tierline.lookup_budget_ms: got 0"),
        ({"tierline.socket": "s", "tierline.l2_wait_ms": -1}, "tierline.l2_wait_ms: got -1; allowed: a number, 0 or"),
        ({"tierline.socket": "s", "tierline.load_factor": 0}, "tierline.load_factor: got 0"),
        ({"tierline.socket": "s", "tierline.lease_ttl_s": "long"}, "tierline.lease_ttl_s: got 'long'"),
        ({"tierline.socket": "s", "tierline.bucket": 7}, "tierline."),
    ],
)
def test_a_wrong_setting_is_refused_by_name(extra: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        read_config(extra)


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/connector.md").read_text()
    assert [name for name in ConnectorConfig.__struct_fields__ if f"| `tierline.{name}` |" not in page] == []


def test_a_token_is_read_from_its_file_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token-012345\n")
    config = read_config({"tierline.socket": "s", "tierline.token_file": str(file), "tierline.segment": "team_a"})
    assert (config.token(), config.segment) == ("first-token-012345", "team_a")
    file.write_text("renewed-token-0123")
    assert config.token() == "renewed-token-0123"
    assert read_config({"tierline.socket": "s"}).token() == ""


def test_a_token_file_that_cannot_be_read_stops_the_engine() -> None:
    with pytest.raises(ConfigurationError, match=r"tierline\.token_file: got '/absent'; allowed: a file that holds"):
        read_config({"tierline.socket": "s", "tierline.token_file": "/absent"})
