"""Wrong settings are named; the documentation has an entry for every setting and header."""

import re
from pathlib import Path

import pytest

from tierline.configuration import load
from tierline.errors import ConfigurationError
from tierline.router.config import RouterConfig
from tierline.router.server import within_files
from tierline.router.strategies import STRATEGIES

PAGE = (Path(__file__).parents[3] / "docs/router.md").read_text()
ENDPOINT = {"endpoints": ["http://127.0.0.1:8001"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--endpoint"),
        ({"endpoints": []}, "--endpoint"),
        ({"endpoints": ["127.0.0.1:8001"]}, "http://127.0.0.1:8001"),
        ({"endpoints": ["ftp://host"]}, "http or https, a host"),
        ({"endpoints": ["http://host:99999"]}, "a host"),
        ({"endpoints": ["http://host/path"]}, "no path"),
        ({"endpoints": ["http://a:1", "http://a:1/"]}, "each URL once"),
        (
            ENDPOINT | {"strategy": "fastest"},
            "--strategy: got 'fastest'; allowed: prefixaware, kvaware, session, leastload, roundrobin",
        ),
        (ENDPOINT | {"kv_events": ["http://127.0.0.1:8001"]}, "URL=ADDRESS with the URL of an --endpoint"),
        (ENDPOINT | {"kv_events": ["http://other:1=tcp://other:2"]}, "URL=ADDRESS with the URL of an --endpoint"),
        (ENDPOINT | {"kv_events": ["http://127.0.0.1:8001=other:2"]}, "an address like tcp://10.0.0.1:5557"),
        (ENDPOINT | {"tokenizers": ["folder"]}, "MODEL=FOLDER"),
        (ENDPOINT | {"session_keys": ["x y"]}, "--session-key"),
        (ENDPOINT | {"workers": 0}, "--workers"),
        (ENDPOINT | {"peers": ["host"]}, "HOST:PORT"),
        (ENDPOINT | {"gossip_listen": "0.0.0.0:8100"}, "a file with a secret"),
        (ENDPOINT | {"peers": ["10.0.0.7:8100"]}, "a file with a secret"),
        (ENDPOINT | {"index_bytes": "1KiB"}, "--index-bytes"),
        (ENDPOINT | {"port": 70000}, "--port"),
        (ENDPOINT | {"tls_certificate": "c.pem"}, "--tls-key"),
        (ENDPOINT | {"tls_client_ca": "ca.pem"}, "together with tls_certificate"),
        (ENDPOINT | {"endpoint_key": "k.pem"}, "together with endpoint_certificate"),
        (ENDPOINT | {"priority_header": "x y"}, "the name of a request header"),
        (ENDPOINT | {"health_path": "healthz"}, "a path such as /healthz"),
        (ENDPOINT | {"health_path": "/v1/models"}, "at which nothing else is"),
        (ENDPOINT | {"health_path": "/metrics"}, "at which nothing else is"),
        (ENDPOINT | {"hedge_after": "0"}, "seconds, p95, or nothing"),
        (ENDPOINT | {"hedge_after": "soon"}, "seconds, p95, or nothing"),
        (ENDPOINT | {"ab_strategy": "fastest", "ab_share": 0.1}, "--ab-strategy: got 'fastest'; allowed: prefixaware"),
        (ENDPOINT | {"ab_strategy": "session"}, "--ab-share: got None; allowed: a share above 0, up to 1"),
        (ENDPOINT | {"ab_share": 0.1}, "--ab-share: got 0.1; allowed: 0 without ab_strategy"),
        (ENDPOINT | {"models": ["m"]}, "--model-strategy: got ['m']; allowed: MODEL=STRATEGY"),
        (ENDPOINT | {"models": ["m=session", "m=session"]}, "MODEL=STRATEGY, each name once"),
        (ENDPOINT | {"models": ["m=fastest"]}, "allowed: prefixaware, kvaware"),
        (ENDPOINT | {"models": {"m": {"strategy": "session", "ab_share": 2}}}, "--model-strategy[m][ab_share]: got 2"),
        (ENDPOINT | {"models": {"m": {"strategy": "session", "ab_strategy": "kvaware"}}}, "a share above 0, up to 1"),
        (ENDPOINT | {"model_aliases": ["gpt-4"]}, "ALIAS=MODEL"),
        (ENDPOINT | {"allow_bypass": ["limits"]}, "--allow-bypass"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load(RouterConfig, None, settings, environment={})


def test_settings_come_from_the_environment_too() -> None:
    environment = {"TIERLINE_ROUTER_ENDPOINTS": "http://a:1/,http://b:2", "TIERLINE_ROUTER_STRATEGY": "round-robin"}
    config = load(RouterConfig, None, {}, environment)
    assert config.endpoints == ("http://a:1", "http://b:2")
    assert config.strategy == "roundrobin"


@pytest.mark.parametrize(
    "said",
    ["llama=session, org/qwen=kv-aware", '{"llama": {"strategy": "session"}, "org/qwen": {"strategy": "kvaware"}}'],
)
def test_models_strategies_are_pairs_or_a_table(said: str, tmp_path: Path) -> None:
    environment = {"TIERLINE_ROUTER_ENDPOINTS": "http://a:1", "TIERLINE_ROUTER_MODELS": said}
    models = load(RouterConfig, None, {}, environment).models
    assert {name: rule.strategy for name, rule in models.items()} == {"llama": "session", "org/qwen": "kvaware"}
    file = tmp_path / "router.toml"
    file.write_text('[models."org/qwen"]\nstrategy = "kv-aware"\nindex_bytes = "1MiB"\n')
    rule = load(RouterConfig, file, ENDPOINT, {}).models["org/qwen"]
    assert (rule.strategy, rule.index_bytes, rule.ab_strategy, rule.affinity) == ("kvaware", 2**20, None, True)


@pytest.mark.parametrize("key", RouterConfig.model_fields)
def test_the_documentation_has_every_setting_with_its_default(key: str) -> None:
    assert re.search(rf"^\| `{key}` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_documentation_has_every_strategy(name: str) -> None:
    assert f"### `{name}`" in PAGE


def test_the_documentation_has_every_header_and_reason() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parents[3].glob("src/tierline/router/**/*.py"))
    for header in set(re.findall(r"x-tierline-[a-z-]+", source)) | {"x-request-id"}:
        assert f"`{header}`" in PAGE
    for reason in ("prefix", "cold", "spill", "template", "no-prompt", "session", "no-session", "turn"):
        assert f'"{reason}"' in source
        assert f"`{reason}`" in PAGE


def test_connections_are_no_more_than_files_allow() -> None:
    config = RouterConfig(endpoints=("http://127.0.0.1:8001",), connections=1000)
    assert within_files(config, 10_000) is config
    assert 1 <= within_files(config, 256).connections <= 128
    assert within_files(config, 16).connections == 1


@pytest.mark.parametrize(
    "more",
    [{"endpoints_file": "endpoints.yaml"}, {"kubernetes_pods": ["ns:app=vllm"]}, {"kubernetes_services": ["ns/a"]}],
)
def test_files_are_kept_for_endpoints_that_are_still_to_come(more: dict[str, object]) -> None:
    known = RouterConfig(endpoints=("http://127.0.0.1:8001",), connections=10**6)
    coming = RouterConfig.model_validate({"endpoints": ("http://127.0.0.1:8001",), "connections": 10**6, **more})
    for files in (1024, 4096, 2**20):
        kept = 2 * (within_files(known, files).connections - within_files(coming, files).connections)
        assert files // 8 <= kept <= files // 4 or kept >= 2 * (256 - 1 - 16)
