"""What an endpoint is made of beside its workers, held to golden files."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.endpoints import SPEC, endpoint
from tests.golden_files import require_golden

from tierline.operator.assumed import ADDITIONS, cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.accounts import accounts
from tierline.operator.manifests.autoscaling import autoscaling
from tierline.operator.manifests.certificates import certificates
from tierline.operator.manifests.disruption import disruption
from tierline.operator.manifests.entrance import ALB_CONTROLLER
from tierline.operator.manifests.gateway import gateway
from tierline.operator.manifests.ingress import ingress
from tierline.operator.manifests.machines import machines_of
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.monitoring import monitoring
from tierline.operator.manifests.network_policies import network_policies
from tierline.operator.manifests.node_stores import node_stores
from tierline.operator.manifests.redis import redis
from tierline.operator.manifests.router import router
from tierline.operator.manifests.routing_service import routing_service
from tierline.operator.manifests.store_removal import settings_of, store_removal
from tierline.operator.settled import Entrance, Settled

STANDING = Settled(entrance=Entrance("ingress", "alb", ALB_CONTROLLER))
Child = Callable[[Endpoint, Capabilities, OperatorConfig], Made]
PLAIN = cluster()
OLD = cluster(version=(1, 20))
FULL = cluster(ADDITIONS)
USUAL = OperatorConfig()
SYSTEM = OperatorConfig(router_placement="system")

UNROUTED: dict[str, Any] = {"intelligentRoutingSpec": None}
PAIRS: dict[str, Any] = {"pdSpec": {"prefillSpec": {}, "decodingSpec": {}, "routingThreshold": 2048}}
ACM: dict[str, Any] = {
    "tlsConfig": {
        "customCertificateConfig": {
            "acmArn": "arn:aws:acm:us-west-2:123456789012:certificate/0a1b2c3d",
            "domainName": "demo.example.com",
        }
    },
    "tags": [{"name": "team", "value": "search"}],
    "dataCapture": {"s3Uri": "s3://captures/demo/", "loadBalancer": {"enabled": True}},
}
QUERY: dict[str, Any] = {
    "autoScalingSpec": {
        "minReplicaCount": 0,
        "maxReplicaCount": 8,
        "prometheusTrigger": {"query": "sum(tierline_router_inflight)", "targetValue": 4.5, "serverAddress": ""},
    }
}
AMAZON: dict[str, Any] = {
    "autoScalingSpec": {
        "cloudWatchTriggerList": [
            {
                "name": "invocations",
                "namespace": "AWS/SageMaker",
                "metricName": "Invocations",
                "targetValue": 100,
                "dimensions": [{"name": "EndpointName", "value": "demo"}, {"name": "VariantName", "value": "all"}],
            }
        ],
        "prometheusTrigger": {
            "query": "vector(1)",
            "targetValue": 1,
            "metricType": "Value",
            "serverAddress": "https://aps-workspaces.us-west-2.amazonaws.com/workspaces/ws-1",
        },
    },
    "intelligentRoutingSpec": {
        "enabled": True,
        "autoScalingSpec": {"prometheusTrigger": {"query": "vector(2)", "targetValue": 50}},
    },
}
"""As ``hyp`` sends it, with a metric."""
KEY: dict[str, Any] = {
    "worker": {
        **SPEC["worker"],
        "environmentVariables": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "engine", "key": "token"}}}
        ],
    }
}
GRPC: dict[str, Any] = {"worker": {**SPEC["worker"], "modelInvocationPort": {"containerPort": 8001, "name": "grpc"}}}
PROMETHEUS = OperatorConfig(prometheus_address="http://prometheus.monitoring:9090")

CASES: list[tuple[str, Child, Endpoint, Capabilities, OperatorConfig]] = [
    ("accounts/routed", accounts, endpoint(), PLAIN, USUAL),
    ("accounts/system", accounts, endpoint(), PLAIN, SYSTEM),
    ("accounts/unrouted", accounts, endpoint(UNROUTED), PLAIN, USUAL),
    ("autoscaling/keda", autoscaling, endpoint(QUERY), FULL, PROMETHEUS),
    ("autoscaling/keda-amazon", autoscaling, endpoint(AMAZON), FULL, PROMETHEUS),
    ("autoscaling/hpa", autoscaling, endpoint(QUERY), PLAIN, PROMETHEUS),
    ("autoscaling/hpa-1.20", autoscaling, endpoint(QUERY), OLD, PROMETHEUS),
    ("autoscaling/incomplete", autoscaling, endpoint(QUERY), FULL, USUAL),
    ("certificates/cert-manager", certificates, endpoint(), FULL, USUAL),
    ("certificates/issuer", certificates, endpoint(annotations={"issuer": "ClusterIssuer/acme"}), FULL, USUAL),
    ("certificates/own", certificates, endpoint(), PLAIN, USUAL),
    ("disruption/routed", disruption, endpoint(), PLAIN, USUAL),
    ("disruption/pairs-1.20", disruption, endpoint(PAIRS), OLD, USUAL),
    ("gateway/own", gateway, endpoint(), cluster(["gateway"]), USUAL),
    ("gateway/given", gateway, endpoint(annotations={"gateway": "edge/public", "host": "a.example"}), FULL, USUAL),
    ("ingress/alb", ingress, endpoint(), FULL, USUAL),
    ("ingress/alb-acm-system", ingress, endpoint(ACM), FULL, SYSTEM),
    ("ingress/nginx", ingress, endpoint(annotations={"host": "demo.example.com"}), cluster(["nginx"]), USUAL),
    ("ingress/unrouted", ingress, endpoint(UNROUTED), cluster(["nginx"]), USUAL),
    (
        "ingress/own-annotations",
        ingress,
        endpoint(annotations={"alb.ingress.kubernetes.io/scheme": "internet-facing"}),
        FULL,
        USUAL,
    ),
    ("ingress/none", ingress, endpoint(), PLAIN, USUAL),
    ("ingress/several", ingress, endpoint(), cluster(["nginx", "gateway"]), USUAL),
    ("ingress/class-gone", ingress, replace(endpoint(), settled=STANDING), PLAIN, USUAL),
    ("monitoring/pod-monitors", monitoring, endpoint(), FULL, USUAL),
    ("monitoring/annotations", monitoring, endpoint(), PLAIN, USUAL),
    ("network-policies/routed", network_policies, endpoint(), PLAIN, USUAL),
    ("network-policies/grpc", network_policies, endpoint(GRPC), PLAIN, USUAL),
    ("network-policies/system", network_policies, endpoint(), PLAIN, SYSTEM),
    ("network-policies/system-old", network_policies, endpoint(), OLD, SYSTEM),
    ("network-policies/unrouted", network_policies, endpoint(UNROUTED), PLAIN, USUAL),
    ("router/default", router, endpoint(), PLAIN, USUAL),
    ("router/system-pod-monitors", router, endpoint(), FULL, SYSTEM),
    ("router/pairs", router, endpoint(PAIRS), PLAIN, USUAL),
    ("router/several", router, endpoint(annotations={"router-replicas": "3"}), PLAIN, USUAL),
    ("router/scaled-without-metrics", router, endpoint(AMAZON | {"metrics": {"enabled": False}}), FULL, PROMETHEUS),
    ("router/dashboard", router, endpoint(annotations={"dashboard": "true"}), PLAIN, USUAL),
    ("router/api-keys", router, endpoint(KEY, annotations={"api-keys": "clients"}), PLAIN, USUAL),
    ("router/api-keys-system", router, endpoint(KEY, annotations={"api-keys": "clients"}), PLAIN, SYSTEM),
    ("routing-service/routed", routing_service, endpoint(), PLAIN, USUAL),
    ("routing-service/unrouted", routing_service, endpoint(UNROUTED), PLAIN, USUAL),
]


@pytest.mark.parametrize(("name", "child", "wanted", "has", "config"), CASES, ids=[case[0] for case in CASES])
def test_a_child_is_as_its_golden_file_says(
    name: str, child: Child, wanted: Endpoint, has: Capabilities, config: OperatorConfig
) -> None:
    require_golden(f"operator/{name}", child(wanted, has, config))


REDIS: dict[str, Any] = {
    "kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "Redis"}},
}
SHARED: list[tuple[str, Any, list[Endpoint], Capabilities]] = [
    ("node-stores/default", node_stores, [endpoint()], PLAIN),
    (
        "node-stores/of-two",
        node_stores,
        [
            endpoint(annotations={"l2-size": "64GiB", "eviction-policy": "s3fifo"}),
            endpoint({"instanceType": None}, annotations={"l2-size": "96GiB", "eviction-policy": "lru"}, name="other"),
        ],
        FULL,
    ),
    ("redis/default", redis, [endpoint(REDIS)], PLAIN),
    ("redis/of-two", redis, [endpoint(REDIS), endpoint(REDIS, annotations={"l2-size": "32GiB"}, name="other")], PLAIN),
]


MACHINES = {"some": machines_of(["ml.g5.24xlarge", "g5.24xlarge"]), "all-but-some": ~machines_of(["g5.24xlarge"])}


@pytest.mark.parametrize(
    ("name", "machines", "has"),
    [
        ("some", "some", PLAIN),
        ("all-but-some", "all-but-some", PLAIN),
        ("old", "some", Capabilities(version=(1, 20))),
    ],
)
def test_what_removes_what_stores_left_is_as_its_golden_file_says(name: str, machines: str, has: Capabilities) -> None:
    (*_, stores) = node_stores([endpoint()], PLAIN, USUAL).manifests
    made = store_removal(USUAL, MACHINES[machines], settings_of(stores), "2026-01-02T03:04:05Z", has)
    require_golden(f"operator/node-stores/removal-{name}", Made((made,)))


@pytest.mark.parametrize(("name", "child", "wanting", "has"), SHARED, ids=[case[0] for case in SHARED])
def test_what_endpoints_share_is_as_its_golden_file_says(
    name: str, child: Any, wanting: list[Endpoint], has: Capabilities
) -> None:
    require_golden(f"operator/{name}", child(wanting, has, USUAL))
