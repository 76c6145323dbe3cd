"""EndpointSlices, as far as they are read: who is behind a Service, at which port. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tierline.kube.api import Call, KubernetesApi, Metadata


class Conditions(msgspec.Struct):
    """How an endpoint stands; what a server does not say is ``None``.

    Parameters
    ----------
    ready
        It wants new work: false while it ends.
    serving
        It does its work, also while it ends; not said by servers before 1.22.
    terminating
        It ends.
    """

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(msgspec.Struct):
    """What is behind an address: a pod."""

    name: str = ""
    uid: str = ""


class SliceEndpoint(msgspec.Struct, rename="camel"):
    """One endpoint; ``hostname`` is set for a pod that has a name of its own in its Service, as in a StatefulSet."""

    addresses: list[str]
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    target_ref: Target | None = None
    node_name: str | None = None
    hostname: str | None = None
    topology: dict[str, str] | None = None
    """Of servers before 1.22 (``v1beta1``), which have the machine's name in here."""

    @property
    def is_routable(self) -> bool:
        """Whether it may get requests."""
        return self.conditions.ready is not False and not self.conditions.terminating

    @property
    def is_serving(self) -> bool:
        """Whether it does its work, be it that it ends."""
        serving = self.conditions.serving
        return self.conditions.ready is not False if serving is None else serving

    @property
    def machine(self) -> str:
        """Name of the cluster's node that it runs on; empty where it is not said."""
        return self.node_name or (self.topology or {}).get("kubernetes.io/hostname", "")


class Port(msgspec.Struct, rename="camel"):
    """One port of all endpoints of a slice."""

    name: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(msgspec.Struct, rename="camel"):
    """A part of a Service's endpoints, with addresses of one family."""

    metadata: Metadata
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[Port] | None = None


def slice_calls(api: KubernetesApi, connected: Any, namespace: str) -> Sequence[Call]:
    """Return ways to ask for the EndpointSlices of a namespace; servers before 1.21 have ``v1beta1`` only."""
    return [api.endpoint_slices(connected, namespace, version) for version in ("v1", "v1beta1")]


def port_of(ports: Sequence[Port], wanted: str, usual: str) -> Port | None:
    """Return a port by its name or its number.

    Parameters
    ----------
    wanted
        Empty: the only one, or the one called ``usual``.
    """
    if wanted.isdigit():
        protocol = next((port.app_protocol for port in ports if port.port == int(wanted)), None)
        return Port(port=int(wanted), app_protocol=protocol)
    if not wanted and len(ports) == 1:
        return ports[0] if ports[0].port else None
    return next((port for port in ports if port.name == (wanted or usual) and port.port), None)
