"""Resources as users write them: read of a file, checked here before the cluster sees them, applied."""

from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from tierline.errors import ClusterRefused, UsageError
from tierline.kube.cluster import Cluster, Object
from tierline.operator import documents
from tierline.operator.endpoints.standing import KINDS as ENDPOINT_KINDS
from tierline.operator.endpoints.standing import resource_kinds
from tierline.operator.names import API_VERSION
from tierline.operator.validation import validate


@dataclass(frozen=True)
class Applied:
    """What became of a resource.

    Parameters
    ----------
    kind, namespace, name
        Which one.
    outcome
        ``created``, ``changed`` or ``unchanged``.
    """

    kind: str
    namespace: str
    name: str
    outcome: str


def read(file: Path) -> list[Object]:
    """Return the resources in a file, or in standard input for ``-``.

    Raises
    ------
    UsageError
        It cannot be read, or has something that is no resource for an endpoint.
    """
    return [checked(each, str(file)) for each in documents.read(file)]


def checked(document: Object, where: str) -> Object:
    """Return a resource if an operator could act upon it.

    Raises
    ------
    UsageError
        It could not; the message names the path of the field.
    """
    kind = document.get("kind")
    if document.get("apiVersion") != API_VERSION or kind not in ENDPOINT_KINDS:
        allowed = " and ".join(ENDPOINT_KINDS)
        raise UsageError(f"{where}: got {document.get('apiVersion')} {kind}; allowed: {API_VERSION} {allowed}")
    if not (document.get("metadata") or {}).get("name"):
        raise UsageError(f"{where}: metadata.name: it needs a name")
    errors = validate(document).errors
    if errors:
        raise UsageError(f"{where}: {'; '.join(map(str, errors))}")
    return document


async def apply(cluster: Cluster, resource: Object, namespace: str) -> Applied:
    """Have a resource be so.

    Raises
    ------
    UsageError
        The cluster does not take it, or does not have its kind.
    """
    metadata = {"namespace": namespace, **resource["metadata"]}
    kind = next((kind for kind in await resource_kinds(cluster) if kind.name == resource["kind"]), None)
    if kind is None:
        raise UsageError(f"the cluster has no {resource['kind']}")
    before = await cluster.get(kind, metadata["namespace"], metadata["name"])
    try:
        after = await cluster.apply(kind, {**resource, "metadata": metadata})
    except ClusterRefused as refusal:
        if refusal.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND):
            raise UsageError(f"{resource['kind']} {metadata['name']}: {refusal}") from refusal
        raise
    is_same = before is not None and before["metadata"]["generation"] == after["metadata"]["generation"]
    outcome = "created" if before is None else "unchanged" if is_same else "changed"
    return Applied(kind.name, metadata["namespace"], metadata["name"], outcome)
