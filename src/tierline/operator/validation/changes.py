"""Rules of a change: what of a resource cannot be another thing later."""

from collections.abc import Iterator, Mapping
from typing import Any

from tierline.operator.validation.findings import Finding, error

_ROUTING = "spec.intelligentRoutingSpec.enabled"


def changed(previous: Mapping[str, Any], object_: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what a change must not change; both are as the API server has them.

    Routing decides who answers at the endpoint's address, and HyperPod's operator makes it once.
    """
    was, is_ = _is_routed(previous), _is_routed(object_)
    if was != is_:
        what = "cannot be turned off" if was else "cannot be turned on"
        yield error(_ROUTING, f"{what} later; delete the resource and create it anew")


def _is_routed(object_: Mapping[str, Any]) -> bool:
    spec = object_.get("spec")
    routing = spec.get("intelligentRoutingSpec") if isinstance(spec, dict) else None
    return isinstance(routing, dict) and routing.get("enabled") is True
