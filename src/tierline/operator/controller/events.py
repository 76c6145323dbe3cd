"""Events: what ``kubectl describe`` shows of what happened to a resource, one for each transition."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tierline import logs
from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.controller.conditions import LONGEST_MESSAGE, Condition

log = logs.get(__name__)

COMPONENT = names.FIELD_MANAGER
_EVENT = Kind("v1", "Event", "events", is_namespaced=True)
_LONGEST_NOTE = min(1024, LONGEST_MESSAGE)
"""The API takes no longer one."""


class Events:
    """Writes them. One that cannot be written is counted and left: the condition says the same.

    Parameters
    ----------
    cluster
        Where they are written.
    identity
        Which of several operators says so.
    """

    def __init__(self, cluster: Cluster, identity: str) -> None:
        self.told = 0
        self.failures = 0
        self._cluster = cluster
        self._identity = identity

    async def tell(self, resource: Mapping[str, Any], condition: Condition) -> None:
        """Say that a condition of a resource is so now."""
        verb = {"True": "is so", "False": "is not so", "Unknown": "is not known"}[condition.status]
        text = f"{condition.type} {verb}: {condition.message or condition.reason}"
        await self.say(resource, condition.reason, text, is_warning=condition.is_trouble)

    async def say(self, resource: Mapping[str, Any], reason: str, text: str, *, is_warning: bool = False) -> None:
        """Say something of a resource."""
        metadata = resource["metadata"]
        now = datetime.now(UTC)
        seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            # Names of Events are as long as other names; what distinguishes them must not be cut off.
            "metadata": {
                "name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": "Warning" if is_warning else "Normal",
            "reason": reason,
            "message": text[:_LONGEST_NOTE],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }
        try:
            await self._cluster.create(_EVENT, event)
        except (ClusterRefused, ClusterUnavailable) as error:
            self.failures += 1
            log.warning("an Event cannot be written", resource=metadata["name"], reason=reason, why=str(error))
        else:
            self.told += 1
