"""How an engine's health is found out: by the user's probes, or by the path and port that clients use.

A model takes minutes to load: until the endpoint's own deadline a slow start is no failure. Answers to probes are given
five seconds, for a busy engine is not a dead one.
"""

import math
from typing import Any

from tierline.operator.endpoint import Endpoint

TIMEOUT_SECONDS = 5
START_PERIOD_SECONDS = 10
DEFAULT_PATH = "/ping"
"""Of ``loadBalancer.healthCheckPath``."""
_DEAD_AFTER_SECONDS = 180


def probes(endpoint: Endpoint) -> dict[str, Any]:
    """Return the probes of the engine's container."""
    spec = endpoint.spec
    deadline_s = max(spec.max_deploy_time_in_seconds, START_PERIOD_SECONDS)
    found: dict[str, Any] = {
        "startupProbe": {
            **_ask(endpoint),
            "periodSeconds": START_PERIOD_SECONDS,
            "timeoutSeconds": TIMEOUT_SECONDS,
            "failureThreshold": math.ceil(deadline_s / START_PERIOD_SECONDS),
        },
        "readinessProbe": {
            **_ask(endpoint),
            "periodSeconds": 5,
            "timeoutSeconds": TIMEOUT_SECONDS,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            **_ask(endpoint),
            "periodSeconds": 15,
            "timeoutSeconds": TIMEOUT_SECONDS,
            "failureThreshold": _DEAD_AFTER_SECONDS // 15,
        },
    }
    own = spec.worker.probes
    if own is not None:
        stated = {
            "startupProbe": own.startup_probe,
            "readinessProbe": own.readiness_probe,
            "livenessProbe": own.liveness_probe,
        }
        found |= {name: probe.manifest() for name, probe in stated.items() if probe is not None}
    return found


def _ask(endpoint: Endpoint) -> dict[str, Any]:
    port = endpoint.spec.worker.model_invocation_port
    if port.name == "grpc":
        return {"tcpSocket": {"port": port.container_port}}
    balancer = endpoint.spec.load_balancer
    path = balancer.health_check_path if balancer is not None else DEFAULT_PATH
    return {"httpGet": {"path": path, "port": port.container_port}}
