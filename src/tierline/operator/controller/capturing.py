"""How capture in the pods does, as far as the containers that capture show it.

What those could not write to S3 is in their metrics, where the operator does not look.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tierline.operator.controller import status
from tierline.operator.controller.conditions import LONGEST_MESSAGE
from tierline.operator.controller.live import Live
from tierline.operator.controller.workloads import container_troubles
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.sidecars import PROXY, capture_of, capture_uri

_UNTOLD = "what they could not write is in their metric tierline_proxy_capture_failures_total"
_KILLED = "OOMKilled"


def capture_status(
    endpoint: Endpoint, pods: Iterable[Live], former: Mapping[str, Any], now: datetime
) -> dict[str, Any] | None:
    """Return ``dataCaptureStatus``; ``None`` where pods are to capture nothing, or none runs that could.

    Parameters
    ----------
    endpoint
        Of which requests are captured.
    pods
        Its workers'.
    former
        The same as it was said last.
    now
        When it changes, if it does.
    """
    if capture_of(endpoint) is None:
        return None
    found = {
        pod.metadata.name: each
        for pod in pods
        for each in (pod.status or {}).get("containerStatuses") or ()
        if each.get("name") == PROXY
    }
    running = [each for each in found.values() if "running" in each.get("state", {})]
    troubles = [(reason, text) for name, each in found.items() for reason, text in _troubles(name, each)]
    if capture_uri(endpoint) is None:
        said = {"status": "Unhealthy", "reason": "NoDestination", "message": "nothing says where to write"}
    elif troubles:
        texts = "; ".join(text for _, text in troubles)
        said = {"status": "Unhealthy", "reason": troubles[0][0], "message": texts[:LONGEST_MESSAGE]}
    elif running:
        message = f"{len(running)} of {len(found)} containers that capture run; {_UNTOLD}"
        said = {"status": "Healthy", "reason": "Capturing", "message": message}
    else:
        return None
    was = former.get("modelPod") or {}
    is_same = was.get("status") == said["status"] and "lastTransitionTime" in was
    since = was["lastTransitionTime"] if is_same else status.stamp(now)
    return {"modelPod": said | {"lastTransitionTime": since}}


def _troubles(pod: str, container: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield why a container does not capture; what it was killed for comes before that it waits to be started."""
    last = container.get("lastState", {}).get("terminated", {})
    ended = container.get("state", {}).get("terminated", {})
    for reason, text in container_troubles(pod, (container,)):
        yield (_KILLED if last.get("reason") == _KILLED else reason), text
    if ended.get("exitCode"):
        reason = ended.get("reason") or "Error"
        yield reason, f"container {PROXY} of pod {pod} has ended with {ended['exitCode']}, {reason}"
