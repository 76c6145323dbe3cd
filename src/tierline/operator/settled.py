"""What was decided for an endpoint and stays so, whatever its cluster and its operator become.

Rule: nothing here is remembered by a process. What cannot be read off the objects themselves is written on them, so
that the next operator finds it.
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

PODS = "tierline.ai/settled"
"""Annotation of the workers' Deployments, and of our own Redis': :class:`Pods`, as JSON."""
CONTROLLER = "tierline.ai/ingress-controller"
"""Annotation of an Ingress: who serves its class, for a class that is gone says it no more."""


@dataclass(frozen=True)
class Entrance:
    """The way in.

    Parameters
    ----------
    kind
        What it is made of.
    name
        Of the class of Ingresses or of Gateways; of a Gateway that is there already, ``NAMESPACE/NAME``.
    controller
        Of an Ingress, who serves its class.
    """

    kind: Literal["ingress", "gateway", "route"]
    name: str
    controller: str = ""


class Pods(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How the pods of workers were made, as far as their resource does not say it; what is empty is not decided.

    Parameters
    ----------
    template
        Digest of what they were made by. As long as this and the resource lead to the same again, nothing else
        replaces them; what would is decided anew together with it.
    image, connector_image
        Images of our programs.
    s3
        How a model in S3 comes to them.
    commit
        What the main branch of a repository on the Hub was.
    repository
        Which one.
    routing
        Whether ``intelligentRoutingSpec`` was enabled as they were made, which it stays.
    """

    template: str = ""
    image: str = ""
    connector_image: str = ""
    s3: Literal["", "mounted", "copied"] = ""
    commit: str = ""
    repository: str = ""
    routing: Literal["", "enabled", "disabled"] = ""

    def text(self) -> str:
        """Return it as :data:`PODS` has it."""
        return msgspec.json.encode(self).decode()


def read_pods(text: str | None) -> Pods:
    """Return what an annotation says; nothing, of one that somebody has spoiled."""
    try:
        return msgspec.json.decode(text or "{}", type=Pods)
    except msgspec.MsgspecError:
        return Pods()


@dataclass(frozen=True, kw_only=True)
class Settled:
    """All of it, of one endpoint.

    Parameters
    ----------
    pods
        Of its workers.
    entrance
        The one that is there.
    has_own_certificate
        Its certificate is one of the operator's own authority.
    former_router_namespaces
        Where routers still are that one elsewhere succeeds.
    """

    pods: Pods = field(default_factory=Pods)
    entrance: Entrance | None = None
    has_own_certificate: bool = False
    former_router_namespaces: tuple[str, ...] = ()
