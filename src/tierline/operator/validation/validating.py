"""A whole look at a resource: its form, then the rules that its schema cannot say, then those of a change."""

from collections.abc import Iterator, Mapping
from typing import Any

from tierline.operator.crds import KINDS, Resource
from tierline.operator.names import API_VERSION, GROUP
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfig
from tierline.operator.resources.jump_start_model import JumpStartModel
from tierline.operator.validation.changes import changed
from tierline.operator.validation.endpoint import named
from tierline.operator.validation.findings import Finding, Verdict, error, unsupported
from tierline.operator.validation.form import parse
from tierline.operator.validation.inference_endpoint_config import inference_endpoint_config
from tierline.operator.validation.jump_start_model import jump_start_model
from tierline.operator.validation.spelling import hint

_MODELS: dict[str, type[Resource]] = {kind.kind: kind.model for kind in KINDS}


def is_ours(object_: Mapping[str, Any]) -> bool:
    """Return whether an object is of the group of the resources."""
    return str(object_.get("apiVersion", "")).partition("/")[0] == GROUP


def validate(object_: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> Verdict:
    """Return what is to be said of a resource.

    Parameters
    ----------
    object_
        As ``kubectl`` reads it from a file, or as the API server has it.
    previous
        What it was, where it is being changed.
    """
    kind, version = str(object_.get("kind", "")), str(object_.get("apiVersion", ""))
    if version != API_VERSION:
        return Verdict(None, (error("apiVersion", f"got {version!r}; allowed: {API_VERSION}"),))
    if kind not in _MODELS:
        return Verdict(None, (error("kind", f"got {kind!r}; allowed: {', '.join(_MODELS)}{hint(kind, _MODELS)}"),))
    resource, findings = parse(_MODELS[kind], object_)
    if resource is not None:
        findings = (*findings, *_rules(resource))
    if previous is not None:
        findings = (*findings, *changed(previous, object_))
    return Verdict(resource, findings)


def _rules(resource: Resource) -> Iterator[Finding]:
    yield from named(resource.metadata.name)
    match resource:
        case InferenceEndpointConfig():
            yield from inference_endpoint_config(resource.spec)
        case JumpStartModel():
            yield from jump_start_model(resource.spec)
        case _:
            yield unsupported(
                "spec",
                f"{', '.join(resource.spec.manifest())} are kept, and nothing follows from them: an endpoint is "
                "registered with Amazon SageMaker on AWS only; where endpointName of an InferenceEndpointConfig says "
                "so, its router serves SageMaker's API under a name",
            )
