"""The admission webhook as a function: from an ``AdmissionReview`` of the API server to the answer to it.

It refuses what the rules call an error, and says the rest as warnings, which ``kubectl`` prints. A change that leaves
``spec`` as it was passes: what became invalid later must still be labelled, and let go of.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tierline.operator.capabilities import NAMESPACE_NAME
from tierline.operator.catalogue import Catalogue
from tierline.operator.crds import KINDS
from tierline.operator.endpoint import ANNOTATION_PREFIX
from tierline.operator.intake import endpoint_of
from tierline.operator.names import FIELD_MANAGER, GROUP, MANAGED_BY, VERSION
from tierline.operator.validation import Finding, Verdict, validate

API_VERSION = "admission.k8s.io/v1"
PATH = "/admission"
SERVICE_PORT = 443
NAME = f"admission.{GROUP}"
"""Of the webhook, as whoever is refused reads it; of its configurations :func:`configuration_name`."""
LONGEST_WARNING = 256
"""The API server cuts longer ones."""
TIMEOUT_SECONDS = 5
_UNPROCESSABLE = 422


def review(asked: Mapping[str, Any], catalogue: Catalogue, watched: Collection[str] = ()) -> dict[str, Any]:
    """Return the answer to a review.

    Parameters
    ----------
    asked
        The review.
    catalogue
        What a ``JumpStartModel`` may name.
    watched
        Namespaces whose resources are looked at; none: all. Those of others are another operator's.

    Raises
    ------
    ValueError
        It is none.
    """
    request = asked.get("request")
    if asked.get("apiVersion") != API_VERSION or not isinstance(request, dict) or not request.get("uid"):
        raise ValueError(f"an AdmissionReview of {API_VERSION} with a request")
    is_ours = not watched or request.get("namespace") in watched
    verdict = _verdict(request, catalogue) if is_ours else Verdict(None)
    response: dict[str, Any] = {"uid": request["uid"], "allowed": not verdict.errors}
    if verdict.errors:
        response["status"] = {"code": _UNPROCESSABLE, "reason": "Invalid", "message": _joined(verdict.errors)}
    if warnings := [str(finding)[:LONGEST_WARNING] for finding in (*verdict.warnings, *verdict.unsupported)]:
        response["warnings"] = warnings
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def configuration_name(namespace: str) -> str:
    """Return the name of what makes the API server ask: that of each operator has one of its own."""
    return f"{namespace}.{NAME}"


def configurations(client: Mapping[str, Any], namespace: str, watched: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return what makes the API server ask.

    It asks twice: before it looks at the schema, whose own words for a wrong value say less than ours, and after it,
    when nobody else changes the object any more. An operator that is away stops nobody: it looks at every resource
    again before it acts.

    Parameters
    ----------
    client
        ``clientConfig`` of the webhooks: the operator's Service or URL, and the authority of its certificate.
    namespace
        Where the operator is.
    watched
        Namespaces whose resources are asked about, where namespaces have their names as labels; none: all.
    """
    webhook: dict[str, Any] = {
        "name": NAME,
        "admissionReviewVersions": ["v1"],
        "clientConfig": dict(client),
        "failurePolicy": "Ignore",
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECONDS,
        "rules": [
            {
                "apiGroups": [GROUP],
                "apiVersions": [VERSION],
                "operations": ["CREATE", "UPDATE"],
                "resources": [kind.plural for kind in KINDS],
                "scope": "Namespaced",
            }
        ],
    }
    if watched:
        named = {"key": NAMESPACE_NAME, "operator": "In", "values": sorted(watched)}
        webhook["namespaceSelector"] = {"matchExpressions": [named]}
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": f"{kind}WebhookConfiguration",
            "metadata": {"name": configuration_name(namespace), "labels": {MANAGED_BY: FIELD_MANAGER}},
            "webhooks": [webhook],
        }
        for kind in ("Mutating", "Validating")
    ]


def completed(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration is to be said where others have made it: the authority, which they cannot know."""
    [webhook] = configuration["webhooks"]
    client = {"caBundle": webhook["clientConfig"]["caBundle"]}
    return {
        "apiVersion": configuration["apiVersion"],
        "kind": configuration["kind"],
        "metadata": {"name": configuration["metadata"]["name"]},
        "webhooks": [{"name": webhook["name"], "clientConfig": client}],
    }


def _verdict(request: Mapping[str, Any], catalogue: Catalogue) -> Verdict:
    object_, previous = request.get("object"), request.get("oldObject")
    if not isinstance(object_, dict):
        return Verdict(None)
    if not isinstance(previous, dict):
        return endpoint_of(object_, catalogue)[1]
    if object_.get("spec") == previous.get("spec") and _said(object_) == _said(previous):
        return Verdict(None)
    change = validate(object_, previous)
    return change if change.errors else endpoint_of(object_, catalogue)[1]


def _said(object_: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of an object that mean something to us."""
    annotations = (object_.get("metadata") or {}).get("annotations") or {}
    return {key: value for key, value in annotations.items() if key.startswith(ANNOTATION_PREFIX)}


def _joined(errors: tuple[Finding, ...]) -> str:
    return "\n".join(["the resource is refused:", *(f"  {finding}" for finding in errors)])
