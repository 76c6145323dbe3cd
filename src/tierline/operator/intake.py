"""From an object of the API, or of a file, to the endpoint that it asks for: the rules, the catalogue, annotations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tierline.errors import ConfigurationError
from tierline.operator.assumed import ADDITIONS, cluster
from tierline.operator.catalogue import Catalogue, spec_of
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint
from tierline.operator.manifests.desired import desired
from tierline.operator.resources.base import Metadata
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfig, InferenceEndpointConfigSpec
from tierline.operator.resources.jump_start_model import JumpStartModel
from tierline.operator.validation import Finding, Severity, Verdict, validate


def endpoint_of(object_: Mapping[str, Any], catalogue: Catalogue) -> tuple[Endpoint | None, Verdict]:
    """Return the endpoint that a resource asks for, and what is to be said of the resource.

    There is no endpoint where the verdict has errors, and none of a ``SageMakerEndpointRegistration``.
    """
    verdict = validate(object_)
    resource = verdict.resource
    if verdict.errors or resource is None:
        return None, verdict
    endpoint = None
    if isinstance(resource, InferenceEndpointConfig):
        endpoint = _endpoint(resource.kind, resource.metadata, resource.spec)
    elif isinstance(resource, JumpStartModel):
        spec, findings = spec_of(resource.spec, catalogue)
        verdict = replace(verdict, findings=(*verdict.findings, *findings))
        endpoint = None if spec is None else _endpoint(resource.kind, resource.metadata, spec)
    if endpoint is not None and (wrong := _wrong_annotation(endpoint)) is not None:
        return None, replace(verdict, findings=(*verdict.findings, wrong))
    return endpoint, verdict


def _wrong_annotation(endpoint: Endpoint) -> Finding | None:
    """Return an annotation of ours that no manifest can be made by; each is read where it is used, so they are made."""
    if not any(key.startswith(ANNOTATION_PREFIX) for key in endpoint.annotations):
        return None
    has, config = cluster(ADDITIONS), OperatorConfig()
    try:
        desired(endpoint, has, config)  # of what it shares with others as well
    except ConfigurationError as error:
        return Finding(Severity.ERROR, error.key, str(error).removeprefix(f"{error.key}: "))
    return None


def _endpoint(kind: str, metadata: Metadata, spec: InferenceEndpointConfigSpec) -> Endpoint:
    return Endpoint(
        kind=kind,
        name=metadata.name,
        # As kubectl has it for a file that names none.
        namespace=metadata.namespace or "default",
        uid=metadata.uid,
        spec=spec,
        generation=metadata.generation,
        annotations=metadata.annotations,
    )
