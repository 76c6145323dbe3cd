"""How Prometheus finds what pods show: by annotations that many set-ups go by, and PodMonitors where its operator is.

One page a pod, the collector's: it has the metrics of all of the pod's containers, with HyperPod's dimensions.
"""

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.programs import COLLECTOR_PORT_NAME, scrape_seconds
from tierline.operator.manifests.routing import entrance_namespace, is_routed, router_selector, worker_selector
from tierline.operator.names import router_name, worker_name

MONITORING = "monitoring.coreos.com/v1"


def shows_metrics(endpoint: Endpoint) -> bool:
    """Whether the endpoint's pods have a collector: unless ``metrics.enabled`` is false."""
    return endpoint.spec.metrics is None or endpoint.spec.metrics.enabled


def scrape_annotations(port: int) -> dict[str, str]:
    """Return annotations for pods that show metrics at a port.

    They are there beside PodMonitors too: what a cluster is given later must not replace pods that serve.
    """
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def monitoring(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return a PodMonitor of the workers, and one of the routers."""
    if not shows_metrics(endpoint):
        return Made()
    if not capabilities.serves(MONITORING, "PodMonitor"):
        return Made(
            notices=(
                Notice(
                    "MetricsReady",
                    "NoPodMonitors",
                    "the cluster has no PodMonitor (monitoring.coreos.com/v1): only annotations of the pods say where "
                    "their metrics are, prometheus.io/scrape, port and path",
                ),
            )
        )
    interval_s = scrape_seconds(endpoint)
    workers = worker_selector(endpoint)
    monitors = [pod_monitor(worker_name(endpoint.name), endpoint.namespace, workers, interval_s)]
    if is_routed(endpoint):
        name = router_name(endpoint.name, endpoint.namespace)
        namespace = entrance_namespace(endpoint, config)
        monitors.append(pod_monitor(name, namespace, router_selector(endpoint), interval_s))
    return Made(tuple(monitors))


def pod_monitor(name: str, namespace: str, labels: dict[str, str], interval_s: int) -> Manifest:
    """Return what has Prometheus ask the collectors of the pods with ``labels``."""
    return {
        "apiVersion": MONITORING,
        "kind": "PodMonitor",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "podMetricsEndpoints": [{"port": COLLECTOR_PORT_NAME, "path": "/metrics", "interval": f"{interval_s}s"}],
        },
    }


def service_monitor(name: str, namespace: str, labels: dict[str, str], port: str) -> Manifest:
    """Return what has Prometheus ask the endpoints of the Services with ``labels``."""
    return {
        "apiVersion": MONITORING,
        "kind": "ServiceMonitor",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "endpoints": [{"port": port, "path": "/metrics", "interval": "15s"}],
        },
    }
