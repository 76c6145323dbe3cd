"""What was decided for an endpoint: read off what it has, and decided anew where its pods are replaced anyway."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol

import msgspec

from tierline.operator import names
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.kinds import POD, Reference
from tierline.operator.controller.live import CERT_MANAGERS, Live
from tierline.operator.controller.observing import workers_of
from tierline.operator.controller.planning import Stands
from tierline.operator.controller.workloads import newest_is_available, unstarted_images
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.certificates import certificate_secret_name
from tierline.operator.manifests.routing import entrance_namespace, is_routed
from tierline.operator.names import ingress_name, within
from tierline.operator.settled import CONTROLLER, PODS, Entrance, Pods, Settled, read_pods


class Commits(Protocol):
    """Who knows what the main branch of a repository is."""

    async def of(self, endpoint: Endpoint) -> str | None:
        """Return the commit that an endpoint is to have; ``None`` where nobody can say it."""


def settled(live: Iterable[Live], certificate: str) -> Settled:
    """Return what an endpoint's objects say that are not being deleted; ``certificate`` is the name of its Secret."""
    pods, entrance = Pods(), None
    names = set()
    for each in live:
        if each.metadata.deletion_timestamp is not None:
            continue
        told = each.metadata.annotations or {}
        if CERT_MANAGERS not in told:  # its Certificate may be deleted, to be had anew
            names.add((each.kind, each.metadata.name))
        if PODS in told and not pods.template:
            pods = read_pods(told[PODS])
        if each.kind in ("Ingress", "Gateway") and each.ingress_class and (entrance is None or each.kind == "Ingress"):
            entrance = Entrance(
                "ingress" if each.kind == "Ingress" else "gateway", each.ingress_class, told.get(CONTROLLER, "")
            )
    has_own_certificate = ("Secret", certificate) in names and ("Certificate", certificate) not in names
    return Settled(pods=pods, entrance=entrance, has_own_certificate=has_own_certificate)


def decisive(endpoint: Endpoint, config: OperatorConfig) -> list[Reference]:
    """Return the objects that say so, as far as their names are known."""
    namespace = entrance_namespace(endpoint, config)
    routed = ingress_name(endpoint.name, endpoint.namespace, is_routed=is_routed(endpoint))
    return [
        workers_of(endpoint)[0],
        Reference("Ingress", namespace, routed),
        Reference("Gateway", namespace, within(f"{endpoint.name}-{endpoint.namespace}")),
        Reference("Secret", namespace, certificate_secret_name(endpoint)),
        Reference("Certificate", namespace, certificate_secret_name(endpoint)),
    ]


async def settle(
    endpoint: Endpoint,
    live: Collection[Live],
    stands: Stands,
    capabilities: Capabilities,
    config: OperatorConfig,
    commits: Commits,
) -> Endpoint:
    """Return an endpoint with what was decided for it.

    As long as its pods can stay, everything about them stays; where something else replaces them, all is decided anew
    but for routing. An image of ours that never comes to run is no reason to stay.

    Raises
    ------
    ConfigurationError
        An annotation says what is not allowed.
    """
    found = settled(live, certificate_secret_name(endpoint))
    found = replace(found, pods=_without_unstarted_images(found.pods, endpoint, live))
    standing = replace(endpoint, settled=found)
    if found.pods.template and stands(standing, capabilities, config):
        return standing
    model = endpoint.hub_model
    routing = found.pods.routing
    if model is None or model.commit_sha is not None:
        return replace(standing, settled=replace(found, pods=Pods(routing=routing)))
    former = found.pods.commit if found.pods.repository == model.model_id else ""
    commit = await commits.of(endpoint) or former  # a Hub that is silent now has said it before
    pods = Pods(commit=commit, repository=model.model_id if commit else "", routing=routing)
    return replace(standing, settled=replace(found, pods=pods))


def _without_unstarted_images(pods: Pods, endpoint: Endpoint, live: Iterable[Live]) -> Pods:
    """Return what was decided, without images of ours that never came to run, while no pod that it made is available.

    Pods that were made before it may serve; they are replaced anyway.
    """
    workers, waiting = workers_of(endpoint), []
    for each in live:
        if each.kind == POD and (each.metadata.labels or {}).get(names.COMPONENT) == "worker":
            waiting.append(each)
        elif each.reference in workers and newest_is_available(each):
            return pods
    return msgspec.structs.replace(pods, **dict.fromkeys(unstarted_images(waiting), ""))
