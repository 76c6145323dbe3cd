"""Rules of a change: what of a resource cannot be another thing later."""

from collections.abc import Iterator, Mapping
from typing import Any

from tierline.operator.validation.findings import Finding, error

_ROUTING = "spec.intelligentRoutingSpec.enabled"


def changed(previous: Mapping[str, Any], object_: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what a change must not change; both are as the API server has them.

    Routing decides who answers at the endpoint's address, and HyperPod's operator makes it once.
    """
    yield from routing_changed(was=_is_routed(previous), is_now=_is_routed(object_))


def routing_changed(*, was: bool, is_now: bool) -> Iterator[Finding]:
    """Yield that routing was turned on or off, where it was."""
    if was != is_now:
        what = "off" if was else "on"
        as_it_was = str(was).lower()
        message = f"cannot be turned {what} later; leave it {as_it_was}, or delete the resource and create it anew"
        yield error(_ROUTING, message)


def _is_routed(object_: Mapping[str, Any]) -> bool:
    spec = object_.get("spec")
    routing = spec.get("intelligentRoutingSpec") if isinstance(spec, dict) else None
    return isinstance(routing, dict) and routing.get("enabled") is True
