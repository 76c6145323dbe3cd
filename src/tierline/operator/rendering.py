"""What resources in a file would be made into: every object, with what could not be had said above it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tierline.errors import UsageError
from tierline.operator.capabilities import Capabilities
from tierline.operator.catalogue import Catalogue
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.intake import endpoint_of
from tierline.operator.manifests.desired import desired, kept_secrets, shared, shared_secrets
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.secrets import KeptSecret
from tierline.operator.validation import is_ours


@dataclass(frozen=True)
class Rendered:
    """What resources are made into.

    Parameters
    ----------
    manifests
        All objects, those that endpoints share first.
    remarks
        What is otherwise than the resources' author may think, a line each.
    secrets
        What is made once and kept, and so is in no manifest.
    """

    manifests: tuple[Manifest, ...]
    remarks: tuple[str, ...]
    secrets: tuple[KeptSecret, ...]


def endpoints_of(resources: Iterable[Mapping[str, Any]], catalogue: Catalogue) -> tuple[list[Endpoint], list[str]]:
    """Return the endpoints that resources of ours ask for, and remarks; other objects are left aside.

    Raises
    ------
    UsageError
        None of them is an endpoint, or one asks for what cannot be; says every reason.
    """
    endpoints: list[Endpoint] = []
    remarks: list[str] = []
    for resource in filter(is_ours, resources):
        name = f"{resource['kind']} {(resource.get('metadata') or {}).get('name')}"
        endpoint, verdict = endpoint_of(resource, catalogue)
        if verdict.errors:
            raise UsageError(f"{name}: {'; '.join(map(str, verdict.errors))}")
        if endpoint is not None:
            endpoints.append(endpoint)
        remarks += (f"{name}: {finding.severity}: {finding}" for finding in verdict.findings)
    if not endpoints:
        raise UsageError("there is no InferenceEndpointConfig and no JumpStartModel to look at")
    return endpoints, remarks


def render(endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig) -> Rendered:
    """Return what endpoints, and what they share, are made of.

    Raises
    ------
    ConfigurationError
        An annotation says what is not allowed.
    """
    made = shared(endpoints, capabilities, config)
    secrets = [*shared_secrets(endpoints, capabilities, config)]
    for endpoint in endpoints:
        own = desired(endpoint, capabilities, config)
        made += own if endpoint.uid else Made(tuple(map(_without_owner, own.manifests)), own.notices)
        secrets += kept_secrets(endpoint, capabilities, config)
    remarks = dict.fromkeys(f"{notice.condition} {notice.reason}: {notice.message}" for notice in made.notices)
    return Rendered(made.manifests, tuple(remarks), _each_once(secrets))


def secret_manifests(secrets: Sequence[KeptSecret], now: datetime) -> list[Manifest]:
    """Return Secrets with fresh content, for who applies what is rendered without an operator."""
    contents: dict[tuple[str, str], Mapping[str, bytes]] = {}
    manifests = []
    for secret in secrets:
        content = secret.make({}, contents.get(secret.signed_by or ("", ""), {}), now)
        contents[secret.namespace, secret.name] = content
        manifests.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": secret.name, "namespace": secret.namespace},
                "type": secret.type,
                "stringData": {key: value.decode() for key, value in content.items()},
            }
        )
    return manifests


def _without_owner(manifest: Manifest) -> Manifest:
    """Return it as it can be applied for a resource that no API has seen: owners are known by their uid."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
    return {**manifest, "metadata": metadata}


def _each_once(secrets: Sequence[KeptSecret]) -> tuple[KeptSecret, ...]:
    """Return them without those that several endpoints need, behind the first."""
    found: dict[tuple[str, str], KeptSecret] = {}
    for secret in secrets:
        found.setdefault((secret.namespace, secret.name), secret)
    return tuple(found.values())
