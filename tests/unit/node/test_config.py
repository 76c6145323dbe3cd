"""Settings of the node: bounds, defaults, and that the documentation has them all."""

from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.node.config import NodeConfig

DOCUMENT = Path(__file__).parents[3] / "docs" / "node.md"


@pytest.mark.parametrize("key", sorted(NodeConfig.model_fields))
def test_every_setting_has_its_entry_in_the_documentation(key: str) -> None:
    assert f"| `{key}` |" in DOCUMENT.read_text()


def test_the_node_listens_on_this_machine_only_unless_told_otherwise() -> None:
    assert NodeConfig().host == "127.0.0.1"


def test_a_socket_is_named_after_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert NodeConfig(port=9300).socket_path() == Path("/run/user/1/tierline-9300.sock")
    assert NodeConfig(socket=Path("/x.sock")).socket_path() == Path("/x.sock")


@pytest.mark.parametrize(("given", "mode"), [("0640", 0o640), ("0o600", 0o600), ("666", 0o666), (0o644, 0o644)])
def test_a_file_mode_is_octal_where_it_is_text(given: object, mode: int) -> None:
    assert load(NodeConfig, None, {"shared_memory_mode": given}).shared_memory_mode == mode


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shared_memory_mode", "0999"),
        ("shared_memory_mode", 0o1777),
        ("shared_memory_name", "../etc/passwd"),
        ("capacity", "64KiB"),
        ("keep_alive_s", 30),
        ("eviction", "random"),
        ("port", 0),
        ("max_ttl_s", 0),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_flag(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"--{key.replace('_', '-')}"):
        load(NodeConfig, None, {key: value})
