"""When an endpoint's own Redis is the same one, and when it is another: by its name, which workers are told."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.endpoints import SPEC, endpoint

from tierline.operator.assumed import cluster
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.redis import redis, redis_name
from tierline.operator.manifests.workers import workers
from tierline.operator.names import USES_REDIS

CACHED: dict[str, Any] = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}}
BEFORE = endpoint(CACHED)
WORKER = SPEC["worker"]


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 4},
        {"instanceType": "ml.p5.48xlarge"},
        {"worker": {**WORKER, "resources": {"limits": {"nvidia.com/gpu": "8"}}}},
        {"worker": {**WORKER, "requestLimits": {"maxConcurrentRequests": 8}}},
        {"intelligentRoutingSpec": {"enabled": True, "routingStrategy": "roundrobin"}},
        {"autoScalingSpec": {"minReplicaCount": 1, "maxReplicaCount": 3}},
        {"maxDeployTimeInSeconds": 60},
        {"metrics": {"enabled": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_nothing_that_it_holds_keeps_it(change: Mapping[str, Any]) -> None:
    assert redis_name(endpoint({**CACHED, **change})) == redis_name(BEFORE)


@pytest.mark.parametrize(
    "changed",
    [
        endpoint({**CACHED, "modelName": "another"}),
        endpoint({**CACHED, "worker": {**WORKER, "args": ["--model", "/opt/ml/model", "--dtype", "float16"]}}),
        endpoint(CACHED, name="another"),
        endpoint(CACHED, annotations={"l2-size": "32GiB"}),
    ],
    ids=["model", "arguments", "endpoint", "size"],
)
def test_another_cache_and_another_size_have_another_one_which_workers_are_told_of(changed: Endpoint) -> None:
    assert redis_name(changed) != redis_name(BEFORE)
    [deployment] = workers(changed, cluster(), OperatorConfig()).manifests
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"][USES_REDIS] == redis_name(changed)
    environment = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
    assert environment["LMCACHE_REMOTE_URL"].startswith(f"redis://{redis_name(changed)}.")


def test_it_shows_prometheus_nothing_for_it_has_no_page_of_metrics() -> None:
    assert "prometheus.io" not in repr(redis([BEFORE], cluster(), OperatorConfig()).manifests)
